"""Normalisation, initialisation and the helper that tells shapes."""

import math

import pytest
import torch
from torch import nn

from kdnb.models import build
from kdnb.models.base import Normalize, feature_shapes

torch.set_num_threads(1)


def test_normalize_maps_to_the_unit_interval_and_standardises_by_hand():
    normalize = Normalize((0.5, 0.25), (0.5, 0.25))
    x = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)  # 0 and 1 on the unit interval
    assert normalize(x).flatten().tolist() == [(0 - 0.5) / 0.5, (1 - 0.25) / 0.25]


def test_normalize_leaves_no_trace_in_the_state_dict_and_follows_the_dtype():
    normalize = Normalize((0.5,), (0.5,)).double()
    assert normalize.state_dict() == {}
    assert normalize(torch.zeros(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_models_without_mean_and_std_take_images_as_they_are():
    assert isinstance(build("resnet8w4", 10).normalize, nn.Identity)


@pytest.mark.parametrize(
    ("name", "linear_std"),
    [("resnet8x4", None), ("wrn_16_2", None), ("vgg8", 0.01), ("mobilenetv2", 0.01), ("resnet18", None)],
)
def test_convolutions_and_heads_start_as_the_sources_say(name, linear_std):
    torch.manual_seed(0)
    model = build(name, 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            wanted = math.sqrt(2.0 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.03)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all() and not module.bias.any()
    # PyTorch's default is uniform with variance 1 / (3 D)
    wanted = math.sqrt(1.0 / (3.0 * model.head.in_features)) if linear_std is None else linear_std
    assert model.head.weight.std().item() == pytest.approx(wanted, rel=0.03)
    assert bool(model.head.bias.any()) == (linear_std is None and not name.startswith("wrn"))


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2", "mobilenetv1"])
def test_networks_without_an_own_rule_keep_the_uniform_default(name):
    torch.manual_seed(0)
    weight = build(name, 100).state_dict()
    key = {"shufflenetv1": "layer3.3.conv1.weight", "shufflenetv2": "conv2.weight", "mobilenetv1": "model.12.3.weight"}[
        name
    ]
    bound = 1 / math.sqrt(math.prod(weight[key].shape[1:]))
    assert 0.99 * bound < weight[key].abs().max() <= bound


def test_feature_shapes_leave_the_model_untouched():
    model = build("wrn_10_1", 10).train()
    model.block1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shapes = feature_shapes(model, (3, 16, 16))
    assert shapes.feats == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert (shapes.logits, shapes.pooled, shapes.final_map) == ((10,), (64,), (64, 4, 4))
    assert model.training and not model.block1.training and not model.block1.layer.training and model.block2.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
