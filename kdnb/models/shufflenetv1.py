"""ShuffleNet. Zhang, Zhou, Lin, Sun, CVPR 2018: grouped 1x1 convolutions with a channel shuffle between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.models.base import Block, StagedClassifier, conv


class ShuffleUnit(Block):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or at stride 2 joined with its 3x3 average pool."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int, groups: int):
        super().__init__()
        inner = out_channels // 4
        self.conv1 = conv(in_channels, inner, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, out_channels, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.stride, self.first_groups = stride, first_groups

    def preactivate(self, x: Tensor) -> Tensor:
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)))  # the paper has no ReLU here; the references do
        out = self.bn3(self.conv3(out))
        return out + x if self.stride == 1 else torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


class ShuffleNetV1(StagedClassifier):
    """ShuffleNet with a 1x1 stem for 32x32 images, as RepDistiller and mdistiller build it (ShuffleV1).

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        widths, counts: channels and units of the three stages, the first unit of each at stride 2.
        groups: of the 1x1 convolutions, but for the very first one on the 24-channel stem.
    Taps: f0 after the stem's ReLU, f1..f3 after the last ReLU of each stage; the final map is f3. PyTorch's default initialisation.
    """

    head_name = "linear"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        widths: Sequence[int] = (240, 480, 960),
        counts: Sequence[int] = (4, 8, 4),
        groups: int = 3,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        previous = 24
        for index, (width, count) in enumerate(zip(widths, counts, strict=True)):
            first = ShuffleUnit(previous, width - previous, 2, 1 if index == 0 else groups, groups)
            rest = (ShuffleUnit(width, width, 1, groups, groups) for _ in range(count - 1))
            self.add_module(f"layer{index + 1}", nn.Sequential(first, *rest))
            previous = width
        self.linear = nn.Linear(previous, num_classes)
