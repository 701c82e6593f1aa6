"""What is found inside networks that are not ours."""

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.models.base import feature_shapes
from kdnb.models.taps import as_classifier, wrap
from tests.models import own_nets

torch.set_num_threads(1)
IMAGE = (3, 32, 32)


def wrapped(model, **taps):
    torch.manual_seed(0)
    return wrap(model, IMAGE, **taps)


def test_the_last_output_of_each_resolution_is_tapped_and_the_averaged_map_is_final():
    tap = wrapped(own_nets.plain(5, 3))
    assert (tap.layers, tap.final, tap.head) == (["1", "3"], "3", tap.model[6])
    features = tap(torch.randn(2, *IMAGE), return_features=True)
    torch.testing.assert_close(tap.head(features.final_map.mean((2, 3))), features.logits)


def test_a_backbone_is_looked_into_and_a_block_is_not():
    tap = wrapped(own_nets.Deep(5))
    assert tap.layers == ["backbone.stem", "backbone.first", "backbone"]


def test_where_a_hidden_layer_follows_pooling_the_pooled_vector_stands_in_for_the_final_map():
    tap = wrapped(own_nets.Deep(5))
    assert tap.final == "pooled" and tap.head is tap.model.out
    assert "backbone with 32 channels, reaches the head (24 inputs)" in tap.note
    features = tap(torch.randn(2, *IMAGE), return_features=True)
    torch.testing.assert_close(tap.head(features.final_map.mean((2, 3))), features.logits)


def test_tokens_are_no_maps():
    tap = wrapped(own_nets.tokens(5, 3, 32))
    assert tap.layers == [] and tap.note == "it has no map before its head"
    assert feature_shapes(tap, IMAGE).final_map == (12, 1, 1)


def test_layers_can_be_named():
    assert wrapped(own_nets.Deep(5), layers=["backbone.first"]).layers == ["backbone.first"]
    with pytest.raises(InputError, match="did you mean 'backbone.first'"):
        wrapped(own_nets.Deep(5), layers=["backbone.frist"])


def test_a_final_map_that_is_not_averaged_into_the_head_is_refused_with_the_one_that_is():
    with pytest.raises(InputError, match="take final:3"):
        wrapped(own_nets.plain(5, 3), final="1")
    with pytest.raises(InputError, match="take final:pooled, because its last map"):
        wrapped(own_nets.Deep(5), final="backbone.second")


def test_looking_leaves_mode_statistics_and_random_state_alone():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model[1].eval()
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    wrap(model, IMAGE)
    assert model.training and not model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_classifier_with_features_is_left_as_it_is():
    tap = wrapped(own_nets.plain(5, 3))
    assert as_classifier(tap, IMAGE) is tap


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(7, 4, 3)), "Sequential does not run on images of 3x32x32"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), r"must give logits \(B, K\), it gives \(2, 4, 30, 30\)"),
        (nn.Flatten(), "no parameters"),
    ],
)
def test_what_is_no_classifier_of_such_images_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        wrap(model, IMAGE)


def test_images_can_be_standardised_before_they_reach_the_model():
    tap = wrapped(own_nets.plain(5, 3), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    x = torch.rand(2, *IMAGE)
    standard = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(tap(2 * x - 1), tap.model(standard), rtol=1e-4, atol=1e-5)


def test_values_before_the_last_relu_are_refused_with_the_reason():
    with pytest.raises(InputError, match="networks of the zoo only"):
        wrapped(own_nets.plain(5, 3)).preactivations(torch.zeros(1, *IMAGE))
