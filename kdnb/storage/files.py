"""Whole files or none: write to a temporary name, sync, rename. Records carry the hash of their own bytes."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnb.errors import InputError
from kdnb.rehearsal import wrote

_BLANK = "0" * 64
_DIGEST = re.compile(rb'"record_sha256": "([0-9a-f]{64})"')
_MAX_RECORD = 64 * 2**20  # bytes


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either its old content or all of the new one, also after a power cut."""
    path = Path(path)
    wrote(len(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=".tmp-"
    )  # no ending: who looks for *.csv must not find half a table
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what writers killed in `atomic_write` left behind; for folders that one process at a time writes to."""
    for leftover in Path(folder).glob(".tmp-*"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """A JSON object with two more entries: its own file name, and `record_sha256`, the hash of the file with that field blanked."""
    path = Path(path)
    text = (
        json.dumps(
            {**record, "record_name": path.name, "record_sha256": _BLANK}, indent=2, sort_keys=True, ensure_ascii=False
        )
        + "\n"
    )
    data = text.encode(errors="backslashreplace")  # of text that is no unicode, JSON's own escapes
    digest = hashlib.sha256(data).hexdigest()
    atomic_write(
        path, data.replace(f'"record_sha256": "{_BLANK}"'.encode(), f'"record_sha256": "{digest}"'.encode(), 1)
    )


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote, without the name and the hash.

    Raises:
        InputError: missing, too large, written as another file, or a single byte differs from what was written.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_RECORD:
            raise InputError(f"{path.name} is larger than {_MAX_RECORD} bytes; it is no record of this project")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} can't be read: {error.strerror}") from error
    found = _DIGEST.search(data)
    if not found:
        raise InputError(f"{path.name} is damaged or no record of this project: it carries no hash of its content")
    if hashlib.sha256(
        data[: found.start(1)] + _BLANK.encode() + data[found.end(1) :]
    ).hexdigest().encode() != found.group(1):
        raise InputError(f"{path.name} is damaged or was edited: its content does not match its hash")
    try:
        record = json.loads(data)
        del record["record_sha256"]
        written_as = record.pop("record_name", path.name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path.name} is no record of this project: {error}") from error
    if written_as != path.name:
        raise InputError(f"{path.name} is a copy of {written_as}; it is not what it should be")
    return record
