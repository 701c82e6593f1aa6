"""How a run ended: execution.json, and the exit code that goes with it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdnb.errors import InputError
from kdnb.storage.files import read_record

EXIT_CODES = {"ok": 0, "failed": 1, "bad_input": 2, "killed": 4, "timeout": 5, "unexpected": 6, "interrupted": 130}


@dataclass
class Outcome:
    """How a run ended; the content of execution.json.

    Attributes:
        status: ok, bad_input, failed, unexpected (a check of the notebook does not hold), killed (the kernel died), timeout or
            interrupted.
        folder: of the run.
        seconds, peak_memory_mib: of this execution; memory of the kernel process.
        cell, source: number and source of the cell it ended in, where it did not end well.
        message: one sentence on what went wrong.
        finished: when and with which commit, where nothing was executed now because the run had ended well before.
        reused: what came from the cache or was continued, in one line.
    """

    status: str
    folder: Path
    seconds: float = 0.0
    peak_memory_mib: int | None = None
    cell: int | None = None
    source: str = ""
    message: str = ""
    reused: str = ""
    finished: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    @property
    def next_step(self) -> str:
        if self.status == "ok":
            return ""
        if self.status == "bad_input":
            return "correct the input and run again"
        if self.status == "unexpected":
            return "look at the numbers in the report; results and tables are kept"
        if self.status == "failed":
            return "look at notebook.ipynb in the run folder; once the cause is gone, the same command continues from the last checkpoint"
        return "run the same command again; it continues from the last checkpoint"

    def entries(self) -> dict[str, Any]:
        """What execution.json says about the ending."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "seconds": self.seconds,
            "peak_memory_mib": self.peak_memory_mib,
            "cell": self.cell,
            "source": self.source,
            "message": self.message,
            "reused": self.reused,
            "next": self.next_step,
        }

    def describe(self) -> str:
        """A few lines for a terminal."""
        if self.finished:
            return (
                f"finished before ({self.finished}) in {self.seconds:.0f} s; nothing was run, --again runs it once more"
            )
        if self.status == "ok":
            reused = f"; {self.reused}" if self.reused else ""
            return f"ok in {self.seconds:.0f} s, peak memory {self.peak_memory_mib or '?'} MiB{reused}"
        if self.status == "bad_input":
            return self.message
        if self.status == "unexpected":
            return f"unexpected after {self.seconds:.0f} s\n  {self.message}\n  next: {self.next_step}"
        quoted = "".join(f"\n    | {line}" for line in self.source.splitlines()[:12])
        place = f" in cell [{self.cell}]:{quoted}" if self.cell else ""
        return f"{self.status} after {self.seconds:.0f} s{place}\n  {self.message}\n  next: {self.next_step}"


def read_outcome(folder: Path) -> dict[str, Any]:
    """What execution.json says, {} without a whole one; a run that is recorded as running by a process that is gone was killed."""
    try:
        record = read_record(folder / "execution.json")
    except InputError:
        return {}
    if record.get("status") == "running" and not _alive(record.get("pid", 0)):
        record |= {"status": "killed", "exit_code": EXIT_CODES["killed"], "message": "the runner was killed"}
    return record


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, so there is one
        return True
    return pid > 0
