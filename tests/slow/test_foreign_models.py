"""Pairs of networks of timm and torchvision, convolutional and transformers: two steps of logit methods, and of one on maps where it can."""

import importlib.util

import pytest
import torch

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.methods import build as build_method
from kdnb.models import build
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
SIZE, K, B = 32, 4, 4
RECIPE = Recipe(epochs=1, batch_size=B, lr=0.01, clip_norm=1.0)

# teacher, student, logit method, what SDD says to the pair: None for nothing, else whose head does not suit
PAIRS = [
    ("timm:resnet18", "resnet8x4", "dkd", None),
    ("timm:resnet10t", "torchvision:mobilenet_v2", "kd", None),
    ("timm:mobilenetv3_small_050", "resnet8x4", "kd", "teacher"),
    ("timm:efficientnet_b0", "timm:efficientnet_lite0", "dkd", None),
    ("timm:vit_tiny_patch16_224", "resnet8x4", "kd", "teacher"),
    ("timm:deit_tiny_patch16_224", "torchvision:shufflenet_v2_x0_5", "lskd", "teacher"),
    ("timm:regnetx_002", "timm:vit_tiny_patch16_224", "dkd", "student"),
    ("timm:densenet121", "timm:tinynet_e", "kd", None),
    ("timm:convnext_atto", "timm:lcnet_050", "lskd", "student"),
    ("timm:repvgg_a0", "timm:mobilenetv2_050", "dkd", None),
    ("timm:ghostnet_050", "vgg8", "kd", "teacher"),
    ("timm:mobilevit_xxs", "timm:edgenext_xx_small", "kd", "student"),
    ("timm:mixer_s32_224", "mobilenetv2", "kd", "teacher"),
    ("timm:fastvit_t8", "timm:levit_128s", "kd", "student"),
    ("torchvision:resnet18", "torchvision:resnet18", "kd", None),
    ("torchvision:resnet50", "torchvision:mobilenet_v3_small", "dkd", "student"),
    ("torchvision:densenet121", "torchvision:mnasnet0_5", "kd", "teacher"),
    ("torchvision:efficientnet_b0", "shufflenetv2", "lskd", None),
    ("torchvision:regnet_y_400mf", "torchvision:squeezenet1_1", "kd", "student"),
    ("torchvision:googlenet", "wrn_16_1", "dkd", None),
    ("torchvision:convnext_tiny", "resnet8x4", "kd", "teacher"),
    ("torchvision:swin_t", "torchvision:shufflenet_v2_x0_5", "kd", None),
    ("torchvision:vit_b_16", "torchvision:mobilenet_v3_small", "dkd", "student"),
    ("torchvision:shufflenet_v2_x0_5", "torchvision:vit_b_16", "kd", "student"),
]


def split():
    generator = torch.Generator().manual_seed(0)
    return Split(torch.rand(2 * B, 3, SIZE, SIZE, generator=generator) * 2 - 1, torch.arange(2 * B) % K)


def network(name):
    if name.startswith("timm:") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm, an optional extra, is not installed")
    torch.manual_seed(0)
    return build(name, K, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=SIZE)


@pytest.mark.parametrize(("teacher", "student", "name", "sdd_refuses"), PAIRS)
def test_a_pair_is_distilled_by_logits_and_sdd_says_before_training_where_it_cannot(
    teacher, student, name, sdd_refuses
):
    net_t, net_s = network(teacher).eval(), network(student)
    method = build_method(name).bind(net_s, net_t, (3, SIZE, SIZE), K, B)
    before = [parameter.detach().clone() for parameter in net_s.parameters()]
    found = fit(net_s, split(), split(), RECIPE, method=method, teacher=net_t)
    assert 0 <= found.last["top1"] <= 1
    assert any(not torch.equal(old, new) for old, new in zip(before, net_s.parameters(), strict=True))
    sdd = build_method("sdd_kd")
    if sdd_refuses:
        with pytest.raises(InputError, match=f"the {sdd_refuses}'s (head|final linear layer)"):
            sdd.bind(net_s, net_t, (3, SIZE, SIZE), K, B)
    else:
        fit(net_s, split(), split(), RECIPE, method=sdd.bind(net_s, net_t, (3, SIZE, SIZE), K, B), teacher=net_t)


@pytest.mark.parametrize(
    ("name", "layer", "advice"),
    [
        ("timm:efficientnet_b0", "blocks", "take final:bn2"),
        (
            "torchvision:mobilenet_v3_small",
            "features",
            "take final:pooled, because its last map, features with 576 channels",
        ),
        ("torchvision:efficientnet_b0", "features.7", "take final:features"),
    ],
)
def test_a_map_that_does_not_suit_the_head_is_refused_with_the_one_to_take(name, layer, advice):
    with pytest.raises(InputError, match=advice):
        network(f"{name} final:{layer}")
