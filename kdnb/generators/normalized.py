"""Generators that emit normalised pixels, not images: the heads of DAFL's and ZSKT's own code, and the map to this package's range."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError


class Denormalize(nn.Module):
    """From normalised pixels to images of this package: 2 (std x + mean) - 1, the inverse of `models.base.Normalize`; nothing is clamped.

    Args:
        mean, std: one float a channel, in units of the [0, 1] range, of the teacher's data; std > 0. (0.5, 0.5) leaves x as it is.
    Raises:
        InputError: lengths differ or a std is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise InputError(
                f"mean and a positive std are needed for every channel, got {tuple(mean)} and {tuple(std)}"
            )
        means, stds = (torch.tensor(tuple(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (2 * stds).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("shift", (2 * means - 1).to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class NormalizedGenerator(nn.Module):
    """z (B, nz) -> image (B, C, s, s), unbounded, around [-1, 1]. A subclass builds layers for `normalized_pixels`.

    Args:
        image_size: s, a positive multiple of 4; 32. latent_dim: nz. width: w, 64; the maps have 2w, 2w, w channels.
        mean, std: normalisation of the data, one float a channel; their length is C.
    Raises:
        InputError: image size not a positive multiple of 4, bad mean or std.
    """

    def __init__(
        self,
        image_size: int = 32,
        latent_dim: int = 100,
        width: int = 64,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ):
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise InputError(f"image_size must be a positive multiple of 4 (two doublings), got {image_size}")
        self.latent_dim, self.image_size, self.channels = latent_dim, image_size, len(mean)
        self.start = (2 * width, image_size // 4, image_size // 4)
        self.denormalize = Denormalize(mean, std)

    def normalized_pixels(self, z: Tensor) -> Tensor:
        """(B, nz) -> (B, C, s, s) in units of the data's standard deviation."""
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        return self.denormalize(self.normalized_pixels(z))


class DaflGeneratorReleased(NormalizedGenerator):
    """DAFL's own generator: biased convolutions, batch norms of eps 0.8, tanh, then a batch norm without weights.

    The output is standardised per batch and channel in training mode, so it is bounded by no interval. eps 0.8 is older GAN code's slip:
    the number was meant as a momentum. Weight names equal those of the released files. nz = 1000 on CIFAR, 100 on MNIST.

    Source: Chen et al., ICCV 2019, released code.
    """

    def __init__(self, image_size: int = 32, latent_dim: int = 1000, width: int = 64, **normalization):
        super().__init__(image_size, latent_dim, width, **normalization)
        wide = 2 * width
        self.l1 = nn.Sequential(nn.Linear(latent_dim, wide * (image_size // 4) ** 2))
        self.conv_blocks0 = nn.Sequential(nn.BatchNorm2d(wide))
        self.conv_blocks1 = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide, 0.8), nn.LeakyReLU(0.2)
        )
        self.conv_blocks2 = nn.Sequential(
            nn.Conv2d(wide, width, 3, padding=1),
            nn.BatchNorm2d(width, 0.8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, self.channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(self.channels, affine=False),
        )

    def normalized_pixels(self, z: Tensor) -> Tensor:
        x = self.conv_blocks0(self.l1(z).unflatten(1, self.start))
        x = self.conv_blocks1(F.interpolate(x, scale_factor=2))
        return self.conv_blocks2(F.interpolate(x, scale_factor=2))


class ZsktGeneratorReleased(NormalizedGenerator):
    """ZSKT's own generator: biased convolutions and a batch norm with weights at the end, nothing that squashes.

    Weight names equal those of the released files. nz = 100.

    Source: Micaelli and Storkey, NeurIPS 2019, released code.
    """

    def __init__(self, image_size: int = 32, latent_dim: int = 100, width: int = 64, **normalization):
        super().__init__(image_size, latent_dim, width, **normalization)
        wide = 2 * width
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, wide * (image_size // 4) ** 2),
            nn.Unflatten(1, self.start),
            nn.BatchNorm2d(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.BatchNorm2d(wide),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, self.channels, 3, padding=1),
            nn.BatchNorm2d(self.channels),
        )

    def normalized_pixels(self, z: Tensor) -> Tensor:
        return self.layers(z)
