"""What a sweep shows while it runs: a live table in a terminal, elsewhere a line for each change."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kdnb.reports.listing import columns
from kdnb.runner.forecast import Costs

_INTERVAL = 1.0  # seconds between two drawings
_SHOWN = 12  # running jobs in the table


class Board:
    """States of the jobs of a sweep (`kdnb.runner.sweep.Job`), and the time left.

    Args:
        workers: runs at once.
        silent: show nothing.
    """

    def __init__(self, jobs: Sequence[Any], workers: int, silent: bool = False):
        self._jobs, self._workers, self._silent = jobs, workers, silent
        self._live = not silent and sys.stderr.isatty()
        self._costs, self._lines, self._drawn = Costs(), 0, 0.0

    def begins(self) -> None:
        done = sum(job.ended for job in self._jobs)
        self._say(f"{len(self._jobs)} runs, {done} of them finished before; time left: {self.left()}")

    def changed(self, job: Any, text: str = "") -> None:
        """One line about a job that has another state now."""
        ended = f" in {job.seconds:.0f} s" if job.seconds and job.ended else ""
        again = f" (attempt {job.attempts})" if job.attempts > 1 and job.state == "running" else ""
        why = f": {job.message}" if job.message and not text else ""
        self._say(f"{self._counts()}  {job.run.name}: {text or job.state}{ended}{again}{why}")

    def draw(self) -> None:
        """The table in a terminal, at most once a second."""
        if not self._live or time.monotonic() - self._drawn < _INTERVAL:
            return
        self._drawn = time.monotonic()
        running = [job for job in self._jobs if job.state == "running"]
        rows = [(f"{self._drawn - job.started:.0f} s", job.run.name) for job in running[:_SHOWN]]
        states = ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in self._jobs).items())
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in [f"{states}; time left: {self.left()}", *columns(rows).splitlines()]]
        self._clear()
        self._write("\n".join(lines) + "\n")
        self._lines = len(lines)

    def left(self) -> str:
        """Until all have ended, from what such runs took: in this sweep first, else before; unknown where none has ended."""
        measured: dict[tuple[str, str], list[float]] = {}
        for job in self._jobs:
            if job.state in ("ok", "unexpected"):
                measured.setdefault((job.run.profile, job.run.experiment), []).append(job.seconds)
        left = 0.0
        for job in (job for job in self._jobs if not job.ended):
            own = measured.get((job.run.profile, job.run.experiment))
            cost = None if own else self._costs.of(job.run.plan)
            if not own and cost is None:
                return "unknown until a run has ended"
            whole = sum(own) / len(own) if own else cost.seconds  # type: ignore[union-attr]
            left += max(whole - (time.monotonic() - job.started), 0.0) if job.state == "running" else whole
        return f"about {left / self._workers / 60:.1f} min"

    def close(self) -> None:
        self._clear()

    def _counts(self) -> str:
        ended = sum(job.ended for job in self._jobs)
        return f"[{ended}/{len(self._jobs)}]"

    def _clear(self) -> None:
        if self._lines:
            self._write(f"\x1b[{self._lines}F\x1b[J")
            self._lines = 0

    def _say(self, text: str) -> None:
        if not self._silent:
            self._clear()
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        """Where nobody reads any more the sweep goes on in silence."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (BrokenPipeError, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
