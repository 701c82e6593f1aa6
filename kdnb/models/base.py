"""What every classifier of the zoo is: an optional normalisation, maps from coarse to fine, global average pooling, one linear head."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError


class Features(NamedTuple):
    """One forward pass seen from inside.

    Attributes:
        logits: (B, K).
        feats: list of (B, C_l, H_l, W_l), stem first.
        pooled: (B, D), what enters the head.
        final_map: (B, D, H, W), what enters global average pooling (not always the last of `feats`: MobileNetV2, ShuffleNetV2 and WRN add
            layers after it).
        preactivations: `feats` before their last ReLU, only where the pass was asked for them.
    """

    logits: Tensor
    feats: list[Tensor]
    pooled: Tensor
    final_map: Tensor
    preactivations: list[Tensor] | None = None


class Normalize(nn.Module):
    """Map images from [-1, 1] to [0, 1] and standardise each channel: ((x + 1) / 2 - mean) / std, as one multiply-add.

    Args:
        mean, std: one float a channel, in units of the [0, 1] range; std > 0.
    Raises:
        InputError: lengths differ or a std is not positive.
    The buffers are non-persistent: a state dict stays that of the plain network.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std):
            raise InputError(f"mean has {len(mean)} channels but std has {len(std)}; give one value a channel to each")
        if not all(value > 0 for value in std):
            raise InputError(f"std must be > 0 in every channel, got {tuple(std)}")
        means, stds = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (0.5 / stds).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("shift", ((0.5 - means) / stds).to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, K); with `return_features`, to `Features`.

    A subclass implements `taps` and names its final linear layer in `head_name`; where more layers follow the last tap it implements
    `last` too, and where its taps come out of a ReLU `tap_pairs` and `tap_norms`. Any image size that survives the subsampling works:
    pooling is global.

    Attributes:
        architecture: what `kdnb.models.build` makes it of, if its name alone says so; else empty.
        normalize: applied to the input first; identity unless the network was built with mean and std.
        head: the final nn.Linear; head(pooled) are the logits (but for dropout in training).
        has_preactivations: whether each tap but the stem's stands next to a ReLU, so that `tap_pairs` gives two different lists.
    """

    architecture = ""
    head_name = "fc"
    has_preactivations = False

    def __init__(self):
        super().__init__()
        self.normalize = nn.Identity()

    def taps(self, x: Tensor) -> list[Tensor]:
        """The maps that distillation methods compare, from the stem on; x is normalised."""
        raise NotImplementedError

    def tap_pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The taps, and the same before their last ReLU, out of one pass; x is normalised.

        The stem (f0) is given after its ReLU, as the references do. Where taps carry no activation (linear bottlenecks) the second list
        is the first.
        """
        feats = self.taps(x)
        return feats, feats

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        """The batch norm that ends each pre-activation but the stem's: what OFD takes its margins from.

        Raises:
            InputError: there are no such layers, or they don't cover all channels.
        """
        raise InputError(f"{type(self).__name__} has no batch norm right before the ReLU of every stage")

    def last(self, tap: Tensor) -> Tensor:
        """From the last tap to the map that enters global pooling."""
        return tap

    def classify(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)

    @property
    def head(self) -> nn.Linear:
        return self.get_submodule(self.head_name)

    @property
    def plain(self) -> nn.Module:
        """The network whose names checkpoints use: itself, or what a wrapper wraps."""
        return self

    def extract(self, x: Tensor, preactivations: bool = False) -> Features:
        """All of `Features` for an input that is normalised already."""
        feats, before = self.tap_pairs(x) if preactivations else (self.taps(x), None)
        final_map = self.last(feats[-1])
        pooled = final_map.mean((2, 3))
        return Features(self.classify(pooled), feats, pooled, final_map, before)

    def forward(self, x: Tensor, return_features: bool = False, preactivations: bool = False):
        features = self.extract(self.normalize(x), preactivations)
        return features if return_features else features.logits

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """The taps before their last ReLU alone, in a pass of its own; x is a plain input."""
        return self.tap_pairs(self.normalize(x))[1]


class StagedClassifier(Classifier):
    """A stem conv1-bn1-ReLU, then stages `layer1`, `layer2`, ...; each is a Sequential of blocks with `preactivate` and `activate`."""

    has_preactivations = True

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))

    def enter(self, stem: Tensor) -> Tensor:
        """Between the first tap and the first stage."""
        return stem

    @property
    def stages(self) -> list[nn.Sequential]:
        return [child for name, child in self.named_children() if name.startswith("layer")]

    def taps(self, x: Tensor) -> list[Tensor]:
        feats = [self.stem(x)]
        x = self.enter(feats[0])
        for stage in self.stages:
            x = stage(x)
            feats.append(x)
        return feats

    def tap_pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        stem = self.stem(x)
        feats, before = [stem], [stem]
        x = self.enter(stem)
        for stage in self.stages:
            *early, block = stage
            for module in early:
                x = module(x)
            before.append(block.preactivate(x))
            x = block.activate(before[-1])
            feats.append(x)
        return feats, before

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        ends = [stage[-1] for stage in self.stages]
        if not all(block.last_norm for block in ends):
            return super().tap_norms()
        return [getattr(block, block.last_norm) for block in ends]


class Block(nn.Module):
    """A residual unit in two steps, so that the value before its last ReLU can be had: forward(x) = activate(preactivate(x)).

    Attributes:
        last_norm: name of the batch norm that ends the residual branch, where it covers all channels of the unit.
    """

    last_norm: str | None = None

    def preactivate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.preactivate(x))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def initialize(model: nn.Module, linear_std: float | None = None) -> None:
    """He's rule for convolutions, W ~ N(0, 2 / (k^2 C_out)), with zero biases; the head from N(0, linear_std^2), zero bias, if given.

    The two spellings of the sources, "Kaiming normal, fan-out" and the explicit variance, are the same numbers, depthwise layers
    included. Batch normalisation starts at weight 1, bias 0 by itself. Source: He, Zhang, Ren, Sun, ICCV 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / (math.prod(module.kernel_size) * module.out_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def feature_shapes(model: nn.Module, image_shape: Sequence[int]) -> Features:
    """Shapes without the batch dimension, as a `Features` of tuples; what adapters need to know before training starts.

    Args:
        model: a classifier; runs once in eval mode, its mode and statistics stay as they were.
        image_shape: (C, H, W).
    """
    weight = next(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    try:
        features = model.eval()(
            torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device), return_features=True
        )
    finally:
        for module, training in modes:
            module.training = training
    shapes = [
        tuple(tensor.shape[1:]) for tensor in (features.logits, *features.feats, features.pooled, features.final_map)
    ]
    return Features(shapes[0], shapes[1:-2], shapes[-2], shapes[-1])
