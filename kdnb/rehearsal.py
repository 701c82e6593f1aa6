"""A rehearsal: an experiment with its real networks, sizes and batches, every loop cut to its first and last step.

The loops of long work run through `cut`. Ordinarily it hands on what it is given. In a rehearsal (`KDNB_REHEARSE` names a file) it yields
the first item and the last one, measures them, and reckons what all of them would have cost. Loops lie in loops: an item of an outer
loop costs what was measured of it, with the measured cost of each loop inside replaced by the reckoned one. The file gets one line for
each outermost loop, so that whoever started the rehearsal can put the whole together.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

_FEW = 50  # images
_LONG = 20.0  # seconds; after a first item that took longer there is no second


class Cost(NamedTuple):
    """What a part of a run takes.

    Attributes:
        seconds: of time.
        bytes: written to disk.
    """

    seconds: float = 0.0
    bytes: float = 0.0

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        return Cost(self.seconds + times * other.seconds, self.bytes + times * other.bytes)


class _Frame:
    """What the loops inside one item have cost, and what they would have cost uncut."""

    def __init__(self) -> None:
        self.measured, self.reckoned = Cost(), Cost()


_frames = [_Frame()]  # of the process, and of every item being worked on
_written = 0.0


def rehearsing() -> bool:
    return bool(os.environ.get("KDNB_REHEARSE"))


def batch_for(batch_size: int) -> int:
    """Images a batch where only outputs are wanted: fewer in a rehearsal, which reckons with more batches then."""
    return min(batch_size, _FEW) if rehearsing() else batch_size


def wrote(count: int) -> None:
    """So many bytes went to disk."""
    global _written
    _written += count


def cut(items: Iterable, name: str, total: int | None = None, most: int = 2) -> Iterable:
    """`items`; in a rehearsal the first and the last of a range or list, or the first `most` of anything else.

    Args:
        name: of one item, for the table of costs: "step", "epoch of kd, seed 0".
        total: how many items there are; None: their length.
        most: items in a rehearsal.
    """
    if not rehearsing():
        return items
    if isinstance(items, Sequence):
        total = len(items) if total is None else total
        if most < 3:
            items = [items[0], items[-1]][:most] if len(items) > 1 else list(items)
    return _measured(items, name, total, most)


@contextmanager
def seldom(share: float) -> Iterator[None]:
    """Around work that only a `share` of a loop's items does: a rehearsal, whose last item does it, reckons that share of its cost."""
    if not rehearsing():
        yield
        return
    frame, started = _Frame(), _now()
    _frames.append(frame)
    try:
        yield
    finally:
        _frames.remove(frame)
    spent = _now().plus(started, -1)
    whole = spent.plus(frame.measured, -1).plus(frame.reckoned)
    _frames[-1].measured = _frames[-1].measured.plus(spent)
    _frames[-1].reckoned = _frames[-1].reckoned.plus(whole, share)


def _measured(items: Iterable, name: str, total: int | None, most: int) -> Iterator:
    began, each = _now(), Cost()
    done = 0
    for item in islice(items, most):
        frame, started = _Frame(), _now()
        _frames.append(frame)
        try:
            yield item
        finally:
            _frames.remove(frame)
        spent = _now().plus(started, -1)
        each = spent.plus(frame.measured, -1).plus(frame.reckoned)
        done += 1
        if spent.seconds > _LONG:
            break
    measured = _now().plus(began, -1)
    reckoned = Cost().plus(each, total if total is not None else done)
    _frames[-1].measured = _frames[-1].measured.plus(measured)
    _frames[-1].reckoned = _frames[-1].reckoned.plus(reckoned)
    if len(_frames) == 1 and done:
        _report({"name": name, "items": total or done, "each": each, "measured": measured, "reckoned": reckoned})


def _now() -> Cost:
    return Cost(time.perf_counter(), _written)


def _report(line: dict) -> None:
    with open(os.environ["KDNB_REHEARSE"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
