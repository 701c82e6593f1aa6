"""Names of foreign models: what they stand for, and what is refused before anything is built or run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdnb import models, parameters
from kdnb.errors import InputError
from kdnb.models import build, identity, known, names

OWN = Path(__file__).with_name("own_nets.py")
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm, an optional extra, is not installed"
)


def test_torchvisions_classifiers_are_read_out_of_its_source():
    torchvision = pytest.importorskip("torchvision.models")
    assert names.library_entries("torchvision") == set(torchvision.list_models(torchvision))


@needs_timm
def test_timms_classifiers_are_read_out_of_its_source():
    import timm

    assert names.library_entries("timm") == set(timm.list_models())


def test_names_are_checked_without_torch():
    code = (
        "import sys; from kdnb.models import known\n"
        f"known('resnet8x4'); known('torchvision:resnet18'); known({f'{OWN}:plain'!r})\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet1", "did you mean 'torchvision:resnet"),
        ("nothing/here.py:make", "here.py does not exist"),
        (f"{OWN}:plian", "unknown function in own_nets.py 'plian'; did you mean 'plain'"),
        (
            f"{OWN}:needs_more",
            "needs the argument 'depth'; arguments that are given to it, by name: num_classes, in_channels",
        ),
        (f"{OWN}:", "FILE.py:function"),
        (f"{OWN}:plain layer:1", "unknown setting 'layer'; did you mean 'layers'"),
        (f"{OWN}:plain head:6 head:6", "given twice"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence_before_anything_runs(name, message):
    with pytest.raises(InputError, match=message):
        parameters.check("student", name)


@needs_timm
def test_a_wrong_name_of_timm_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown model 'timm:resnet1'; did you mean 'timm:resnet"):
        known("timm:resnet1")
    with pytest.raises(InputError, match="without a tag"):
        known("timm:resnet18.a1_in1k")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(InputError, match="package timm, which is not installed; install the extra"):
        known("timm:resnet18")


def test_the_function_is_found_without_running_the_file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("raise SystemExit('ran')\ndef make(num_classes): ...\n")
    assert known(f"{path}:make") == f"{path}:make"
    path.write_text("def make(:\n")
    with pytest.raises(InputError, match="net.py is no Python"):
        known(f"{path}:make")


def test_paths_become_absolute_and_settings_stay(monkeypatch):
    monkeypatch.chdir(OWN.parent)
    assert known("own_nets.py:plain layers:1,3 final:3") == f"{OWN}:plain layers:1,3 final:3"


def test_identity_is_a_version_or_a_hash_of_the_source_wherever_it_lies(tmp_path):
    first, other = tmp_path / "a" / "net.py", tmp_path / "b" / "net.py"
    for path in (first, other):
        path.parent.mkdir()
        path.write_bytes(OWN.read_bytes())
    assert identity(f"{first}:plain") == identity(f"{other}:plain")
    other.write_bytes(OWN.read_bytes() + b"#")
    assert identity(f"{first}:plain") != identity(f"{other}:plain") != identity(f"{other}:Deep")
    assert identity("torchvision:resnet18").startswith("torchvision:resnet18 0.")
    assert identity("resnet8x4") == "resnet8x4"


def test_a_function_of_ones_own_is_built_and_wrapped():
    net = build(f"{OWN}:plain", 5, 1, (0.5,), (0.5,), image_size=16)
    assert net(torch.zeros(2, 1, 16, 16), return_features=True).logits.shape == (2, 5)
    assert build(f"{OWN}:Deep layers:backbone.first", 4, image_size=32).layers == ["backbone.first"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_count", "own_nets.py:wrong_count gives 6 classes, 5 were asked for"),
        ("no_module", "own_nets.py:no_module must return an nn.Module, it returned int"),
        ("fails", r"own_nets.py:fails failed in line \d+: RuntimeError: no weights today"),
    ],
)
def test_what_a_function_of_ones_own_does_wrong_is_said_in_one_sentence(function, message):
    with pytest.raises(InputError, match=message):
        build(f"{OWN}:{function}", 5, image_size=16)


def test_a_size_that_does_not_suit_a_network_is_refused():
    with pytest.raises(InputError, match="torchvision:vit_b_16 can't be made for 5 classes and images of 3x33x33"):
        build("torchvision:vit_b_16", 5, image_size=33)


def test_grey_images_suit_torchvision_too():
    net = build("torchvision:resnet18", 3, 1, (0.5,), (0.5,), image_size=32)
    assert net.plain.conv1.weight.shape[1] == 1 and net.plain.conv1.bias is None
    assert models.base.feature_shapes(net, (1, 32, 32)).logits == (3,)
