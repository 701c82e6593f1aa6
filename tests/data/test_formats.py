import gzip
import pickle
import struct

import numpy as np
import pytest

from kdnb.data import formats
from kdnb.data.locate import find_folder
from kdnb.errors import InputError


def idx_bytes(array, code=0x08):
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_is_read_plain_and_packed(tmp_path, suffix):
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(IMAGES)) if suffix else idx_bytes(IMAGES))
    assert np.array_equal(formats.read_idx(path), IMAGES)


def test_idx_integers_are_big_endian(tmp_path):
    (tmp_path / "x").write_bytes(idx_bytes(np.array([1, 258], dtype=">i4"), 0x0C))
    assert formats.read_idx(tmp_path / "x").tolist() == [1, 258]


def test_every_truncation_of_an_idx_file_is_refused(tmp_path):
    whole = idx_bytes(IMAGES)
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(InputError, match="data file x"):
            formats.read_idx(tmp_path / "x")


def test_every_truncation_of_a_packed_idx_file_is_refused(tmp_path):
    whole = gzip.compress(idx_bytes(IMAGES))
    for length in range(len(whole)):
        (tmp_path / "x.gz").write_bytes(whole[:length])
        with pytest.raises(InputError, match="data file x.gz"):
            formats.read_idx(tmp_path / "x.gz")


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b" + b"garbage" * 9, b"<html>not here</html>", b"\0\0\x08\x09" + bytes(40), b"\0\0\x07\x01" + bytes(8)],
)
def test_files_that_are_not_idx_are_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match="not an idx file"):
        formats.read_idx(tmp_path / "x")


def test_a_header_that_promises_terabytes_is_refused_without_allocating_them(tmp_path):
    (tmp_path / "x").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31) + bytes(100))
    with pytest.raises(InputError, match="promises"):
        formats.read_idx(tmp_path / "x")


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_MAX_BYTES", 1000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        formats.read_idx(tmp_path / "x.gz")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="missing"):
        formats.read_idx(tmp_path / "x")


# --- CIFAR archives ------------------------------------------------------------------------------------------------------------


def cifar_bytes(protocol=2):
    data = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    return pickle.dumps({b"data": data, b"labels": [3, 8], b"batch_label": b"testing batch 1 of 1"}, protocol)


def test_a_cifar_batch_is_read_with_text_keys(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(cifar_bytes())
    batch = formats.read_cifar_batch(tmp_path / "data_batch_1")
    assert batch["labels"] == [3, 8]
    assert batch["data"].shape == (2, 3072) and batch["data"][1, 5] == (3072 + 5) % 256


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_cifar_arrays_of_every_pickle_protocol_and_memory_order_are_read(tmp_path, protocol, order):
    data = np.arange(24, dtype=np.uint8).reshape(4, 6).copy(order)
    (tmp_path / "x").write_bytes(pickle.dumps({b"data": data}, protocol))
    found = formats.read_cifar_batch(tmp_path / "x")["data"]
    assert found.dtype == np.uint8 and np.array_equal(found, data)


@pytest.mark.parametrize("value", [np.arange(3), np.array(["a"]), np.array([None]), np.dtype("u1")])
def test_cifar_arrays_of_anything_but_bytes_are_refused(tmp_path, value):
    (tmp_path / "x").write_bytes(
        pickle.dumps({b"data": np.array([value], dtype=object) if isinstance(value, np.dtype) else value}, 2)
    )
    with pytest.raises(InputError, match="holds unsigned bytes"):
        formats.read_cifar_batch(tmp_path / "x")


def test_truncated_and_garbled_cifar_batches_are_refused(tmp_path):
    whole = cifar_bytes()
    for data in (b"", b"rubbish", whole[:50], whole[: len(whole) // 2], whole[:-1], pickle.dumps([1, 2])):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(InputError, match="data file x"):
            formats.read_cifar_batch(tmp_path / "x")


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_cifar_batch_that_carries_code_is_refused_and_the_code_does_not_run(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({b"data": _Payload(tmp_path / "ran")}, 2))
    with pytest.raises(InputError, match="not allowed in a data file"):
        formats.read_cifar_batch(tmp_path / "x")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "x").read_bytes())  # the payload is a real one
    assert (tmp_path / "ran").exists()


# --- finding folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_counts_as_found_only_if_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.data.locate.data_roots", lambda: [tmp_path / "nowhere", tmp_path])
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    for path in ("first/a", "second/a", "second/b.gz"):
        (tmp_path / path).write_bytes(b"")
    assert find_folder(["first", "second"], ["a", "b"]) == tmp_path / "second"
    assert find_folder(["first"], ["a", "b"]) is None
