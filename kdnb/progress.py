"""One progress bar for long work, wherever it runs.

In a terminal it is a line, in a notebook that a person opened a widget; both vanish when done. Under the runner (`KDNB_PROGRESS` names a file) the
kernel writes a short line there instead, at most twice a second, and the runner shows it: stored notebooks stay free of bars.
Anywhere else (tests, pipes) it is silent.

What was not made anew says so: a line `reused: ...` under the cell, and the same in the runner's last line.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path

from kdnb.rehearsal import cut

_INTERVAL = 0.5  # seconds between two updates


def progress(
    items: Iterable, description: str, total: int | None = None, initial: int = 0, whole: bool = False
) -> Iterator:
    """Yield from `items` and show how far it got; `initial` items count as done before.

    A rehearsal cuts them (`kdnb.rehearsal.cut`) unless the `whole` of them is needed for what follows.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = initial + len(items)
    items = cut(items, description, total - initial, most=total if whole else 2)
    target = os.environ.get("KDNB_PROGRESS")
    if 0 < initial < total:
        print(f"reused: {description} continues at {initial}/{total}", flush=True)
        _tell_runner(f"{description} continues at {initial}/{total}")
    if target:
        yield from _to_file(items, description, total, initial, Path(target))
    elif sys.stderr.isatty() or interactive():
        from tqdm.auto import tqdm  # a widget where a browser is, a line in a terminal

        yield from tqdm(items, desc=description, total=total, initial=initial, leave=False, mininterval=1.0)
    else:
        yield from items


def interactive() -> bool:
    """Whether this is a notebook opened by a person; test runners set `KDNB_QUIET`."""
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


# --- what is reused ------------------------------------------------------------------------------------------------------------

_CACHED = " from the cache"
_in_cell: Counter = Counter()  # kinds taken from the cache in the running cell


def from_cache(kind: str) -> None:
    """Say that something was not made now but read: one line for all of a cell, after it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        if not _in_cell:
            shell.events.register("post_run_cell", _after_cell)
        _in_cell[kind] += 1
    _tell_runner(kind + _CACHED)


def _after_cell(result: object) -> None:
    sys.modules["IPython"].get_ipython().events.unregister("post_run_cell", _after_cell)
    print(f"reused: {_counted(_in_cell)}{_CACHED}", flush=True)
    _in_cell.clear()


def _counted(kinds: Counter) -> str:
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items())


def _notes(target: Path) -> Path:
    return target.with_name("reused")


def _tell_runner(line: str) -> None:
    if target := os.environ.get("KDNB_PROGRESS"):
        with suppress(OSError), open(_notes(Path(target)), "a") as file:
            file.write(line + "\n")


def describe_reuse(target: Path) -> str:
    """What a kernel told its runner, in one line: `reused: 3 students from the cache, student continues at 5/8`.

    Args:
        target: the file that `KDNB_PROGRESS` named.
    """
    try:
        lines = _notes(target).read_text().splitlines()
    except OSError:
        return ""
    kinds = Counter(line.removesuffix(_CACHED) for line in lines if line.endswith(_CACHED))
    cached = [_counted(kinds) + _CACHED] if kinds else []
    return "reused: " + ", ".join(cached + [line for line in lines if not line.endswith(_CACHED)])
