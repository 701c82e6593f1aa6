import gzip
import struct

import numpy as np
import pytest

from kdnb.data import DATASETS
from kdnb.data.check import check_files
from kdnb.data.locate import FILES
from kdnb.errors import InputError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.data.locate.data_roots", lambda: [tmp_path])
    return tmp_path


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(root, packed: bool):
    folder = root / "fashion-mnist"
    folder.mkdir()
    for name in FILES["fashion_mnist"][1]:
        array = np.arange(9 * 4 if "images" in name else 9, dtype=np.uint8).reshape(
            (9, 2, 2) if "images" in name else 9
        )
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in FILES["cifar100"][1]:
        (folder / name).write_bytes(b"\x80\x02" + bytes(100) + b".")
    return folder


def test_the_embedded_data_set_needs_no_file(root):
    check_files("digits")


@pytest.mark.parametrize("packed", [False, True])
def test_whole_files_pass(root, packed):
    write_fashion(root, packed)
    write_cifar100(root)
    check_files("fashion_mnist")
    check_files("cifar100")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 2, 11, -1, -5])
def test_a_file_cut_short_anywhere_is_refused(root, packed, keep):
    path = next(iter(sorted(write_fashion(root, packed).iterdir())))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=path.name):
        check_files("fashion_mnist")


def test_a_file_of_another_kind_is_refused(root):
    path = write_fashion(root, False) / "train-labels-idx1-ubyte"
    path.write_bytes(b"<html>not found, but a page all the same</html>")
    with pytest.raises(InputError, match="not an idx file"):
        check_files("fashion_mnist")


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02" + bytes(10), b"<html>."])
def test_a_damaged_pickle_is_refused(root, content):
    (write_cifar100(root) / "test").write_bytes(content)
    with pytest.raises(InputError, match="data file test"):
        check_files("cifar100")


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if not spec.embedded])
def test_every_data_set_on_disk_is_missed_in_one_sentence(root, name):
    with pytest.raises(InputError, match=f"no complete copy of {name} found") as caught:
        check_files(name)
    assert "\n" not in str(caught.value)
