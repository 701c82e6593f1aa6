"""What lets a long routine be stopped anywhere: its progress is saved now and then, and taken up again where it was."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.processes import team
from kdnb.randomness import random_state, set_random_state
from kdnb.rehearsal import seldom
from kdnb.storage.checkpoints import Checkpointer

SAVE_EVERY = 20.0  # seconds between checkpoints; what a kill can cost. Results do not depend on it.


class Resumable:
    """The progress of one long routine, in a folder.

        work = Resumable(folder, {"student": student, "optimizer": optimizer}, {"history": []})
        for step in range(work.done, steps):
            ...
            work["history"].append(row)
            work.save(step + 1, last=step + 1 == steps)

    Made after the parts and the seed were set up: where a checkpoint is found, parts, values and the global random state become what
    they were when it was written.

    Args:
        folder: for the checkpoints; None: the work can't be resumed.
        parts: objects with `state_dict` and `load_state_dict`, by name; restored in place.
        values: everything else that goes on from step to step, by name; read and written as `work[name]`.
        device: where tensors among the values belong; None: they stay on the CPU.
        made_from: what the checkpoints must have been made from.
        check: called before a checkpoint is written; raises if the state is not worth keeping.
    Attributes:
        done: steps done, 0 where nothing was found.
        seconds: spent so far, before a kill included.
    Raises:
        InputError: the folder holds checkpoints of other work, or only damaged ones.
    """

    def __init__(
        self,
        folder: Path | None,
        parts: Mapping[str, Any],
        values: Mapping[str, Any] | None = None,
        *,
        device: torch.device | None = None,
        made_from: Mapping | None = None,
        check: Callable[[], None] | None = None,
    ):
        self._saver, self._parts, self._values = Checkpointer(folder), dict(parts), dict(values or {})
        self._made_from, self._check = dict(made_from or {}), check
        self.done, self._spent = 0, 0.0
        if restored := self._saver.load():
            self._restore(*restored, device)
        team().wait()  # before the leader replaces what the others are reading
        self._kept = self.done
        self._started = self._saved = time.monotonic()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value

    @property
    def seconds(self) -> float:
        return self._spent + time.monotonic() - self._started

    def save(self, done: int, last: bool = False) -> None:
        """Write a checkpoint after step `done`: if the last one is `SAVE_EVERY` seconds old, or if the routine ends here."""
        if self._saver.folder is None or done == self._kept or not team().leads:
            return
        if not last and time.monotonic() - self._saved <= SAVE_EVERY:
            return
        if self._check:
            self._check()
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        state = {"parts": parts, "values": self._values, "made_from": self._made_from, "random": random_state()}
        with seldom(1.0 if last else 0.0):  # those between come by the clock, and each replaces the one before
            self._saver.save(done, state | {"seconds": self.seconds})
        self._kept, self._saved = done, time.monotonic()

    def _restore(self, done: int, state: dict, device: torch.device | None) -> None:
        made_from = state.get("made_from", state.get("recipe"))  # its name in checkpoints of 0.1
        if made_from != self._made_from:
            raise InputError(
                f"the folder holds checkpoints of other work: {made_from}, asked for {self._made_from}; "
                "empty it or use another"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._values = _moved(state["values"], device)
        set_random_state(state["random"])
        self.done, self._spent = done, state["seconds"]


def _moved(value: Any, device: torch.device | None) -> Any:
    """The tensors of a value, or of a mapping of values, on a device."""
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def stop_if_not_finite(description: str, terms: Mapping[str, Tensor], where: str = "") -> None:
    """Stop a routine whose loss became infinite or NaN; nothing is skipped.

    Args:
        terms: by name; scalars, or (N,) by step.
        where: in words; empty: the step of the first entry that is not finite.
    Raises:
        FloatingPointError: with the names of the terms and the place.
    """
    bad = {name: (~value.isfinite()).reshape(-1).nonzero() for name, value in terms.items()}
    names = [name for name, places in bad.items() if len(places)]
    if names:
        where = where or f"at step {min(int(bad[name][0]) for name in names)}"
        raise FloatingPointError(
            f"{description}: {', '.join(names)} became infinite or NaN {where}; the last checkpoint is from before. "
            "Lower the learning rate, or clip gradients where there is clip_norm."
        )
