"""CIFAR ResNets of depth 6n+2: three stages of basic blocks. He, Zhang, Ren, Sun, CVPR 2016, section 4.2."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.models.base import Block, StagedClassifier, conv, initialize


class ResidualBlock(Block):
    """y = ReLU(residual(x) + shortcut(x)); the shortcut is the identity, or a 1x1 convolution with BN where the shape changes.

    `shortcut_name` is the attribute that holds the shortcut, because published checkpoints call it `downsample` or `shortcut`.
    """

    def add_shortcut(self, in_channels: int, out_channels: int, stride: int, shortcut_name: str) -> None:
        self.shortcut_name = shortcut_name
        same = stride == 1 and in_channels == out_channels
        projection = (
            nn.Identity()
            if same
            else nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        )
        self.add_module(shortcut_name, projection)

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def preactivate(self, x: Tensor) -> Tensor:
        return self.residual(x) + getattr(self, self.shortcut_name)(x)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    last_norm = "bn2"

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut_name: str = "downsample"):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(in_channels, out_channels, stride, shortcut_name)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class ResNet(StagedClassifier):
    """ResNet-(6n+2) for small images; full resolution in the stem and the first stage, halved in the second and third.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        depth: 6n + 2 with n >= 1.
        widths: channels of the stem and of the three stages.
    Raises:
        InputError: another depth.
    Taps: f0 after the stem's ReLU, f1..f3 after the last ReLU of each stage; the final map is f3.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, depth: int = 8, widths: Sequence[int] = (16, 16, 32, 64)
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"a CIFAR ResNet has depth 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
        stem, *stages = widths
        self.conv1 = conv(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        previous = stem
        for index, width in enumerate(stages):
            blocks = [BasicBlock(previous, width, 1 if index == 0 else 2)]
            blocks += [BasicBlock(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            previous = width
        self.fc = nn.Linear(previous, num_classes)
        initialize(self)
