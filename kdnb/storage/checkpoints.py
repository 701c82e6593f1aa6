"""Files that are whole or refused: safetensors written to a temporary name, synced, renamed, and hashed over every byte.

A state is a nested structure of dicts, lists, tuples, tensors, numbers, strings, booleans and None. Tensors become safetensors
entries; the rest becomes JSON in the file's metadata. Nothing is ever pickled.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from kdnb.errors import InputError
from kdnb.storage.files import atomic_write, sweep

_BLANK = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


# --- packing -------------------------------------------------------------------------------------------------------------------


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$": "tensor", "name": name}
    if isinstance(value, Mapping):
        return {"$": "dict", "items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"$": "tuple", "items": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a state holds tensors, numbers, strings, booleans, None and nests of them, not {type(value).__name__}"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value["$"] == "tensor":
        return tensors[
            value["name"]
        ].clone()  # the file's own memory is not aligned, and kernels then round differently
    if value["$"] == "dict":
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return tuple(_unpack(item, tensors) for item in value["items"])


def dump_state(state: Any, purpose: str = "") -> bytes:
    """The bytes of a state file: safetensors whose metadata holds structure, purpose and the sha256 of the file with that field blanked."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors))
    data = dump_tensors(tensors, {"format": "kdnb-state-1", "sha256": _BLANK, "state": structure, "purpose": purpose})
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(f'"sha256":"{_BLANK}"'.encode(), f'"sha256":"{digest}"'.encode(), 1)


def parse_state(data: bytes, name: str = "state", purpose: str | None = None) -> Any:
    """The state in `data`; `InputError` if a single byte differs from what was written, or if it was written for another purpose."""
    if len(data) < 8:
        raise InputError(
            f"{name} is damaged: {len(data)} bytes are too few for a state file; delete it or restore a copy"
        )
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _MAX_HEADER):
        raise InputError(
            f"{name} is damaged: its header claims {length} bytes and the file has {len(data)}; delete it or restore a copy"
        )
    found = _DIGEST.search(data, 8, 8 + length)
    if not found:
        raise InputError(f"{name} is not a kdnb state file: it carries no content hash")
    blanked = data[: found.start(1)] + _BLANK.encode() + data[found.end(1) :]
    if hashlib.sha256(blanked).hexdigest().encode() != found.group(1):
        raise InputError(f"{name} is damaged: its content does not match its hash; delete it or restore a copy")
    try:
        tensors = load_tensors(data)
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if purpose not in (None, metadata.get("purpose", purpose)):  # older files carry none
            raise InputError(f"{name} is a whole state file, but not {purpose}; restore a copy of that, or delete it")
        return _unpack(json.loads(metadata["state"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not a kdnb state file: {error}") from error


def save_state(path: Path, state: Any, purpose: str = "") -> None:
    """Save a nested state to one file, atomically. `purpose` says what the file is, for `load_state` to compare."""
    atomic_write(path, dump_state(state, purpose))


def load_state(path: Path, purpose: str | None = None) -> Any:
    """Load what `save_state` wrote (tensors on the CPU).

    Args:
        purpose: what the file must have been saved as; None: anything.
    Raises:
        InputError: the file is missing, damaged in any byte, of another format, or a state with another purpose.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{Path(path).name} can't be read: {error.strerror}") from error
    return parse_state(data, Path(path).name, purpose)


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict: the identity of a teacher, first 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# --- progress of one long routine ----------------------------------------------------------------------------------------------


class Checkpointer:
    """The newest states of one routine in one folder; the last good one always loads.

    Args:
        folder: where `step-*.safetensors` are kept; made when first saved. None: nothing is kept.
        keep: how many generations stay; with 2, a file damaged on disk costs one interval, not the run.
    """

    def __init__(self, folder: Path | None, keep: int = 2):
        self.folder = Path(folder) if folder is not None else None
        self.keep = keep

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors")) if self.folder and self.folder.is_dir() else []

    def save(self, step: int, state: Any) -> None:
        if self.folder is None:
            return
        save_state(self.folder / f"step-{step:012d}.safetensors", {"step": step, "state": state}, f"step-{step:012d}")
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)
        sweep(self.folder)

    def load(self) -> tuple[int, Any] | None:
        """(step, state) of the newest file that is whole; None if nothing was saved.

        Raises:
            InputError: files are there, and every one is damaged.
        """
        files, problems = self._files(), []
        for path in reversed(files):
            try:
                record = load_state(path, path.stem)
                return record["step"], record["state"]
            except InputError as error:
                problems.append(str(error))
                warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
        if problems:
            raise InputError(f"no usable checkpoint: {'; '.join(problems)}")
        return None

    def clear(self) -> None:
        for path in self._files():
            path.unlink(missing_ok=True)
        if self.folder is not None:
            sweep(self.folder)


# --- artifacts shared by notebooks ---------------------------------------------------------------------------------------------
