"""What a saved student says about itself, and its ONNX file, compared with torch."""

import importlib.util
import json

import pytest
import torch
from torch import nn

import kdnb
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.storage.header import read_header
from kdnb.training import onnx_export
from kdnb.training.export import export_student, read_student
from kdnb.training.onnx_export import TOLERANCE, check_packages, write_onnx
from tests.models import own_nets

torch.set_num_threads(1)
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra `export` is not installed")
OWN = f"{own_nets.__file__}:plain"


@pytest.fixture(scope="module")
def data():
    return kdnb.load("digits", image_size=8)


def distilled(data, student, method="kd"):
    torch.manual_seed(0)
    return kdnb.distil(build("resnet8w4", **data.normalization), student, data, method, epochs=1, batch_size=64)


def test_a_students_file_says_what_it_is_without_a_path(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    student = distilled(data, OWN)
    path = student.save(tmp_path / "out")
    assert all(student.save(tmp_path / f"again{n}").read_bytes() == path.read_bytes() for n in range(5))
    found = read_student(tmp_path / "out")
    assert found.network == "own_nets.py:plain" and (found.num_classes, found.channels, found.image_size) == (10, 1, 8)
    assert found.mean == [0.5] and found.classes == list("0123456789") and not found.own_head
    text = json.dumps(read_header(path)) + (path.parent / "README.md").read_text()
    assert own_nets.__file__ not in text and "own_nets.py:plain sha256" in text


def test_what_was_not_saved_here_is_refused(data, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="out holds no student.safetensors"):
        read_student(tmp_path / "out")
    save_file({"weight": torch.zeros(1)}, tmp_path / "student.safetensors")
    with pytest.raises(InputError, match="does not say what it is"):
        export_student(tmp_path)


def test_without_the_packages_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="need onnx, onnxscript, onnxruntime; install the extra: uv sync --extra export"
    ):
        check_packages()


@needs_onnx
@pytest.mark.slow
def test_the_file_gives_the_students_own_logits_and_the_card_says_how_close(data, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    student = distilled(data, "resnet8w4")
    path = student.save(tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(path.parent / "student.onnx")
    images = data.test.images[:7]
    mean, std = data.spec.mean[0], data.spec.std[0]
    (logits,) = session.run(["logits"], {"images": (((images + 1) / 2 - mean) / std).numpy()})
    expected = student.student(images).detach()
    assert (torch.from_numpy(logits) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == list(data.spec.mean)
    (path.parent / "student.onnx").unlink()
    again = export_student(path.parent)
    card = (path.parent / "README.md").read_text()
    assert again.path.is_file() and card.count("## ONNX") == 1 and again.describe() in card


@needs_onnx
@pytest.mark.slow
def test_code_of_ones_own_is_named_again_and_a_head_of_the_methods_own_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    distilled(data, own_nets.plain(10, 1)).save(tmp_path / "module")
    with pytest.raises(InputError, match="give --network FILE.py:function"):
        export_student(tmp_path / "module")
    assert export_student(tmp_path / "module", OWN).path.is_file()
    distilled(data, "resnet8w4", "simkd").save(tmp_path / "simkd")
    with pytest.raises(InputError, match="layers of its own"):
        export_student(tmp_path / "simkd")


class Restless(nn.Module):
    """Logits that a recorded program can't repeat."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x.flatten(1)) + torch.rand(2)


@needs_onnx
@pytest.mark.slow
def test_a_file_whose_logits_differ_is_not_written(tmp_path):
    with pytest.raises(InputError, match="no file was written"):
        write_onnx(tmp_path / "student.onnx", Restless(), (1, 2, 2))
    assert not list(tmp_path.iterdir())
