"""MobileNetV2 in the two forms that the distillation literature uses. Sandler et al., CVPR 2018: inverted residuals, linear bottlenecks."""

from torch import Tensor, nn

from kdnb.models.base import Classifier, conv, initialize
from kdnb.models.mobilenetv1 import conv_bn_relu

# (expansion, channels, blocks, stride of the first block); the second stage keeps full resolution on small images
SMALL_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
IMAGENET_STAGES = (SMALL_STAGES[0], (6, 24, 2, 2), *SMALL_STAGES[2:])


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; added to the input where stride and channels allow."""

    def __init__(self, layers: nn.Sequential, residual: bool):
        super().__init__()
        self.conv = layers
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def flat_block(in_channels: int, out_channels: int, stride: int, expansion: int) -> InvertedResidual:
    """All eight layers in one Sequential; the expansion convolution stays even at expansion 1."""
    inner = in_channels * expansion
    expand, depthwise = conv_bn_relu(in_channels, inner, 1), conv_bn_relu(inner, inner, 3, stride, groups=inner)
    layers = nn.Sequential(*expand, *depthwise, conv(inner, out_channels, 1), nn.BatchNorm2d(out_channels))
    return InvertedResidual(layers, stride == 1 and in_channels == out_channels)


class MobileNetV2(Classifier):
    """MobileNetV2 for 32x32 images: the network that RepDistiller, mdistiller, SDD and SimKD call MobileNetV2.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        width: factor on all channels but the last convolution's 1280; 0.5 is the common student, 1.0 is SimKD's MobileNetV2_1_0.
    Taps: f0 after the stem's ReLU (stride 2), f1..f4 the linear outputs of stages 2, 3, 5 and 7; the final map is the 1280-channel
    convolution after its ReLU. Plain ReLU, not ReLU6, as in those repositories.
    """

    head_name = "classifier.0"

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 0.5):
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(in_channels, channels, 3, 2))
        self.blocks = nn.ModuleList()
        for expansion, base, count, stride in SMALL_STAGES:
            out_channels = int(base * width)
            first = flat_block(channels, out_channels, stride, expansion)
            self.blocks.append(
                nn.Sequential(first, *(flat_block(out_channels, out_channels, 1, expansion) for _ in range(count - 1)))
            )
            channels = out_channels
        final = int(1280 * max(1.0, width))
        self.conv2 = nn.Sequential(*conv_bn_relu(channels, final, 1))
        self.classifier = nn.Sequential(nn.Linear(final, num_classes))
        initialize(self, linear_std=0.01)

    def taps(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        feats = [x]
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in (1, 2, 4, 6):
                feats.append(x)
        return feats

    def last(self, tap: Tensor) -> Tensor:
        return self.conv2(tap)


def conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels, out_channels, kernel, stride, groups), nn.BatchNorm2d(out_channels), nn.ReLU6()
    )


def nested_block(in_channels: int, out_channels: int, stride: int, expansion: int) -> InvertedResidual:
    """Layers grouped as torchvision names them; no expansion convolution at expansion 1."""
    inner = in_channels * expansion
    expand = [conv_bn_relu6(in_channels, inner, 1)] if expansion > 1 else []
    depthwise = conv_bn_relu6(inner, inner, 3, stride, groups=inner)
    layers = nn.Sequential(*expand, depthwise, conv(inner, out_channels, 1), nn.BatchNorm2d(out_channels))
    return InvertedResidual(layers, stride == 1 and in_channels == out_channels)


class MobileNetV2ImageNet(Classifier):
    """Full-width MobileNetV2 with torchvision's layers and names, as the CMI line of data-free code and SimKD's ImageNet runs use it.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
    Taps: f0 the stem, f1..f4 the linear outputs at 24, 32, 96 and 320 channels (1/4, 1/8, 1/16, 1/32 of the image); the final map is
    the 1280-channel convolution after its ReLU6. Dropout of 0.2 stands before the head in training.
    """

    head_name = "classifier.1"

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        layers, channels = [conv_bn_relu6(in_channels, 32, 3, 2)], 32
        for expansion, out_channels, count, stride in IMAGENET_STAGES:
            for position in range(count):
                layers.append(nested_block(channels, out_channels, stride if position == 0 else 1, expansion))
                channels = out_channels
        self.features = nn.Sequential(*layers, conv_bn_relu6(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        initialize(self, linear_std=0.01)

    def taps(self, x: Tensor) -> list[Tensor]:
        feats = []
        for index in range(len(self.features) - 1):
            x = self.features[index](x)
            if index in (0, 3, 6, 13, 17):
                feats.append(x)
        return feats

    def last(self, tap: Tensor) -> Tensor:
        return self.features[-1](tap)

    def classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled)
