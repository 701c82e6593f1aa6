"""NAYER's generator: the name of a class, not noise, enters it; what varies are the weights of a random layer behind the name."""

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator


def random_embeddings(num_classes: int, width: int = 512, seed: int = 0) -> Tensor:
    """Fixed random vectors (K, D) ~ N(0, 1) in place of a text encoder's: classes are told apart, their names mean nothing.

    Args:
        num_classes: K. width: D; 512 is that of CLIP ViT-B/32. seed: the same seed gives the same vectors everywhere.
    """
    return torch.randn(num_classes, width, generator=torch.Generator().manual_seed(seed))


class NoisyLayerGenerator(nn.Module):
    """labels (B,) -> images (B, C, s, s) in (-1, 1).

        e = BN(E[y]);   rows i K .. (i+1) K - 1 of e pass the i-th noisy layer W_i e + b_i, the last layer takes the rest;
        then Linear, BN and the convolutions of `LatentGenerator` (cmi)

    Args:
        embeddings: E (K, D), one row a class: a text encoder's output for the class names, or `random_embeddings`. Constants.
        num_layers: noisy layers, ceil(B / K) for one layer a whole cycle of classes.
        noisy_width: width of their output, 1000.
        image_size: s, a positive multiple of 4; channels: C; width: w, 64.
    Raises:
        InputError: embeddings not (K, D), fewer than one noisy layer, bad image size.

    Source: Tran et al., CVPR 2024 (NAYER), with the weight names of its released code. With a text encoder's embeddings the method is
    not strictly data-free: the encoder has seen images.
    """

    def __init__(
        self,
        embeddings: Tensor,
        num_layers: int,
        noisy_width: int = 1000,
        image_size: int = 32,
        channels: int = 3,
        width: int = 64,
    ):
        super().__init__()
        if embeddings.dim() != 2 or num_layers < 1:
            raise InputError(
                f"need class embeddings (K, D) and at least one noisy layer, got {tuple(embeddings.shape)}, {num_layers}"
            )
        behind = LatentGenerator(image_size, channels, noisy_width, width)
        self.image_size, self.channels = image_size, channels
        self.n1 = nn.BatchNorm1d(embeddings.shape[1])
        self.le1 = nn.ModuleList(nn.Linear(embeddings.shape[1], noisy_width) for _ in range(num_layers))
        self.l1, self.conv_blocks, self._start = behind.l1, behind.conv_blocks, behind._start
        self.register_buffer("embeddings", embeddings.detach().clone(), persistent=False)

    def unit_images(self, labels: Tensor) -> Tensor:
        """(B,) int64 -> (B, C, s, s) in (0, 1)."""
        named = self.n1(self.embeddings[labels])
        rows, last = self.embeddings.shape[0], len(self.le1) - 1
        parts = [
            layer(named[index * rows : None if index == last else (index + 1) * rows])
            for index, layer in enumerate(self.le1)
        ]
        return self.conv_blocks(self.l1(torch.cat(parts)).unflatten(1, self._start))

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) int64 -> (B, C, s, s) in (-1, 1)."""
        return 2.0 * self.unit_images(labels) - 1.0

    @torch.no_grad()
    def redraw(self, rng: torch.Generator | None = None) -> None:
        """New noise: weights of the noisy layers ~ N(0, 1), their biases 0; `rng` on the generator's device."""
        for layer in self.le1:
            layer.weight.normal_(generator=rng)
            layer.bias.zero_()

    def renew(self, rng: torch.Generator | None = None) -> None:
        """Start all over: torch's initial weights for every layer, a function of `rng` alone."""
        device = self.embeddings.device
        seed = int(torch.randint(2**31, (), generator=rng, device=device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
