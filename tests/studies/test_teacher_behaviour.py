"""kdnb.studies.teacher_behaviour: measures of a teacher on sources of images, against values known beforehand."""

import math

import pytest
import torch
from torch import nn

from kdnb.data.splits import Split
from kdnb.models import build
from kdnb.studies.teacher_behaviour import (
    batch_norm_distance,
    behaviour_sources,
    describe,
    feature_map,
    sort_by_confidence,
    titles,
    verdicts,
)
from tests.material import make_split


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8w4", num_classes=3, in_channels=1).eval()


def images(count: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


class Brightness(nn.Module):
    """Two classes: the brighter the image, the surer of the second."""

    def forward(self, x):
        z = x.mean(dim=(1, 2, 3))
        return torch.stack([-z, z], dim=1)


def test_batch_norm_distance_vanishes_for_the_images_that_made_the_statistics():
    net, x = teacher(), images(200)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        net.train()(x)
    net.eval()
    own, other = sum(batch_norm_distance(net, x)), sum(batch_norm_distance(net, 0.2 * x + 0.5))
    assert own < 0.2 * other


def test_a_teacher_that_cannot_decide_has_the_largest_entropy():
    net = teacher()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    row = describe(net, images())
    assert (
        row["entropy"] == pytest.approx(math.log(3))
        and row["confidence"] == pytest.approx(1 / 3)
        and row["margin"] == pytest.approx(0, abs=1e-6)
    )
    assert row["sure"] == 0 and row["imbalance"] == pytest.approx(math.log(3))


def test_labels_add_the_measures_that_need_them():
    without, with_labels = describe(teacher(), images()), describe(teacher(), images(), torch.arange(30) % 3)
    assert set(with_labels) - set(without) == {"accuracy", "nll", "brier", "ece", "mce"}


def test_the_reference_is_centred_in_its_own_plane():
    points = feature_map(teacher(), {"real": images(), "other": images(5, 1)}, "real")
    assert points["real"].shape == (30, 2) and points["other"].shape == (5, 2)
    assert torch.allclose(points["real"].mean(dim=0), torch.zeros(2), atol=1e-5)
    assert points["real"][:, 0].var() >= points["real"][:, 1].var()


def test_predictions_are_sorted_with_the_surest_first():
    levels = torch.tensor([0.1, -0.9, 0.8, -0.3])
    split = Split(levels[:, None, None, None].expand(4, 1, 8, 8).contiguous(), torch.tensor([1, 0, 0, 1]))
    found = sort_by_confidence(Brightness(), split)
    assert found["right"][0][:, 0, 0, 0].tolist() == pytest.approx([-0.9, 0.1])
    assert found["wrong"][0][:, 0, 0, 0].tolist() == pytest.approx([0.8, -0.3]) and found["wrong"][1].tolist() == [1, 0]
    assert titles(["a", "b"], *found["wrong"][1:3])[0] == "b 0.83"
    assert {kind: verdicts(said, true) for kind, (_, said, _, true) in found.items()} == {
        "right": ["agree"] * 2,
        "wrong": ["disagree"] * 2,
    }


def test_pictures_on_disk_are_read_up_to_the_number_of_samples(tmp_path):
    from types import SimpleNamespace

    split = make_split(tmp_path)
    data = SimpleNamespace(private=split, test=split, channels=3, image_size=16)
    found = behaviour_sources(data, None, count=4)
    assert list(found) == ["private", "test", "gaussian", "uniform"]
    assert all(images.shape == (4, 3, 16, 16) and images.abs().max() <= 1 for images, _ in found.values())
    made = Split(torch.zeros(9, 3, 16, 16), torch.arange(9))
    found = behaviour_sources(data, made, count=4)
    assert found["synthetic"][1].tolist() == [5, 6, 7, 8] and len(found) == 5
    found = behaviour_sources(data, made, count=4, others={"cmi": made, "dafl": Split(made.images)})
    assert list(found)[2:5] == ["synthetic", "cmi", "dafl"]
    assert found["cmi"][1].tolist() == [5, 6, 7, 8] and found["dafl"][1] is None
