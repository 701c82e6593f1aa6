"""The diffusion prior: an unconditional denoiser that a sampler can query, trained here or loaded from a folder of diffusers.

The forward process is x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps with eps ~ N(0, I); the prior estimates eps from x_t and t.
Whatever the model was trained to predict, samplers see `DiffusionPrior.epsilon` and `alphas_cumprod` and nothing else.
diffusers takes seconds to import and is imported inside the functions that need it.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.checkpoints import Checkpointer
from kdnb.errors import InputError, check_name
from kdnb.progress import progress
from kdnb.randomness import generator_for, random_state, seed_everything, set_random_state

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_SAVE_EVERY = 20.0  # seconds between checkpoints; what a kill can cost. Results do not depend on it.


# --- the prior as samplers see it ----------------------------------------------------------------------------------------------

def linear_alphas_cumprod(num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """abar_t = prod_{s <= t} (1 - beta_s) for betas on a straight line, (T,) float32 computed in float64.

    Source: Ho, Jain, Abbeel, NeurIPS 2020, section 4 (the default values).
    """
    betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float()


@dataclass
class DiffusionPrior:
    """A frozen denoiser in eval mode with its noise schedule.

    Attributes:
        model: `model(x_t, t).sample` of x_t's shape (a learned variance may follow as further channels and is ignored).
        alphas_cumprod: (T,) abar_t, falling, in (0, 1).
        prediction_type: what the model emits: "epsilon", "v_prediction" (v = sqrt(abar) eps - sqrt(1 - abar) x_0) or "sample" (x_0).
    Raises:
        InputError: an unknown prediction type, or a schedule that is not a falling sequence inside (0, 1).
    """

    model: nn.Module
    alphas_cumprod: Tensor = field(default_factory=linear_alphas_cumprod)
    prediction_type: str = "epsilon"

    def __post_init__(self):
        check_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        alphas = self.alphas_cumprod
        if alphas.dim() != 1 or not bool(((alphas > 0) & (alphas < 1)).all() and (alphas.diff() < 0).all()):
            raise InputError("alphas_cumprod must fall from step to step and stay inside (0, 1); a schedule that ends at zero signal "
                             "(rescale_betas_zero_snr) has no x0 estimate from epsilon there")
        self.model.eval().requires_grad_(False)

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def epsilon(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The estimate of the noise in x_t; gradients flow to x_t if asked for.

            epsilon: eps = y      v_prediction: eps = sqrt(abar) y + sqrt(1 - abar) x_t      sample: eps = (x_t - sqrt(abar) y) / sqrt(1 - abar)

        Args:
            x_t: (B, C, H, W) noisy images.
            t: time step in 0..T-1, one for all or (B,) int64.
        Returns:
            (B, C, H, W).

        Source: Ho, Jain, Abbeel, NeurIPS 2020, equation 4; Salimans, Ho, ICLR 2022, appendix D (v).
        """
        steps = t.expand(len(x_t)) if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        y = self.model(x_t, steps).sample[:, : x_t.shape[1]]
        if self.prediction_type == "epsilon":
            return y
        alpha_bar = self.alphas_cumprod.to(x_t)[steps].view(-1, 1, 1, 1)
        if self.prediction_type == "v_prediction":
            return alpha_bar.sqrt() * y + (1 - alpha_bar).sqrt() * x_t
        return (x_t - alpha_bar.sqrt() * y) / (1 - alpha_bar).sqrt()

    def to(self, device: str | torch.device) -> "DiffusionPrior":
        self.model.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self


# --- building ------------------------------------------------------------------------------------------------------------------

def _compact_unet(channels: int, image_size: int, shuffle: int = 2, widths=(32, 32), layers: int = 1, norm_groups: int = 8) -> nn.Module:
    from kdnb.generators.compact_unet import CompactUNet

    return CompactUNet(image_size, channels, shuffle, tuple(widths), layers, norm_groups)


def _unet(channels: int, image_size: int, widths=(128, 256, 256, 256), layers: int = 2, norm_groups: int = 32) -> nn.Module:
    """The layout of Ho et al. for CIFAR: attention at the second resolution (16x16 for 32x32 images)."""
    from diffusers import UNet2DModel

    down = ["AttnDownBlock2D" if level == 1 else "DownBlock2D" for level in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNet2DModel(sample_size=image_size, in_channels=channels, out_channels=channels, block_out_channels=tuple(widths),
                       layers_per_block=layers, norm_num_groups=norm_groups, down_block_types=tuple(down), up_block_types=tuple(up))


PRIORS: dict[str, Callable[..., nn.Module]] = {
    "compact_unet": _compact_unet,  # CPU: digits in under a minute
    "unet": _unet,                  # GPU: 35.7M parameters at its defaults
}


def build_prior(name: str, channels: int, image_size: int, **kwargs) -> nn.Module:
    """A fresh, untrained denoiser: a model of diffusers, `model(x_t, t).sample` has the shape of x_t.

    Args:
        name: one of `PRIORS`.
        channels, image_size: C and H = W of the images.
        kwargs: `widths`, `layers`, `norm_groups`, and for compact_unet `shuffle`; see `CompactUNet`.
    Returns:
        The model, initialised from torch's global random state.
    Raises:
        InputError: an unknown name, or sizes that do not divide.
    """
    maker = PRIORS[check_name("prior", name, PRIORS)]
    defaults = dict(zip(maker.__code__.co_varnames[2:maker.__code__.co_argcount], maker.__defaults__, strict=True))
    for key in kwargs:
        check_name(f"argument of prior {name}", key, defaults)
    chosen = defaults | kwargs
    stride = chosen.get("shuffle", 1) * 2 ** (len(chosen["widths"]) - 1)
    if image_size % stride:
        raise InputError(f"prior {name} with these widths needs an image_size divisible by {stride}, got {image_size}")
    if any(width % chosen["norm_groups"] for width in chosen["widths"]):
        raise InputError(f"widths must be divisible by norm_groups, got {list(chosen['widths'])} and {chosen['norm_groups']}")
    return maker(channels, image_size, **kwargs)


# --- training ------------------------------------------------------------------------------------------------------------------

class PriorFit(NamedTuple):
    """A trained prior (averaged weights) and the (steps,) epsilon losses on the CPU."""

    prior: DiffusionPrior
    losses: Tensor


def warm_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor of the learning rate at zero-based `step`: a linear rise over the share `warmup` of all steps, then a cosine to zero.

    >>> [round(warm_cosine(step, 12, warmup=0.25), 3) for step in (0, 1, 2, 3, 7, 11)]
    [0.333, 0.667, 1.0, 0.97, 0.587, 0.03]
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / (steps + 1 - rise)))


def ema_decay_at(step: int, ema_decay: float) -> float:
    """min(ema_decay, (1 + step) / (10 + step)): early averages forget the random initial weights quickly.

    >>> ema_decay_at(0, 0.995), ema_decay_at(8, 0.995), ema_decay_at(5000, 0.995)
    (0.1, 0.5, 0.995)
    """
    return min(ema_decay, (1 + step) / (10 + step))


def train_prior(
    model: nn.Module, images: Tensor, *, steps: int, batch_size: int = 32, lr: float = 6e-3, ema_decay: float = 0.995, seed: int = 0,
    folder: Path | None = None, alphas_cumprod: Tensor | None = None,
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
    if images.dim() != 4 or not len(images) or steps < 1 or batch_size < 1 or lr <= 0 or not 0 <= ema_decay < 1:
        raise InputError(f"a prior needs images (N, C, H, W), steps and batch_size >= 1, lr > 0 and 0 <= ema_decay < 1, got images "
                         f"{tuple(images.shape)}, {steps}, {batch_size}, {lr} and {ema_decay}")
    recipe = {"steps": steps, "batch_size": batch_size, "lr": lr, "ema_decay": ema_decay, "seed": seed}
    alphas = linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
    alphas_device = alphas.to(images)

    model.to(images.device).train().requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99))
    averages = [parameter.detach().clone() for parameter in parameters]
    losses = torch.zeros(steps, device=images.device)
    seed_everything(seed)
    saver = Checkpointer(folder)
    restored = saver.load()
    start = _restore(restored[1], recipe, model, optimizer, averages, losses) if restored else 0
    saved = time.monotonic()

    for step in progress(range(start, steps), "diffusion prior", steps, start):
        x_t, t, eps = _noisy_batch(images, alphas_device, batch_size, generator_for(seed, "prior", step, device=images.device))
        loss = F.mse_loss(model(x_t, t).sample, eps)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm_cosine(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1 - ema_decay_at(step, ema_decay))
        losses[step] = loss.detach()
        if folder is not None and time.monotonic() - saved > _SAVE_EVERY:
            _stop_if_not_finite(losses)
            saver.save(step + 1, _snapshot(step + 1, recipe, model, optimizer, averages, losses))
            saved = time.monotonic()

    _stop_if_not_finite(losses)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    return PriorFit(DiffusionPrior(model, alphas.to(images.device)), losses.cpu())


def _noisy_batch(images: Tensor, alphas_cumprod: Tensor, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and eps of one step, from one generator."""
    device = images.device
    x_0 = images[torch.randint(len(images), (batch_size,), generator=generator, device=device)]
    t = torch.randint(len(alphas_cumprod), (batch_size,), generator=generator, device=device)
    eps = torch.randn(x_0.shape, generator=generator, device=device, dtype=images.dtype)
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps, t, eps


def _snapshot(step: int, recipe: dict, model: nn.Module, optimizer, averages: list[Tensor], losses: Tensor) -> dict:
    return {"step": step, "recipe": recipe, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "averages": averages,
            "losses": losses, "random": random_state()}


def _restore(state: dict, recipe: dict, model: nn.Module, optimizer, averages: list[Tensor], losses: Tensor) -> int:
    """Put a snapshot back and return the number of steps done."""
    if state["recipe"] != recipe:
        raise InputError(f"the folder holds checkpoints of another recipe: {state['recipe']}, asked for {recipe}; empty it or use another")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for average, saved in zip(averages, state["averages"], strict=True):
        average.copy_(saved)
    losses.copy_(state["losses"])
    set_random_state(state["random"])
    return state["step"]


def _stop_if_not_finite(losses: Tensor) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise FloatingPointError(f"diffusion prior: the loss became infinite or NaN at step {int(bad[0])}; the last checkpoint is from "
                                 "before. Lower lr.")
