"""Training a diffusion prior: the plain noise-estimation loss, resumable at any step."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.data.domains import PriorDomain, prior_domain
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.generators.diffusion import DiffusionPrior, build_prior, linear_alphas_cumprod, load_prior
from kdnb.progress import progress
from kdnb.randomness import generator_for, seed_everything
from kdnb.storage.cache import artifact
from kdnb.training.importers import match_weights, read_weights
from kdnb.training.resume import Resumable, stop_if_not_finite
from kdnb.training.schedules import warm_cosine


class PriorFit(NamedTuple):
    """A trained prior.

    Attributes:
        prior: with averaged weights.
        losses: (steps,) epsilon losses, on the CPU.
    """

    prior: DiffusionPrior
    losses: Tensor


def ema_decay_at(step: int, ema_decay: float) -> float:
    """min(ema_decay, (1 + step) / (10 + step)): early averages forget the random initial weights quickly.

    >>> ema_decay_at(0, 0.995), ema_decay_at(8, 0.995), ema_decay_at(5000, 0.995)
    (0.1, 0.5, 0.995)
    """
    return min(ema_decay, (1 + step) / (10 + step))


def train_prior(
    model: nn.Module,
    images: Tensor,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 8e-3,
    ema_decay: float = 0.995,
    seed: int = 0,
    folder: Path | None = None,
    alphas_cumprod: Tensor | None = None,
) -> PriorFit:
    """Train a denoiser on unlabelled images by the simple epsilon loss.

        L = E_{x_0, t, eps} mean (eps - model(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t))^2,   t uniform in 0..T-1

    AdamW with beta_2 = 0.99 (short runs: the default 0.999 remembers the first hundred steps for too long), linear warm-up over 5 % of
    the steps and a cosine to zero, gradient norm at most 1, exponential moving average of the weights with warm-up.
    A killed run continues from its last checkpoint and ends with the same bits: images, time steps and noise of a step depend on
    (seed, step) alone.

    Args:
        model: `model(x_t, t).sample` of x_t's shape; ends with the averaged weights, in eval mode, on the images' device.
        images: (N, C, H, W) in [-1, 1], the public split.
        steps, batch_size: optimiser steps and images per step (drawn with replacement).
        lr: peak learning rate.
        ema_decay: in [0, 1).
        seed: of the draws; also sets the global random state, for models with dropout.
        folder: for checkpoints; None: the work can't be resumed.
        alphas_cumprod: (T,) noise schedule; None: 1000 linear betas from 1e-4 to 0.02.
    Raises:
        InputError: no images, numbers out of range, or a folder with checkpoints of another recipe.
        FloatingPointError: the loss became infinite or NaN; the message names the step.

    Source: Ho, Jain, Abbeel, NeurIPS 2020, equation 14.
    """
    _check_prior(images, steps, batch_size, lr, ema_decay)
    recipe = {"steps": steps, "batch_size": batch_size, "lr": lr, "ema_decay": ema_decay, "seed": seed}
    alphas = linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
    alphas_device = alphas.to(images)

    model.to(images.device).train().requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99))
    seed_everything(seed)
    averages = [parameter.detach().clone() for parameter in parameters]
    start = {"averages": averages, "losses": torch.zeros(steps, device=images.device)}

    def check() -> None:
        stop_if_not_finite("diffusion prior", {"the loss": losses})

    parts = {"model": model, "optimizer": optimizer}
    work = Resumable(folder, parts, start, device=images.device, made_from=recipe, check=check)
    averages, losses = work["averages"], work["losses"]

    for step in progress(range(work.done, steps), "diffusion prior", steps, work.done):
        generator = generator_for(seed, "prior", step, device=images.device)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm_cosine(step, steps)
        losses[step] = _prior_step(model, optimizer, *_noisy_batch(images, alphas_device, batch_size, generator))
        torch._foreach_lerp_(averages, [part.detach() for part in parameters], 1 - ema_decay_at(step, ema_decay))
        work.save(step + 1)

    check()
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    return PriorFit(DiffusionPrior(model, alphas.to(images.device)), losses.cpu())


def _check_prior(images: Tensor, steps: int, batch_size: int, lr: float, ema_decay: float) -> None:
    if images.dim() != 4 or not len(images) or steps < 1 or batch_size < 1 or lr <= 0 or not 0 <= ema_decay < 1:
        raise InputError(
            f"a prior needs images (N, C, H, W), steps and batch_size >= 1, lr > 0 and 0 <= ema_decay < 1, got images "
            f"{tuple(images.shape)}, {steps}, {batch_size}, {lr} and {ema_decay}"
        )


def _prior_step(model: nn.Module, optimizer: torch.optim.Optimizer, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """One optimiser step on one batch; its loss."""
    loss = F.mse_loss(model(x_t, t).sample, eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _noisy_batch(
    images: Tensor, alphas_cumprod: Tensor, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and eps of one step, from one generator."""
    device = images.device
    x_0 = images[torch.randint(len(images), (batch_size,), generator=generator, device=device)]
    t = torch.randint(len(alphas_cumprod), (batch_size,), generator=generator, device=device)
    eps = torch.randn(x_0.shape, generator=generator, device=device, dtype=images.dtype)
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps, t, eps


def trained_prior(
    data: Dataset,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int = 0,
    architecture: str = "compact_unet",
    folder: str = "",
    domain: PriorDomain | None = None,
) -> tuple[DiffusionPrior, list[float]]:
    """A diffusion prior of the data set's *public* images, or of another domain, and its loss by step; trained once per recipe, then
    taken from the cache.

    Args:
        steps, batch_size, lr: of `train_prior`.
        architecture: name of `kdnb.generators.diffusion.PRIORS`.
        folder: a local diffusers folder to load instead, or a file of weights for `architecture` in any form that
            `kdnb.training.importers` reads; then nothing is trained and the loss is empty.
        domain: what the prior is trained on, see `kdnb.data.domains.prior_domain`; None: all public images.
    """
    device = data.public.device
    if folder and Path(folder).is_file():
        return _prior_from_file(Path(folder), architecture, data).to(device), []
    if folder:
        return load_prior(Path(folder)).to(device), []
    domain = domain or prior_domain(data)
    recipe = {
        "architecture": architecture,
        "dataset": data.name,
        "image_size": data.image_size,
        "domain": domain.identity,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
    }

    def make(progress_folder: Path) -> dict:
        seed_everything(seed)
        model = build_prior(architecture, data.channels, data.image_size)
        fit = train_prior(
            model, domain.images, steps=steps, batch_size=batch_size, lr=lr, seed=seed, folder=progress_folder
        )
        return {"model": model.state_dict(), "losses": fit.losses}

    state = artifact("prior", recipe, make)
    model = build_prior(architecture, data.channels, data.image_size)
    model.load_state_dict(state["model"])
    return DiffusionPrior(model).to(device), state["losses"].tolist()


def _prior_from_file(path: Path, architecture: str, data: Dataset) -> DiffusionPrior:
    """Weights alone say nothing of a schedule: it is the linear one, and the noise is estimated."""
    model = build_prior(architecture, data.channels, data.image_size)
    wanted = f"{architecture} of {data.channels}x{data.image_size}x{data.image_size}"
    model.load_state_dict(match_weights(read_weights(path), model.state_dict(), "", f"file {path.name}", wanted))
    return DiffusionPrior(model)
