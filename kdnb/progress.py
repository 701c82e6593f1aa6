"""One progress bar for long work, wherever it runs.

In a terminal or an interactive notebook it is a tqdm line that vanishes when done. Under the runner (`KDNB_PROGRESS` names a file) the
kernel writes a short line there instead, at most twice a second, and the runner shows it: stored notebooks stay free of bars.
Anywhere else (tests, pipes) it is silent.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdnb.rehearsal import cut

_INTERVAL = 0.5  # seconds between two updates


def progress(
    items: Iterable, description: str, total: int | None = None, initial: int = 0, whole: bool = False
) -> Iterator:
    """Yield from `items` and show how far it got; `initial` items count as done before.

    A rehearsal cuts them (`kdnb.rehearsal.cut`) unless the `whole` of them is needed for what follows.
    """
    total = total if total is not None else initial + len(items)
    items = cut(items, description, total - initial, most=total if whole else 2)
    target = os.environ.get("KDNB_PROGRESS")
    if target:
        yield from _to_file(items, description, total, initial, Path(target))
    elif sys.stderr.isatty() or _interactive_kernel():
        from tqdm import tqdm

        yield from tqdm(
            items, desc=description, total=total, initial=initial, leave=False, mininterval=1.0, file=sys.stderr
        )
    else:
        yield from items


def _interactive_kernel() -> bool:
    """A notebook opened by a person; test runners set `KDNB_QUIET`."""
    return "ipykernel" in sys.modules and not os.environ.get("KDNB_QUIET")


def _to_file(items: Iterable, description: str, total: int, initial: int, target: Path) -> Iterator:
    last = 0.0
    for index, item in enumerate(items, start=initial):
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            try:
                target.write_text(f"{description} {index}/{total}")
            except OSError:  # the reader is gone; progress is a courtesy, the work goes on
                pass
        yield item
