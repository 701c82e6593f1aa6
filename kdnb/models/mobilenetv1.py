"""MobileNetV1. Howard et al., arXiv 1704.04861, 2017: depthwise-separable convolutions."""

from torch import Tensor, nn

from kdnb.models.base import Classifier, conv

# (output channels, stride) of the thirteen separable layers
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
TAPPED = (3, 5, 11, 13)  # the last layer at each resolution from 1/4 on


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(in_channels, out_channels, kernel, stride, groups), nn.BatchNorm2d(out_channels), nn.ReLU()]


class MobileNetV1(Classifier):
    """MobileNetV1 of width 1 with the ImageNet stem (stride 2); the map before pooling is 1/32 of the image.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
    Taps: f0..f3 after the ReLU of layers 3, 5, 11, 13 (128, 256, 512, 1024 channels at 1/4, 1/8, 1/16, 1/32); the stem is not one
    of them, as in the reference. The final map is f3. PyTorch's default initialisation, as there.
    """

    has_preactivations = True

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        layers = [nn.Sequential(*conv_bn_relu(in_channels, 32, 3, 2))]
        width = 32
        for out_channels, stride in LAYERS:
            depthwise = conv_bn_relu(width, width, 3, stride, groups=width)
            layers.append(nn.Sequential(*depthwise, *conv_bn_relu(width, out_channels, 1)))
            width = out_channels
        self.model = nn.Sequential(*layers)
        self.fc = nn.Linear(width, num_classes)

    def taps(self, x: Tensor) -> list[Tensor]:
        feats = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in TAPPED:
                feats.append(x)
        return feats

    def tap_pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        feats, before = [], []
        for index, layer in enumerate(self.model):
            value = layer[:-1](x)
            x = layer[-1](value)
            if index in TAPPED:
                feats.append(x)
                before.append(value)
        return feats, before

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        return [self.model[index][-2] for index in TAPPED[1:]]
