"""Are the files of a data set there and whole? A look at names, headers and sizes, without torch and in milliseconds.

The complete check (every byte, every label) happens when the data are loaded; this one lets the runner refuse before it starts.
"""

import gzip
import math
import struct
from pathlib import Path

from kdnb.data import dataset_spec
from kdnb.data.locate import FILES, find_pictures, locate
from kdnb.data.own import check_own, parse_own
from kdnb.errors import InputError


def check_files(name: str) -> None:
    """Refuse a data set whose files are missing, cut short or of another kind.

    Raises:
        InputError: unknown data set, a missing file (with what to do), or one whose size contradicts its header.
    """
    if own := parse_own(name):
        check_own(own)
        return
    spec = dataset_spec(name)
    if spec.streamed:
        find_pictures(name)
    if spec.embedded or spec.streamed:
        return
    folder = locate(name)
    for file in FILES[name][1]:
        path = folder / file
        path = path if path.is_file() else path.with_name(file + ".gz")
        try:
            (_check_idx if "idx" in file else _check_cifar)(path)
        except (OSError, EOFError, struct.error) as error:
            raise InputError(f"data file {path.name} of {name} can't be read (truncated?): {error}") from error


def _check_idx(path: Path) -> None:
    """magic 00 00 08 NDIM, NDIM big-endian sizes, then as many bytes; a gzip file ends with the size of its content."""
    packed = path.suffix == ".gz"
    with (gzip.open if packed else open)(path, "rb") as file:
        head = file.read(16)
    if head[:3] != b"\0\0\x08" or len(head) < 16 or head[3] not in (1, 3):
        raise InputError(f"data file {path.name} is not an idx file of bytes")
    sizes = struct.unpack_from(f">{head[3]}I", head, 4)
    expected = 4 + 4 * len(sizes) + math.prod(sizes)
    size = _gzip_content_size(path) if packed else path.stat().st_size
    if size != expected:
        raise InputError(
            f"data file {path.name} is truncated or damaged: its header promises {expected} bytes, it holds {size}"
        )


def _gzip_content_size(path: Path) -> int:
    with open(path, "rb") as file:
        file.seek(-4, 2)
        return struct.unpack("<I", file.read(4))[0]


def _check_cifar(path: Path) -> None:
    """A pickle: its protocol mark at the start and the STOP byte at the end."""
    with open(path, "rb") as file:
        first = file.read(1)
        file.seek(-1, 2)
        last = file.read(1)
    if first != b"\x80" or last != b".":
        raise InputError(f"data file {path.name} is truncated or not a file of the CIFAR archive")
