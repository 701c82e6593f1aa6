"""Fast-Datafree on the common ground of the field: `Synthesizer` behind `call(rng)`, with crops drawn for every call."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kdnb.data.augmentation import augment
from kdnb.generators.latent import LatentGenerator
from kdnb.samplers.inversion import Problem, require_batch_norm
from kdnb.samplers.synthesizer import MetaConfig, Synthesis, Synthesizer


class CroppedSynthesizer:
    """A `Synthesizer` whose classifiers see random crops and mirror images.

    Args:
        synthesizer: its `augment` is set at every call.
        padding, flip: of the crops.
        crop_rng: number of the call, zero-based -> source of the crops; default: that of the call itself.
        on_step: handed on to the synthesiser.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        padding: int,
        flip: bool,
        crop_rng: Callable[[int], torch.Generator] | None = None,
        on_step: Callable[[Tensor, Tensor], object] | None = None,
    ):
        self.synthesizer, self.padding, self.flip = synthesizer, padding, flip
        self.crop_rng, self.on_step = crop_rng, on_step

    def __call__(self, rng: torch.Generator | None = None) -> Synthesis:
        source = self.crop_rng(self.synthesizer.calls) if self.crop_rng else rng
        self.synthesizer.augment = partial(augment, padding=self.padding, flip=self.flip, generator=source)
        return self.synthesizer(rng=rng, on_step=self.on_step)

    def state_dict(self) -> dict:
        return self.synthesizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.synthesizer.load_state_dict(state)


@dataclass(frozen=True)
class FastConfig(MetaConfig):
    """Constants of the method on CIFAR with ten steps: those of `MetaConfig`, and those of its generator.

    Attributes:
        latent_dim, width: of the generator.
        crop_padding, flip: augmentation of the images.
    """

    latent_dim: int = 256
    width: int = 64
    crop_padding: int = 4
    flip: bool = True


def build(problem: Problem, config: FastConfig) -> CroppedSynthesizer:
    """With a new generator, drawn from torch's global state."""
    require_batch_norm(problem.teacher, "Fast-Datafree")
    channels, size = problem.image_shape[:2]
    generator = LatentGenerator(size, channels, config.latent_dim, config.width).to(problem.device)
    synthesizer = Synthesizer(generator, problem.teacher, problem.student, problem.num_classes, config)
    return CroppedSynthesizer(synthesizer, config.crop_padding, config.flip)
