"""ResNets of the ImageNet family (18 to 152 layers), with the stem for small images or the original one.

He, Zhang, Ren, Sun, CVPR 2016, section 4.1; ResNeXt: Xie et al., CVPR 2017; wide bottlenecks: Zagoruyko and Komodakis, BMVC 2016.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import check_name
from kdnb.models.base import StagedClassifier, conv, initialize
from kdnb.models.resnet import BasicBlock, ResidualBlock

BLOCK_COUNTS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Bottleneck(ResidualBlock):
    """1x1 reduce, 3x3 (which carries the stride), 1x1 expand."""

    last_norm = "bn3"

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut_name: str, inner: int, groups: int = 1
    ):
        super().__init__()
        self.conv1 = conv(in_channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(in_channels, out_channels, stride, shortcut_name)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNetImageNet(StagedClassifier):
    """ResNet-18 to ResNet-152 in four stages; basic blocks up to depth 34, bottlenecks (expansion 4) above.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        depth: 10, 18, 34, 50, 101 or 152.
        stem: "cifar", a 3x3 convolution at full resolution, state-dict names `shortcut` and `linear`; or "imagenet", a 7x7
            convolution of stride 2 and a 3x3 max pool of stride 2, state-dict names `downsample` and `fc`.
        widths: channels of the four stages before expansion.
        groups, inner_scale: bottlenecks only; groups of the 3x3 convolution, and its channels relative to the stage width.
    Raises:
        InputError: unknown depth or stem.
    Taps: f0 after the stem's ReLU (before the max pool), f1..f4 after the last ReLU of each stage; the final map is f4. The SimKD
    code taps the ImageNet stem after the max pool instead.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        depth: int = 18,
        stem: str = "cifar",
        widths: Sequence[int] = (64, 128, 256, 512),
        groups: int = 1,
        inner_scale: int = 1,
    ):
        super().__init__()
        check_name("ResNet depth", str(depth), [str(known) for known in BLOCK_COUNTS])
        self.small = check_name("stem", stem, ["cifar", "imagenet"]) == "cifar"
        self.conv1 = conv(in_channels, 64, 3) if self.small else conv(in_channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        previous, shortcut = 64, "shortcut" if self.small else "downsample"
        for index, (width, count) in enumerate(zip(widths, BLOCK_COUNTS[depth], strict=True)):
            blocks = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                if depth < 50:
                    blocks.append(BasicBlock(previous, width, stride, shortcut))
                    previous = width
                else:
                    blocks.append(Bottleneck(previous, 4 * width, stride, shortcut, inner_scale * width, groups))
                    previous = 4 * width
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.head_name = "linear" if self.small else "fc"
        self.add_module(self.head_name, nn.Linear(previous, num_classes))
        initialize(self)

    def enter(self, stem: Tensor) -> Tensor:
        return stem if self.small else F.max_pool2d(stem, 3, stride=2, padding=1)
