"""Sampling from a diffusion prior, with or without a teacher's guidance: DDIM, and the multistep solvers of diffusers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kdnb.choices import SOLVERS
from kdnb.errors import InputError, check_name
from kdnb.rehearsal import cut
from kdnb.samplers.cadr import Guidance, ddim_step, noise_from_estimate, rectify_noise, tweedie

SPACINGS = ("trailing", "leading")


def timesteps(num_steps: int, num_train_timesteps: int = 1000, spacing: str = "trailing") -> list[int]:
    """Descending time steps.

    trailing: T - 1, T - 1 - T/S, ..., T/S - 1: starts where the prior's pure noise lies. leading: (S - 1) T/S, ..., T/S, 0, as the
    reference uses.

    >>> timesteps(5), timesteps(5, spacing="leading")
    ([999, 799, 599, 399, 199], [800, 600, 400, 200, 0])
    """
    check_name("spacing", spacing, SPACINGS)
    if not 1 <= num_steps <= num_train_timesteps:
        raise InputError(f"num_steps must be between 1 and {num_train_timesteps}, got {num_steps}")
    stride = num_train_timesteps / num_steps
    if spacing == "trailing":
        return [round(num_train_timesteps - index * stride) - 1 for index in range(num_steps)]
    return [round((num_steps - 1 - index) * stride) for index in range(num_steps)]


@dataclass
class Samples:
    """Images of a prior.

    Attributes:
        images: (N, C, H, W) in [-1, 1].
        labels: (N,) int64, the classes asked for.
        trace: if asked for, one row of guidance measures per step and batch.
    """

    images: Tensor
    labels: Tensor
    trace: list[dict]


@torch.no_grad()
def sample(
    prior,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    *,
    guidance: Guidance | None = None,
    solver: str = "ddim",
    num_steps: int = 50,
    generator: torch.Generator | None = None,
    initial_noise: Tensor | None = None,
    batch_size: int = 100,
    trace: bool = False,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Samples:
    """Draw one image per label.

    Args:
        prior: a `kdnb.generators.diffusion.DiffusionPrior` (epsilon estimate, alphas_cumprod).
        labels: (N,) int64, the classes asked for; without guidance they have an effect on a class-conditional prior only.
        image_shape: (C, H, W).
        guidance: a teacher's CADR guidance; None, or strength 0: plain sampling at plain cost.
        solver: "ddim", or a multistep solver of diffusers under the same guidance: "dpmsolver++", "unipc".
        num_steps: S denoising steps.
        generator: of the initial noise, on the labels' device.
        initial_noise: (N, C, H, W) to start from instead of drawing; the same noise makes samplers comparable image by image.
        batch_size: samples denoised together; the batch-norm loss is a statistic of this batch.
        trace: collect gate, entropy and losses per step (one host sync a step).
        on_step: called with (index, t, x0 estimate) after each step; figures use it.
    Raises:
        InputError: an unknown solver, or the reference variant of guidance under another one than ddim.
    """
    check_name("solver", solver, SOLVERS)
    if guidance is not None and guidance.config.off:
        guidance = None
    if guidance is not None and guidance.config.variant == "reference" and solver != "ddim":
        raise InputError(f'variant="reference" is the published arithmetic of ddim; it is not defined for {solver}')
    loop = _ddim if solver == "ddim" else _multistep
    rows: list[dict] = []
    images = None
    for start in cut(range(0, len(labels), batch_size), "batch"):
        part = labels[start : start + batch_size]
        if initial_noise is None:
            x = torch.randn(len(part), *image_shape, generator=generator, device=labels.device)
        else:
            x = initial_noise[start : start + batch_size]
        if guidance is not None:
            guidance.reset()
        epsilon = prior.epsilon if getattr(prior, "num_classes", None) is None else prior.for_labels(part)
        guided = partial(_guided, epsilon, labels=part, guidance=guidance, rows=rows if trace else None)
        made = loop(prior, guided, x, guidance, solver, num_steps, on_step)
        images = made.new_zeros(len(labels), *image_shape) if images is None else images
        images[start : start + batch_size] = made
    return Samples(images, labels, rows)


def _guided(
    epsilon: Callable,
    x_t: Tensor,
    t: int,
    alpha_bar: Tensor,
    index: int,
    *,
    labels: Tensor,
    guidance: Guidance | None,
    rows: list | None,
) -> Tensor:
    """The prior's noise estimate at t, rectified where guidance asks for it."""
    eps = epsilon(x_t, t)
    if guidance is None or index % guidance.config.every:
        return eps
    r = guidance.rectification(x_t, eps, alpha_bar, labels, prior=lambda x: epsilon(x, t))
    if rows is not None:
        rows.append({"step": index, "t": t} | {name: value.item() for name, value in guidance.last.items()})
    return rectify_noise(eps, r, alpha_bar, guidance.config.variant)


def _ddim(
    prior, guided: Callable, x: Tensor, guidance: Guidance | None, _solver: str, num_steps: int, on_step
) -> Tensor:
    """DDIM. The corrected variant uses trailing steps and ends at abar = 1; the reference's steps are leading and end at abar_0."""
    reference = guidance is not None and guidance.config.variant == "reference"
    steps = timesteps(num_steps, prior.num_train_timesteps, "leading" if reference else "trailing")
    alphas = prior.alphas_cumprod.to(x.device)
    for index, t in cut(list(enumerate(steps)), "denoising step"):
        last = index + 1 == len(steps)
        previous = (alphas[0] if reference else torch.ones_like(alphas[0])) if last else alphas[steps[index + 1]]
        eps = guided(x, t, alphas[t], index)
        if on_step:
            on_step(index, t, tweedie(x, eps, alphas[t]).clamp(-1, 1))
        x = ddim_step(x, eps, alphas[t], previous, variant="reference" if reference else "corrected")
    return x


def _multistep(
    prior, guided: Callable, x: Tensor, _guidance: Guidance | None, solver: str, num_steps: int, on_step
) -> Tensor:
    """A multistep solver of diffusers: it gets the guided noise, re-derived from the clamped estimate, so its history is guided too."""
    scheduler = make_scheduler(prior, solver, num_steps)
    alphas = prior.alphas_cumprod.to(x.device)
    for index, t in cut(list(enumerate(scheduler.timesteps.tolist())), "denoising step", most=1):
        eps = guided(x, t, alphas[t], index)
        x0 = tweedie(x, eps, alphas[t]).clamp(-1, 1)
        eps = noise_from_estimate(x, x0, alphas[t])
        if on_step:
            on_step(index, t, x0)
        x = scheduler.step(eps, t, x).prev_sample
    return x.clamp(-1, 1)


def make_scheduler(prior, solver: str, num_steps: int):
    """A fresh diffusers scheduler with the prior's own betas; multistep solvers keep a history, so never share one."""
    import numpy as np
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    alphas = prior.alphas_cumprod.double().cpu().numpy()
    betas = 1 - alphas / np.concatenate([[1.0], alphas[:-1]])
    kinds = {"dpmsolver++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    scheduler = kinds[solver](
        num_train_timesteps=prior.num_train_timesteps,
        trained_betas=betas,
        timestep_spacing="trailing",
        prediction_type="epsilon",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(num_steps)
    return scheduler
