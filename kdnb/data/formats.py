"""Readers of the files on disk. Every size is checked before anything is allocated or decoded; nothing is unpickled freely."""

import gzip
import io
import math
import pickle
import struct
from pathlib import Path

import numpy as np

from kdnb.errors import InputError

_IDX_TYPES = {0x08: np.uint8, 0x09: np.int8, 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_BYTES = 2**31  # no data set read whole is larger; a header that asks for more is damaged


def _read_bounded(path: Path, limit: int) -> bytes:
    """Whole content of a plain or gzip file, at most `limit` bytes after unpacking."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise InputError(f"data file {path.name} can't be read (missing or truncated?): {error}") from error
    except Exception as error:  # zlib.error has no public base class of its own
        raise InputError(f"data file {path.name} is damaged: {error}") from error
    if len(data) > limit:
        raise InputError(f"data file {path.name} is larger than {limit} bytes; it is not the file it should be")
    return data


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file (plain or .gz): magic 00 00 TYPE NDIM, NDIM big-endian sizes, then the values.

    Raises:
        InputError: wrong magic, or the sizes in the header do not match the bytes that follow.
    """
    data = _read_bounded(path, _MAX_BYTES)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or not 1 <= data[3] <= 4:
        raise InputError(f"data file {path.name} is not an idx file")
    dtype, dims = np.dtype(_IDX_TYPES[data[2]]), data[3]
    start = 4 + 4 * dims
    if len(data) < start:
        raise InputError(f"data file {path.name} is truncated in its header")
    shape = struct.unpack(f">{dims}I", data[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise InputError(
            f"data file {path.name} is truncated or damaged: its header promises {expected} bytes, {len(data) - start} follow"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


class _Numbers:
    """Stands for numpy.dtype in a pickle: the real one takes a forged state, and numpy crashes later."""

    def __init__(self, code, *_):
        self.is_byte = code in ("u1", b"u1")

    def __setstate__(self, state):
        pass  # byte order and the like; a byte has none


class _Array:
    """Stands for an array of bytes in a pickle."""

    def __init__(self, *_):
        self.values = None

    def __setstate__(self, state):
        _, shape, numbers, is_fortran, data = state
        if not isinstance(numbers, _Numbers) or not numbers.is_byte:
            raise pickle.UnpicklingError("an array in a data file holds unsigned bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, codec: str) -> bytes:
    """The one encoding by which newer Pythons write bytes in old pickles."""
    if codec not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"{codec} is not allowed in a data file")
    return text.encode("latin1")


class _ArraysOnly(pickle._Unpickler):
    """Reads the CIFAR archives, which are pickles, and refuses every name in them but those that rebuild plain arrays.

    It is the unpickler written in Python: that in C fills gigabytes for a file of ten bytes that numbers its objects from two billion on.
    """

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Numbers,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module, name):
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def read_cifar_batch(path: Path) -> dict:
    """One file of the CIFAR python archives: `data` (N, 3072) uint8 and the labels.

    Raises:
        InputError: missing, truncated, or holding anything but arrays, lists, numbers and text.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(_read_bounded(path, 200_000_000)), encoding="bytes").load()
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.values if isinstance(value, _Array) else value
            for key, value in batch.items()
        }
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise InputError(f"data file {path.name} is damaged or not a CIFAR archive: {error}") from error
