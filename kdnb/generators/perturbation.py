"""Image to perturbation: the residual network that generative adversarial perturbations (GAP) borrow from style transfer."""

import torch
from torch import Tensor, nn

from kdnb.errors import InputError


class ResidualBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))), 3x3 convolutions on reflected borders."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class PerturbationGenerator(nn.Module):
    """Image (B, C, H, W) -> raw perturbation in (-1, 1) of the same shape.

    7x7 to w channels; two strided 3x3 to 2w, 4w; `num_blocks` residual blocks; two transposed 3x3 back to w; 7x7 to C; tanh. Batch norm
    and ReLU after each but the last. The caller scales the output: see `attacks.hard_loss`.

    Args:
        channels: C, 3. width: w, 64. num_blocks: residual blocks, 6.
        rng: source of the initial weights, N(0, 0.02) for convolutions and N(1, 0.02) for batch norms.
    Raises:
        InputError (at call): H or W not a multiple of 4, or below 8 (the borders are reflected).

    Source: Poursaeed et al., CVPR 2018; sizes of the AEAHL-RG released code, whose weight names these are.
    """

    def __init__(self, channels: int = 3, width: int = 64, num_blocks: int = 6, rng: torch.Generator | None = None):
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7, bias=False), *_norm(width)]
        for factor in (1, 2):
            layers += [nn.Conv2d(factor * width, 2 * factor * width, 3, 2, 1, bias=False), *_norm(2 * factor * width)]
        layers += [ResidualBlock(4 * width) for _ in range(num_blocks)]
        for factor in (4, 2):
            up = nn.ConvTranspose2d(factor * width, factor * width // 2, 3, 2, 1, output_padding=1, bias=False)
            layers += [up, *_norm(factor * width // 2)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh()]
        self.model0 = nn.Sequential(*layers)
        self._initialise(rng)

    @torch.no_grad()
    def _initialise(self, rng: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.normal_(0.0, 0.02, generator=rng)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.02, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height % 4 or width % 4 or min(height, width) < 8:
            raise InputError(
                f"the perturbation network needs images whose sides are multiples of 4 and at least 8, got {height} x {width}"
            )
        return self.model0(x)


def _norm(channels: int) -> tuple[nn.BatchNorm2d, nn.ReLU]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
