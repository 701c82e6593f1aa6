"""Sources of images that need no training here: a diffusion prior under the rules of Fast-AD's guidance, and noise."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from torch import nn

from kdnb.choices import DIFFUSION_SOURCES
from kdnb.data.tensors import Dataset
from kdnb.generators.diffusion import DiffusionPrior
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.studies.fast_ad import Source, diffusion_source, noise_source
from kdnb.studies.guidance import compared_rules, guidance_from


class Diffusion(NamedTuple):
    """A prior and how it is sampled, see `diffusion_with`.

    Attributes:
        prior: the diffusion model.
        rules: of guidance, by the name of the source.
        solver, num_steps: of the sampler.
    """

    prior: DiffusionPrior
    rules: Mapping[str, GuidanceConfig | None]
    solver: str = "dpmsolver++"
    num_steps: int = 10


def diffusion_with(prior: DiffusionPrior, values: Mapping | None = None) -> Diffusion:
    """A prior with the four rules around the one that a notebook's parameters describe.

    Args:
        values: `rule` and `guidance` (as `guidance_from` takes them), `solver`, `num_steps`; None: the separate rule with ten steps.
    """
    values = values or {"rule": "separate", "guidance": "", "solver": "dpmsolver++", "num_steps": 10}
    rules = {name.lower(): rule for name, rule in compared_rules(guidance_from(values)).items()}
    return Diffusion(prior, rules, values["solver"], values["num_steps"])


def source_of(
    name: str, data: Dataset, teacher: nn.Module, diffusion: Diffusion | None
) -> AbstractContextManager[Source | None]:
    """The source of that name, None for a method that trains; a context manager because guidance holds hooks on the teacher."""
    shape = (data.channels, data.image_size, data.image_size)
    if name == "noise":
        return nullcontext(noise_source(shape))
    if name not in DIFFUSION_SOURCES or diffusion is None:
        return nullcontext()
    return diffusion_source(
        diffusion.prior,
        shape,
        teacher=teacher,
        guidance=diffusion.rules[name],
        solver=diffusion.solver,
        num_steps=diffusion.num_steps,
    )
