"""Networks that are not ours behave like the zoo's once wrapped."""

import copy

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.models.base import Normalize, feature_shapes
from kdnb.models.foreign import FeatureTap

torch.set_num_threads(1)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.late = nn.Conv2d(4, 6, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 5)
        self.unused = nn.Conv2d(1, 1, 1)
        self.pair = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        x = self.pool(self.late(self.act(self.bn(self.early(x))))).flatten(1)
        return self.out(self.pair(self.hidden(x).unsqueeze(1))[0].squeeze(1))


def wrapped(*layers, **names):
    torch.manual_seed(0)
    return FeatureTap(Small().eval(), layers or ("act", "late"), **names).eval()


IMAGES = torch.randn(2, 3, 11, 11, generator=torch.Generator().manual_seed(1))


def test_a_wrapped_network_gives_the_same_logits_with_and_without_features():
    tap = wrapped()
    features = tap(IMAGES, return_features=True)
    assert torch.equal(tap(IMAGES), tap.model(IMAGES))
    assert torch.equal(features.logits, tap.model(IMAGES))
    assert [tuple(feat.shape) for feat in features.feats] == [(2, 4, 5, 5), (2, 6, 3, 3)]
    assert features.final_map is features.feats[-1]


def test_the_head_is_the_last_linear_layer_and_pooled_is_what_enters_it():
    tap = wrapped()
    features = tap(IMAGES, return_features=True)
    assert tap.head is tap.model.out
    assert torch.equal(tap.head(features.pooled), features.logits)


def test_pooled_head_and_final_map_can_be_named():
    tap = wrapped("late", pooled="pool", head="hidden", final="act")
    features = tap(IMAGES, return_features=True)
    assert tap.head is tap.model.hidden
    torch.testing.assert_close(features.pooled, features.feats[0].mean((2, 3)))
    assert features.final_map.shape == (2, 4, 5, 5)


def test_hooks_are_gone_after_a_pass_even_if_it_failed():
    tap = wrapped("unused")
    with pytest.raises(InputError, match="'unused' did not run"):
        tap(IMAGES, return_features=True)
    with pytest.raises(RuntimeError):
        tap(torch.zeros(2, 7, 11, 11), return_features=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tap.modules())


def test_copies_are_independent():
    tap = wrapped()
    twin = copy.deepcopy(tap)
    nn.init.zeros_(tap.model.early.weight)
    assert not torch.equal(twin(IMAGES, return_features=True).feats[0], tap(IMAGES, return_features=True).feats[0])


def test_gradient_flows_through_tapped_features():
    tap = wrapped()
    tap(IMAGES, return_features=True).feats[0].sum().backward()
    assert tap.model.early.weight.grad.abs().sum() > 0


def test_an_output_overwritten_in_place_is_refused():
    with pytest.raises(InputError, match="'bn' was overwritten in place"):
        wrapped("bn")(IMAGES, return_features=True)
    with torch.inference_mode():  # no version counters there; the pass itself still works
        assert wrapped()(IMAGES, return_features=True).logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("layers", "names", "message"),
    [
        (["laet"], {}, "unknown layer 'laet'; did you mean 'late'"),
        (["late"], {"final": "nothing"}, "unknown layer 'nothing'"),
        (["late"], {"head": "pool"}, "unknown linear head 'pool'"),
        ([], {}, "at least one layer"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(layers, names, message):
    with pytest.raises(InputError, match=message):
        FeatureTap(Small(), layers, **names)


def test_a_network_without_linear_layers_has_no_head_and_its_pooled_features_are_the_mean_of_its_map():
    tap = FeatureTap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ["0"])
    features = tap(IMAGES, return_features=True)
    assert tap.head is None
    torch.testing.assert_close(features.pooled, features.logits)


def test_a_pooled_vector_can_stand_in_for_the_final_map():
    tap = wrapped(final="pooled")
    features = tap(IMAGES, return_features=True)
    assert features.final_map.shape == (2, 6, 1, 1)
    assert torch.equal(tap.head(features.final_map.mean((2, 3))), features.logits)


def test_a_layer_that_returns_several_tensors_is_refused():
    with pytest.raises(InputError, match="'pair' returns tuple"):
        wrapped("pair")(IMAGES, return_features=True)


def test_normalisation_can_be_set():
    tap = wrapped()
    plain = tap(IMAGES)
    tap.normalize = Normalize((0.5,) * 3, (0.5,) * 3)  # the identity in exact arithmetic
    torch.testing.assert_close(tap(IMAGES), plain)


def test_a_torchvision_network_can_be_wrapped():
    models = pytest.importorskip("torchvision.models")
    tap = FeatureTap(models.resnet18(num_classes=7), ["relu", "layer1", "layer2", "layer3", "layer4"])
    shapes = feature_shapes(tap, (3, 64, 64))
    assert shapes.feats[1:] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert (shapes.logits, shapes.pooled, shapes.final_map) == ((7,), (512,), (512, 2, 2))
