"""Wide residual networks. Zagoruyko and Komodakis, BMVC 2016: pre-activation blocks, depth 6n+4, width factor w."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.models.base import Classifier, conv, initialize


class PreactivationBlock(nn.Module):
    """x + conv2(ReLU(bn2(conv1(ReLU(bn1(x)))))); where channels change, the 1x1 shortcut starts from ReLU(bn1(x)) instead of x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.convShortcut = None if in_channels == out_channels else conv(in_channels, out_channels, 1, stride)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        hidden = F.relu(self.bn2(self.conv1(active)))
        return shortcut + self.conv2(F.dropout(hidden, self.dropout, self.training))


class Group(nn.Module):
    """Blocks of one width, kept under the name `layer` that published checkpoints use."""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        blocks = [PreactivationBlock(in_channels, out_channels, stride, dropout)]
        blocks += [PreactivationBlock(out_channels, out_channels, 1, dropout) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def batch_norm_silently(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The layer's output in its current mode, without touching its running statistics."""
    if bn.training:
        return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


class WideResNet(Classifier):
    """WRN-depth-width.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
        depth: 6n + 4 with n >= 1.
        width: w >= 1; the three groups have 16w, 32w and 64w channels.
        dropout: probability between the two convolutions of a block.
    Raises:
        InputError: another depth, or width < 1.
    Taps: f0 the raw first convolution, f1..f3 the raw outputs of the groups, before BN and ReLU as in the references; the final
    map is ReLU(bn1(f3)). `preactivations` are the taps after the batch normalisation that follows them. The mdistiller code calls
    these layers a second time in every forward pass and so updates their running statistics twice a training step; here they
    are evaluated only on request and without an update.
    """

    has_preactivations = True

    def __init__(self, num_classes: int, in_channels: int = 3, depth: int = 16, width: int = 1, dropout: float = 0.0):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"a wide ResNet has depth 6n + 4 with n >= 1 (10, 16, 22, 28, 34, 40, ...), got {depth}")
        if width < 1:
            raise InputError(f"the width factor of a wide ResNet must be >= 1, got {width}")
        count = (depth - 4) // 6
        self.conv1 = conv(in_channels, 16, 3)
        self.block1 = Group(count, 16, 16 * width, 1, dropout)
        self.block2 = Group(count, 16 * width, 32 * width, 2, dropout)
        self.block3 = Group(count, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialize(self)
        nn.init.zeros_(self.fc.bias)

    def taps(self, x: Tensor) -> list[Tensor]:
        f0 = self.conv1(x)
        f1 = self.block1(f0)
        f2 = self.block2(f1)
        return [f0, f1, f2, self.block3(f2)]

    def last(self, tap: Tensor) -> Tensor:
        return F.relu(self.bn1(tap))

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]

    def tap_pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        feats = self.taps(x)
        return feats, [feats[0], *map(batch_norm_silently, self.tap_norms(), feats[1:])]
