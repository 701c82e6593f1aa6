"""ShuffleNetV2. Ma, Zhang, Zheng, Sun, ECCV 2018: split the channels, convolve one half, join, shuffle."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.models.base import Block, StagedClassifier, conv


class SplitUnit(Block):
    """One half passes, the other goes through 1x1, depthwise 3x3, 1x1; the preactivation joins both before the ReLU and the shuffle."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def preactivate(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return torch.cat([passed, out], dim=1)

    def activate(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(
            F.relu(x), 2
        )  # the half that passed is past a ReLU already, a second one changes nothing


class DownUnit(Block):
    """Halve the resolution: both branches see all channels (left depthwise 3x3 and 1x1; right 1x1, depthwise 3x3, 1x1)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def preactivate(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)

    def activate(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(F.relu(x), 2)


class ShuffleNetV2(StagedClassifier):
    """ShuffleNetV2 with a 1x1 stem for 32x32 images, as RepDistiller, mdistiller and CMI build it (ShuffleV2).

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        widths: channels of the three stages and of the last 1x1 convolution; (116, 232, 464, 1024) is size 1.
        counts: split units of the stages, after the unit that halves the resolution.
    Taps: f0 after the stem's ReLU, f1..f3 the shuffled outputs of the stages; the final map is the last convolution after its ReLU.
    PyTorch's default initialisation.
    """

    head_name = "linear"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        widths: Sequence[int] = (116, 232, 464, 1024),
        counts: Sequence[int] = (3, 7, 3),
    ):
        super().__init__()
        *stages, final = widths
        self.conv1 = conv(in_channels, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        previous = 24
        for index, (width, count) in enumerate(zip(stages, counts, strict=True)):
            self.add_module(
                f"layer{index + 1}", nn.Sequential(DownUnit(previous, width), *(SplitUnit(width) for _ in range(count)))
            )
            previous = width
        self.conv2 = conv(previous, final, 1)
        self.bn2 = nn.BatchNorm2d(final)
        self.linear = nn.Linear(final, num_classes)

    def last(self, tap: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(tap)))
