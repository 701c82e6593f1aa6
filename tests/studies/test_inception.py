"""The Frechet distance in Inception's features: refused at once where it can't be had, bytes in, plain weights only."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from kdnb.errors import InputError
from kdnb.runner.plan import parse_overrides, plan
from kdnb.storage import paths
from kdnb.studies.inception import InceptionDistance

FILE = "weights-inception-2015-12-05-6726825d.pth"


class Extractor(torch.nn.Module):
    """What is needed of torch-fidelity's network: its weights from a file, (B, 3, H, W) bytes in, a tuple of (B, D) features out."""

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        assert features == ["2048"]
        self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return (pixels.float().mean((2, 3)) * self.scale,)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """torch-fidelity by name, and a folder that may hold its weights."""
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.__spec__, module.FeatureExtractorInceptionV3 = ModuleSpec("torch_fidelity", None), Extractor
    for one in (package, module):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    monkeypatch.setenv("KDNB_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_the_distance_is_that_of_the_features_of_bytes(installed):
    torch.save({"scale": torch.tensor([1.0, 2.0, 0.5])}, installed / FILE)
    real = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)  # bytes 0 to 255
    distance = InceptionDistance(real)
    bytes_ = torch.linspace(0, 255, 4 * 64).round().reshape(4, 64).mean(1)
    assert torch.allclose(distance.features(real), bytes_[:, None] * torch.tensor([1.0, 2.0, 0.5]))
    assert distance(real) == pytest.approx(0, abs=1e-6)
    assert distance(real + 2 / 255) == pytest.approx(
        1 + 4 + 0.25, rel=0.05
    )  # every byte one higher: only the means move


def test_weights_are_found_in_the_cache_of_torch_too(installed):
    folder = installed / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"scale": torch.ones(3)}, folder / FILE)
    assert paths.inception_weights() == folder / FILE


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_in_the_place_of_the_weights_is_refused_and_never_runs(installed):
    torch.save({"scale": torch.ones(3), "more": Payload(installed / "ran")}, installed / FILE)
    with pytest.raises(InputError, match="could run code"):
        InceptionDistance(torch.zeros(2, 1, 8, 8))
    assert not (installed / "ran").exists()


@pytest.mark.parametrize("notebook", ["02_synthesis", "03_fast_ad"])
def test_what_is_missing_is_said_before_a_kernel_starts(installed, notebook, monkeypatch):
    wanted = parse_overrides(["inception_fid=true"])
    with pytest.raises(InputError, match=f"needs torch-fidelity's file {FILE}, which is not under KDNB_DATA"):
        plan(notebook, "quick", wanted)
    torch.save({"scale": torch.ones(3)}, installed / FILE)
    assert plan(notebook, "quick", wanted).parameters["inception_fid"]
    monkeypatch.setattr(paths, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the extra `fid`"):
        plan(notebook, "quick", wanted)
