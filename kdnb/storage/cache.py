"""The artifact cache: teachers, priors, generators and students, made once and then read."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdnb.errors import InputError
from kdnb.processes import team
from kdnb.progress import from_cache
from kdnb.storage.checkpoints import Checkpointer, load_state, save_state
from kdnb.storage.files import sweep, write_json
from kdnb.storage.naming import identity_key
from kdnb.storage.paths import cache_root


def artifact(kind: str, made_from: Mapping, make: Callable[[Path], Any], root: Path | None = None) -> Any:
    """The state made from the same values before, or `make(progress_folder)` now.

    The folder is `ROOT/kind/KEY/` with `made_from.json` and `state.safetensors`; KEY is the hash of `made_from`. A lock makes a second
    process wait for the first instead of training the same thing; a killed maker leaves its progress behind and the next one goes on
    from there. Of processes that train together (`kdnb.processes`) all call `make`, and one writes.
    """
    folder, members = (root or cache_root()) / kind / identity_key(made_from), team()
    folder.mkdir(parents=True, exist_ok=True)
    path, purpose = folder / "state.safetensors", f"{kind} {folder.name}"
    with FileLock(folder / "lock") if members.leads else nullcontext():
        state = _stored(folder, path, purpose) if members.leads else None
        if not members.agree(state is not None):
            if members.leads:
                write_json(folder / "made_from.json", {"kind": kind, **made_from})
            state = make(folder / "progress")
            if members.leads:
                save_state(path, state, purpose)
                Checkpointer(folder / "progress").clear()
            members.wait()
            state = None
        return state if state is not None else load_state(path, purpose)  # what every later caller sees


def _stored(folder: Path, path: Path, purpose: str) -> Any:
    """What was made before, None if nothing was or if it is damaged."""
    sweep(folder)
    if not path.exists():
        return None
    kind = folder.parent.name
    try:
        state = load_state(path, purpose)
    except InputError as error:
        warnings.warn(f"{kind} artifact: {error}; it is made anew", stacklevel=3)
        return None
    from_cache(kind)
    return state
