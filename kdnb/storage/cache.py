"""The artifact cache: teachers, priors, generators and students, made once and then read."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdnb.errors import InputError
from kdnb.progress import from_cache
from kdnb.storage.checkpoints import Checkpointer, load_state, save_state
from kdnb.storage.files import sweep, write_json
from kdnb.storage.naming import identity_key
from kdnb.storage.paths import cache_root


def artifact(kind: str, made_from: Mapping, make: Callable[[Path], Any], root: Path | None = None) -> Any:
    """The state made from the same values before, or `make(progress_folder)` now.

    The folder is `ROOT/kind/KEY/` with `made_from.json` and `state.safetensors`; KEY is the hash of `made_from`. A lock makes a second
    process wait for the first instead of training the same thing; a killed maker leaves its progress behind and the next one goes on
    from there.
    """
    folder = (root or cache_root()) / kind / identity_key(made_from)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        sweep(folder)
        path, purpose = folder / "state.safetensors", f"{kind} {folder.name}"
        if path.exists():
            try:
                state = load_state(path, purpose)
                from_cache(kind)
                return state
            except InputError as error:
                warnings.warn(f"{kind} artifact: {error}; it is made anew", stacklevel=2)
        write_json(folder / "made_from.json", {"kind": kind, **made_from})
        state = make(folder / "progress")
        save_state(path, state, purpose)
        Checkpointer(folder / "progress").clear()
        return load_state(path, purpose)  # what every later caller sees
