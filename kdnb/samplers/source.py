"""Images from whatever needs no training here, a diffusion prior or noise, on the common ground of the field."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdnb.samplers.inversion import require_sizes
from kdnb.samplers.synthesizer import Synthesis


@dataclass(frozen=True)
class SourceConfig:
    """Constants of a source.

    Attributes:
        batch_size: images a call; their classes take turns, in random order.
    """

    batch_size: int = 64

    def __post_init__(self):
        require_sizes(batch_size=self.batch_size)


class SourceSynthesizer:
    """One call = one batch of a source; nothing is trained, and there are no losses.

    Args:
        source: (B,) wanted classes and a random generator -> (B, C, H, W) images in [-1, 1].
        num_classes: K. config: constants. device: of the random generator that a call is given.
    """

    def __init__(
        self,
        source: Callable[[Tensor, torch.Generator], Tensor],
        num_classes: int,
        config: SourceConfig,
        device: torch.device | str = "cpu",
    ):
        self.source, self.num_classes, self.config, self.device = source, num_classes, config, device

    def __call__(self, rng: torch.Generator) -> Synthesis:
        order = torch.randperm(self.config.batch_size, generator=rng, device=self.device)
        labels = order % self.num_classes
        return Synthesis(self.source(labels, rng), labels, {})

    def state_dict(self) -> dict:
        """Nothing outlives a call."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass
