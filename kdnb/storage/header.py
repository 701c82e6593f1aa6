"""What a state file says about itself, read from its header alone: no torch, no tensors, a few kilobytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdnb.errors import InputError

_MALFORMED = (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError)
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file whose length agrees with it.

    Raises:
        InputError: no file, no safetensors header, or fewer or more bytes than the header promises.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise InputError(f"checkpoint {path.name} is damaged or not a safetensors file")
            header = json.loads(file.read(length))
        promised = (
            8
            + length
            + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        )
    except OSError as error:
        raise InputError(f"checkpoint {path.name} can't be read: {error.strerror}") from error
    except _MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint {path.name} is damaged or not a safetensors file") from error
    if size != promised:
        raise InputError(
            f"checkpoint {path.name} is truncated or damaged: its header promises {promised} bytes, it has {size}"
        )
    return header


def read_about(path: Path) -> dict[str, Any]:
    """What a file of ours says about its network: `network`, its architecture, and `image_size`, each if it is known; else nothing.

    A classifier of the artifact cache has it in made_from.json beside it.

    Raises:
        InputError: as `read_header`; files that torch.save wrote have no header and say nothing.
    """
    path = Path(path)
    if is_from_torch_save(path):
        return {}
    metadata = read_header(path).get("__metadata__", {})
    beside = path.with_name("made_from.json")
    try:
        if str(metadata.get("purpose", "")).startswith("classifier ") and beside.is_file():
            made = json.loads(beside.read_text(encoding="utf-8"))
            found = {"network": made["model"], "image_size": made["image_size"]}
        else:
            found = dict(json.loads(metadata.get("kdnb", "{}")))
    except _MALFORMED as error:
        raise InputError(f"checkpoint {path.name} has a damaged header: {error}") from error
    return {name: value for name, value in found.items() if value}


def check_classes(path: Path, num_classes: int, dataset: str) -> None:
    """Refuse a classifier's weights that were made for another number of classes.

    The class count is the height of the only matrix of a classifier of the zoo, its head; convolutions have four dimensions. Where
    a file holds several matrices (a foreign network) the last one counts. Files that torch.save wrote are not looked into here:
    `kdnb.training.importers` compares them before use.
    """
    if is_from_torch_save(path):
        return
    header = read_header(path)
    try:
        heads = [shape for shape in _shapes(header) if isinstance(shape, list) and len(shape) == 2]
    except _MALFORMED as error:
        raise InputError(f"checkpoint {Path(path).name} is damaged or not a kdnb state file") from error
    if not heads:
        raise InputError(f"checkpoint {Path(path).name} holds no classifier: no weight matrix in it")
    if heads[-1][0] != num_classes:
        raise InputError(
            f"checkpoint {Path(path).name} is of a network for {heads[-1][0]} classes, {dataset} has {num_classes}"
        )


def is_from_torch_save(path: Path) -> bool:
    """A zip archive or, before torch 1.6, a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02")
    except OSError as error:
        raise InputError(f"checkpoint {Path(path).name} can't be read: {error.strerror}") from error


def _shapes(header: dict[str, Any]) -> Iterator[list[int]]:
    """Shapes in the order of the state dict, which the structure of a kdnb state keeps and a plain safetensors file does not."""
    structure = header.get("__metadata__", {}).get("state")
    if structure is None:
        yield from (entry["shape"] for name, entry in header.items() if name != "__metadata__")
        return
    pending = [json.loads(structure)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict) and value.get("$") == "tensor":
            yield header[value["name"]]["shape"]
        elif isinstance(value, dict):
            items = value.get("items", [])
            pending += reversed([item[1] for item in items] if value.get("$") == "dict" else items)
        elif isinstance(value, list):
            pending += reversed(value)
