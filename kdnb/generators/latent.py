"""Noise to image: the small up-sampling generator that data-free distillation has used since DAFL."""

import torch
from torch import Tensor, nn

from kdnb.errors import InputError, check_name

# Channels of the three convolution inputs, in units of `width`, and the usual size of the latent.
VARIANTS = {
    "cmi": ((2, 2, 1), 256),  # CMI, Fast-Datafree, and each branch of the reusable generator
    "dafl": ((4, 2, 1), 512),
    "dfq": ((4, 2, 1), 256),  # also ZSKT
}


class LatentGenerator(nn.Module):
    """z -> image: a linear layer to a quarter of the image size, then two nearest up-samplings with 3x3 convolutions between.

    Shapes for size s: Linear (B, nz) -> (B, a w, s/4, s/4); BN, x2; conv to b w, BN, LeakyReLU 0.2, x2; conv to c w, BN, LeakyReLU 0.2;
    conv to C, sigmoid. (a, b, c) = (2, 2, 1) for CMI, (4, 2, 1) for DAFL and DFQ.

    Args:
        image_size: s in pixels, a multiple of 4; 32.
        channels: C of the image, 3.
        latent_dim: nz; by default that of the variant (256, DAFL 512).
        width: w, 64.
        variant: one of `VARIANTS`.
    Raises:
        InputError: unknown variant, image size not a positive multiple of 4.

    `forward` gives images in (-1, 1), the range of this package; `unit_images` the sigmoid's (0, 1), the range in which the released
    code normalises and in which branches are fused. Weight names equal those of the released files.

    Source: Chen et al., ICCV 2019; Fang et al., IJCAI 2021. 2,328,899 parameters at size 32 and the CMI defaults.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        latent_dim: int | None = None,
        width: int = 64,
        variant: str = "cmi",
    ):
        super().__init__()
        check_name("generator variant", variant, VARIANTS)
        if image_size < 4 or image_size % 4:
            raise InputError(f"image_size must be a positive multiple of 4 (two doublings), got {image_size}")
        factors, usual_latent_dim = VARIANTS[variant]
        first, second, third = (factor * width for factor in factors)
        self.latent_dim = latent_dim or usual_latent_dim
        self.image_size, self.channels, self._start = image_size, channels, (first, image_size // 4, image_size // 4)
        self.l1 = nn.Sequential(nn.Linear(self.latent_dim, first * (image_size // 4) ** 2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(first),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(second, third, 3, padding=1, bias=False),
            nn.BatchNorm2d(third),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(third, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def unit_images(self, z: Tensor) -> Tensor:
        """(B, nz) -> (B, C, s, s) in (0, 1)."""
        return self.conv_blocks(self.l1(z).unflatten(1, self._start))

    def forward(self, z: Tensor) -> Tensor:
        """(B, nz) -> (B, C, s, s) in (-1, 1)."""
        return 2.0 * self.unit_images(z) - 1.0


def draw_latents(
    count: int, latent_dim: int, rng: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal latents (count, latent_dim); `rng` must live on `device`."""
    return torch.randn(count, latent_dim, generator=rng, device=device)


@torch.no_grad()
def reset_weights(generator: nn.Module, rng: torch.Generator | None = None) -> None:
    """CMI's restart before each batch: convolution and linear weights ~ N(0, 0.02), batch-norm weights ~ N(1, 0.02), biases 0.

    Args:
        generator: changed in place; batch-norm buffers go back to mean 0, variance 1.
        rng: source of randomness, on the generator's device.
    """
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.weight.normal_(0.0, 0.02, generator=rng)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.normal_(1.0, 0.02, generator=rng)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.zero_()


@torch.no_grad()
def refresh_batch_norm(generator: nn.Module, z: Tensor, chunk: int = 256) -> None:
    """Make the batch-norm buffers describe the present weights, so that evaluation mode gives the images of training mode.

    Args:
        generator: changed in place (buffers only); its mode is restored.
        z: (N, nz) latents; N of a few hundred is plenty.
        chunk: latents a forward pass; statistics are averaged over the passes with equal weight.

    Meta-learning trains copies, so the buffers of the generator that is kept lag behind or, in the released code, stay at mean 0 and
    variance 1, which makes its evaluation-mode images nearly constant.
    """
    layers = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    training, momenta = generator.training, [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch: cumulative average
    generator.train()
    for part in z.split(chunk):
        generator(part)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    generator.train(training)
