"""VGG with batch normalisation for small images. Simonyan and Zisserman, ICLR 2015; Ioffe and Szegedy, ICML 2015."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import check_name
from kdnb.models.base import Classifier, initialize

BLOCK_COUNTS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def convolutions(in_channels: int, width: int, count: int) -> nn.Sequential:
    """`count` times 3x3 convolution (with bias) and BN, ReLU between them; the last ReLU is left to the caller, who needs both sides."""
    layers = []
    for _ in range(count):
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers[:-1])


class VGG(Classifier):
    """VGG-8 to VGG-19: five blocks of 3x3 convolutions, max pooling between them, one linear layer.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        depth: 8, 11, 13, 16 or 19.
        widths: channels of the five blocks.
    Raises:
        InputError: unknown depth.
    Taps: f0..f4 after the ReLU of each block; the final map is f4. The pool between the last two blocks acts on images of height 64
    only, the rule of the references: at 32 the last block sees 4x4, at 16 it sees 2x2, at 64 again 4x4, at 224 28x28. Images of at
    least 8x8.
    """

    head_name = "classifier"
    has_preactivations = True

    def __init__(
        self, num_classes: int, in_channels: int = 3, depth: int = 8, widths: Sequence[int] = (64, 128, 256, 512, 512)
    ):
        super().__init__()
        check_name("VGG depth", str(depth), [str(known) for known in BLOCK_COUNTS])
        for index, (width, count) in enumerate(zip(widths, BLOCK_COUNTS[depth], strict=True)):
            self.add_module(f"block{index}", convolutions(in_channels, width, count))
            in_channels = width
        self.classifier = nn.Linear(in_channels, num_classes)
        initialize(self, linear_std=0.01)

    def _walk(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each block's value before and after its last ReLU."""
        last_pool = x.shape[2] == 64
        for index in range(5):
            if 0 < index < 4 or (index == 4 and last_pool):
                x = F.max_pool2d(x, 2)
            before = self.get_submodule(f"block{index}")(x)
            x = F.relu(before)
            yield before, x

    def taps(self, x: Tensor) -> list[Tensor]:
        return [after for _, after in self._walk(x)]

    def tap_pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        before, feats = map(list, zip(*self._walk(x), strict=True))
        return feats, [feats[0], *before[1:]]

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        return [self.get_submodule(f"block{index}")[-1] for index in range(1, 5)]
