"""Residual, shuffle and inverted-residual units against their equations; pooling rules that depend on the image size."""

import pytest
import torch
from torch.nn import functional as F

from kdnb.models import build
from kdnb.models.base import feature_shapes
from kdnb.models.resnet import BasicBlock
from kdnb.models.resnet_imagenet import Bottleneck
from kdnb.models.shufflenetv1 import ShuffleUnit
from kdnb.models.shufflenetv2 import DownUnit, SplitUnit

torch.set_num_threads(1)


def drawn(block):
    """Evaluation mode, statistics away from their start so that each batch norm matters."""
    torch.manual_seed(0)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return block.double().eval()


def input_of(channels, size=6):
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_basic_block_is_two_convolutions_and_a_projected_shortcut():
    block, x = drawn(BasicBlock(3, 5, 2)), input_of(3)
    inner = block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)).relu()
    residual = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
    shortcut = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block.preactivate(x), residual + shortcut)
    torch.testing.assert_close(block(x), (residual + shortcut).relu())


def test_bottleneck_carries_its_stride_in_the_middle():
    block = Bottleneck(8, 16, 2, "shortcut", inner=4, groups=2)
    assert [module.stride for module in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert block.conv2.weight.shape == (4, 2, 3, 3)
    assert drawn(block)(input_of(8)).shape == (2, 16, 3, 3)


def shuffled(x, groups):
    """Channel g * n + i goes to i * groups + g, one at a time."""
    count = x.shape[1] // groups
    out = torch.empty_like(x)
    for group in range(groups):
        for index in range(count):
            out[:, index * groups + group] = x[:, group * count + index]
    return out


def test_shuffle_unit_shuffles_between_its_grouped_convolutions():
    block, x = drawn(ShuffleUnit(12, 12, 1, 3, 3)), input_of(12)
    out = shuffled(block.bn1(F.conv2d(x, block.conv1.weight, groups=3)).relu(), 3)
    out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1, groups=3)).relu()
    out = block.bn3(F.conv2d(out, block.conv3.weight, groups=3))
    torch.testing.assert_close(block(x), (out + x).relu())


def test_shuffle_unit_of_stride_two_joins_the_average_pool():
    block, x = drawn(ShuffleUnit(4, 12, 2, 1, 3)), input_of(4)
    out = block(x)
    assert out.shape == (2, 16, 3, 3)
    torch.testing.assert_close(out[:, 12:], F.avg_pool2d(x, 3, stride=2, padding=1).relu())


def test_split_unit_passes_one_half_and_shuffles_both():
    block, x = drawn(SplitUnit(8)), input_of(8).relu()
    out = block.bn1(F.conv2d(x[:, 4:], block.conv1.weight)).relu()
    out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1, groups=4))
    out = block.bn3(F.conv2d(out, block.conv3.weight)).relu()
    torch.testing.assert_close(block(x), shuffled(torch.cat([x[:, :4], out], 1), 2))


def test_down_unit_halves_the_resolution_and_activates_both_branches():
    block, x = drawn(DownUnit(4, 10)), input_of(4)
    left = block.bn2(
        F.conv2d(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1, groups=4)), block.conv2.weight)
    )
    right = block.bn3(F.conv2d(x, block.conv3.weight)).relu()
    right = block.bn5(
        F.conv2d(block.bn4(F.conv2d(right, block.conv4.weight, stride=2, padding=1, groups=5)), block.conv5.weight)
    )
    torch.testing.assert_close(block(x), shuffled(torch.cat([left, right], 1).relu(), 2))


def test_inverted_residual_is_linear_at_its_end_and_skips_where_it_can():
    block = drawn(build("mobilenetv2", 10).blocks[2][1])
    x = input_of(16)
    torch.testing.assert_close(block(x), x + block.conv(x))
    assert block(x).min() < 0
    assert not build("mobilenetv2", 10).blocks[2][0].residual


def test_the_full_mobilenet_uses_relu6():
    model = build("mobilenetv2_cmi", 10).eval()
    with torch.no_grad():
        stem = model(100 * torch.randn(2, 3, 32, 32), return_features=True).feats[0]
    assert stem.max() == 6.0


@pytest.mark.parametrize(("size", "final"), [(8, 1), (16, 2), (28, 3), (32, 4), (48, 6), (64, 4)])
def test_vgg_pools_before_its_last_block_at_64_pixels_only(size, final):
    with torch.device("meta"):
        assert feature_shapes(build("vgg8q", 10, 1), (1, size, size)).final_map == (128, final, final)


def test_the_imagenet_stem_reduces_four_times_before_the_first_stage():
    with torch.device("meta"):
        feats = feature_shapes(build("resnet18_imagenet", 10), (3, 64, 64)).feats
    assert feats[:2] == [(64, 32, 32), (64, 16, 16)]
