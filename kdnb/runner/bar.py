"""The line on stderr that says how far a run is.

It is a courtesy: a thread of its own draws it, nothing else touches it, and where nobody reads it any more (a closed pipe, a terminal
that is gone) the run goes on unseen.
"""

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

_POLL = 0.5  # seconds between two looks at the progress of the cell
_LAST = 2.0  # seconds the thread has for its last line; a reader that is stopped must not stop the run


class Bar:
    """Cells done out of `total`, and the line that the running cell wrote to the file `progress`."""

    def __init__(self, title: str, progress: Path):
        self.title, self.progress = title, progress
        self.total: int | None = None
        self.done = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Draw the last line and end."""
        self._closed.set()
        self._thread.join(_LAST)

    def _draw(self) -> None:
        # in a log file one line every ten seconds is enough
        bar = tqdm(
            desc=self.title,
            unit="cell",
            file=_Courtesy(sys.stderr),
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} cells, {elapsed}{postfix}",
        )
        while not self._closed.wait(_POLL):
            self._show(bar)
            if time.time() - bar.last_print_t >= bar.mininterval:
                bar.refresh()
                bar.last_print_t = time.time()
        self._show(bar)
        bar.close()

    def _show(self, bar: tqdm) -> None:
        bar.total, bar.n = self.total, self.done
        try:
            bar.set_postfix_str(self.progress.read_text(), refresh=False)
        except OSError:
            bar.set_postfix_str("", refresh=False)


class _Courtesy:
    """A stream whose reader may go away: tqdm keeps its lock for ever where a write raises."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
