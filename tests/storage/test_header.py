import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from kdnb.errors import InputError
from kdnb.models import build
from kdnb.storage.checkpoints import save_state
from kdnb.storage.header import check_classes, read_header


def test_every_kind_of_head_of_the_zoo_is_found(tmp_path):
    for name in (
        "resnet8w4",
        "vgg8q",
        "wrn_16_1",
        "mobilenetv2",
        "shufflenetv1",
        "shufflenetv2",
        "mobilenetv1",
        "resnet18",
    ):
        path = tmp_path / f"{name}.safetensors"
        save_state(path, {"model": build(name, 7).state_dict(), "history": [{"top1": 0.5}]})
        check_classes(path, 7, "data")
        with pytest.raises(InputError, match="for 7 classes, data has 10"):
            check_classes(path, 10, "data")


def test_a_plain_safetensors_file_is_read_too(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"fc.weight": torch.zeros(5, 3), "fc.bias": torch.zeros(5)}, path)
    check_classes(path, 5, "data")


def test_the_order_of_the_state_decides_and_not_that_of_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_state(path, {"body": [torch.zeros(3, 9)], "z": (torch.zeros(2), {"head": torch.zeros(6, 3)})})
    check_classes(path, 6, "data")


def test_files_of_torch_save_are_left_to_the_importer(tmp_path):
    for zipped in (True, False):
        torch.save({"fc.weight": torch.zeros(5, 3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        check_classes(tmp_path / "x.pth", 7, "data")
    with pytest.raises(InputError, match="none.pth can't be read"):
        check_classes(tmp_path / "none.pth", 7, "data")


def test_a_file_without_a_matrix_is_no_classifier(tmp_path):
    path = tmp_path / "x.safetensors"
    save_state(path, {"step": 3, "vector": torch.zeros(3)})
    with pytest.raises(InputError, match="holds no classifier"):
        check_classes(path, 5, "data")


def framed(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        framed(b"{"),
        framed(b"[]"),
        framed(b'"x"'),
        framed(b'{"a": 3}'),
        framed(b'{"a": {"data_offsets": []}}'),
        framed(b'{"a": {"data_offsets": [0, "x"]}}'),
        struct.pack("<Q", 2**63) + b"{}",
        framed(b"\xff\xff"),
        struct.pack("<Q", 50) + b"{}",
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.safetensors is (damaged|truncated)"):
        read_header(path)


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[" * 100_000,
        '{"$": "tensor", "name": "none"}',
        '{"$": "dict", "items": [[1]]}',
        '{"$": "dict", "items": 3}',
    ],
)
def test_a_damaged_structure_is_refused(tmp_path, state):
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(json.dumps({"__metadata__": {"state": state}}).encode()))
    with pytest.raises(InputError, match="x.safetensors"):
        check_classes(path, 10, "data")


def test_a_shape_that_is_no_list_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(b'{"a": {"shape": {"x": 1, "y": 2}, "data_offsets": [0, 0]}}'))
    with pytest.raises(InputError, match="holds no classifier"):
        check_classes(path, 10, "data")


def test_a_header_that_promises_more_or_less_than_there_is_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(header, bytes(4)))
    assert read_header(path)["a"]["shape"] == [4]
    for size in (3, 5):
        path.write_bytes(framed(header, bytes(size)))
        with pytest.raises(InputError, match="truncated or damaged"):
            read_header(path)
