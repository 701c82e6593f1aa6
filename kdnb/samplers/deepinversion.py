"""DeepInversion and Adaptive DeepInversion: the pixels themselves are optimised until the teacher sees the class and its batch-norm
statistics fit.

    L = w_oh CE(T(x), y) + w_bn (a r_1 + sum_{l>1} r_l) + w_tv1 TV_1(x) + w_tv2 TV_2(x) + w_l2 ||x|| + w_adv (1 - JS(S(x), T(x)))

x is held in normalised units, in which the published weights, rates and the start N(0, 1) are stated, and is rolled by a common random
shift (and mirrored) before every look. `Denormalize` makes images of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError, check_name
from kdnb.generators.normalized import Denormalize
from kdnb.losses.datafree import batch_norm_loss, one_hot_loss, total_variation_l1, total_variation_l2
from kdnb.losses.pixel_priors import adaptive_loss, clip_pixels, l2_prior
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.rehearsal import cut
from kdnb.samplers.inversion import (
    Cheapest,
    Problem,
    draw_classes,
    require_batch_norm,
    require_sizes,
    stack_losses,
    weigh,
)
from kdnb.samplers.synthesizer import Synthesis

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class PixelConfig:
    """Constants of the inversion; the defaults are the CIFAR script of NVlabs/DeepInversion, whose authors call lr 0.1 and TV 1e-3 better.

    Attributes:
        batch_size: B. stages: (reduction, iterations) pairs, one after the other: at reduction 2 the terms see 2x2 means.
        lr, betas: of Adam, fresh in every stage. schedule: "constant", or "cosine" after a linear warm-up of `rate_warmup` iterations.
        oh_weight, bn_weight, tv_l1_weight, tv_l2_weight, l2_weight, adv_weight: of the module's equation; adv_weight > 0 is Adaptive
            DeepInversion. first_bn_multiplier: a.
        roll: largest shift in pixels, divided by the reduction. flip: mirror with probability 1/2.
        clip: keep the pixels between black and white after every step.
    """

    batch_size: int = 256
    stages: tuple[tuple[int, int], ...] = ((1, 2000),)
    lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    rate_warmup: int = 100
    oh_weight: float = 1.0
    bn_weight: float = 10.0
    first_bn_multiplier: float = 1.0
    tv_l1_weight: float = 0.0
    tv_l2_weight: float = 2.5e-5
    l2_weight: float = 0.0
    adv_weight: float = 0.0
    roll: int = 2
    flip: bool = False
    clip: bool = False

    def __post_init__(self):
        check_name("schedule", self.schedule, SCHEDULES)
        require_sizes(batch_size=self.batch_size, stages=len(self.stages))
        for reduction, iterations in self.stages:
            require_sizes(reduction=reduction, iterations=iterations)


# NVlabs/DeepInversion, ImageNet script: half size, then full size.
IMAGENET = PixelConfig(
    stages=((2, 2000), (1, 1000)),
    lr=0.25,
    betas=(0.5, 0.9),
    schedule="cosine",
    bn_weight=0.01,
    first_bn_multiplier=10.0,
    tv_l2_weight=1e-4,
    l2_weight=1e-5,
    roll=30,
    flip=True,
    clip=True,
)
# The CMI benchmark's "DeepInv" on CIFAR, without and with the student; its adversarial term is -JS, here 1 - JS: the same gradient.
CIFAR_BENCHMARK = PixelConfig(
    stages=((1, 1000),),
    lr=0.1,
    betas=(0.5, 0.99),
    tv_l1_weight=1e-3,
    tv_l2_weight=0.0,
    roll=4,
    flip=True,
    clip=True,
)
ADAPTIVE_BENCHMARK = replace(CIFAR_BENCHMARK, adv_weight=1.0)


def pixel_rate(config: PixelConfig, step: int, iterations: int) -> float:
    """Learning rate of a zero-based iteration of a stage: lr, or lr (step + 1) / warm-up, then lr (1 + cos(pi share)) / 2."""
    if config.schedule == "constant":
        return config.lr
    if step < config.rate_warmup:
        return config.lr * (step + 1) / config.rate_warmup
    share = (step - config.rate_warmup) / (iterations - config.rate_warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * share))


class Descent(NamedTuple):
    """What a descent in pixels left.

    Attributes:
        losses: name -> (steps,), before each step.
        best: (B, C, H, W) with the lowest total.
        last: (B, C, H, W) after the last step, not clipped.
    """

    losses: dict[str, Tensor]
    best: Tensor
    last: Tensor


class PixelSynthesizer:
    """One call = one batch inverted from noise.

    Args:
        teacher: classifier with batch norm, of images in [-1, 1]; student: competes if `adv_weight` > 0. Both frozen, in evaluation mode.
        image_shape: (C, H, W); num_classes: K.
        mean, std: normalisation of the data, one float a channel.
        config: constants. norm: the l2 prior; `l2_prior_batch` in the CIFAR script, with weight 0.
        competition: `adaptive_loss`, or `adaptive_loss_released`.
    Raises:
        InputError: no batch norm, a size that no reduction divides, mean and std that do not fit the channels.

    What is returned is the iterate of lowest loss, with values cut to [-1, 1]; the released codes return the last one by mistake (their
    best images are the optimised variable itself, or its next value).

    Source: Yin et al., CVPR 2020.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        image_shape: tuple[int, int, int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        config: PixelConfig,
        norm: Callable[[Tensor], Tensor] = l2_prior,
        competition: Callable[[Tensor, Tensor], Tensor] = adaptive_loss,
    ):
        require_batch_norm(teacher, "DeepInversion")
        if len(mean) != image_shape[0]:
            raise InputError(f"images have {image_shape[0]} channels, mean has {len(mean)}")
        for reduction, _ in config.stages:
            if any(size % reduction for size in image_shape[1:]):
                raise InputError(f"a reduction of {reduction} does not divide images of {image_shape[1:]} pixels")
        self.teacher, self.student, self.config = teacher, student, config
        self.image_shape, self.num_classes, self.mean, self.std = image_shape, num_classes, tuple(mean), tuple(std)
        self.norm, self.competition = norm, competition
        like = next(teacher.parameters())
        self.denormalize = Denormalize(mean, std).to(device=like.device, dtype=like.dtype)
        names = ("oh", "bn", "tv_l1", "tv_l2", "l2", "adv")
        self.weights = {name: weight for name in names if (weight := getattr(config, f"{name}_weight"))}

    def __call__(self, rng: torch.Generator | None = None) -> Synthesis:
        like, config = next(self.teacher.parameters()), self.config
        labels = draw_classes(config.batch_size, self.num_classes, rng, like.device)
        shape = (config.batch_size, *self.image_shape)
        best = torch.randn(shape, generator=rng, device=like.device).to(like.dtype)
        losses = []
        for reduction, iterations in config.stages:
            reach = config.roll // reduction
            shifts = torch.randint(-reach, reach + 1, (iterations, 2), generator=rng, device=like.device).tolist()
            flips = (torch.rand(iterations, generator=rng, device=like.device) < 0.5).tolist()
            rates = [pixel_rate(config, step, iterations) for step in range(iterations)]
            found = self.descend(best, labels, rates, shifts, flips if config.flip else [False] * iterations, reduction)
            losses.append(found.losses)
            best = found.best
        images = self.denormalize(best).clamp(-1.0, 1.0)
        return Synthesis(images, labels, {name: torch.cat([part[name] for part in losses]) for name in losses[0]})

    def descend(
        self,
        x: Tensor,
        labels: Tensor,
        rates: Sequence[float],
        shifts: Sequence[Sequence[int]],
        flips: Sequence[bool],
        reduction: int = 1,
    ) -> Descent:
        """One stage of Adam on pixels.

        Args:
            x: (B, C, H, W) start, normalised units. labels: (B,) wanted classes.
            rates, shifts, flips: learning rate, (rows, columns) in pixels of the reduced image and mirroring of every iteration.
            reduction: side of the squares whose means are judged.
        """
        x = x.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([x], betas=self.config.betas)
        cheapest, history = Cheapest(), []
        with frozen(self.teacher, self.student), BatchNormProbe(self.teacher) as probe:
            looks = list(enumerate(zip(rates, shifts, flips, strict=True)))
            for step, (rate, shift, flip) in cut(looks, "pixel step"):
                if self.config.clip and step:
                    with torch.no_grad():
                        x.copy_(clip_pixels(x, self.mean, self.std))
                losses = self.losses(x, labels, probe, shift, flip, reduction)
                cheapest.offer(losses["total"], x)
                history.append({name: value.detach() for name, value in losses.items()})
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                losses["total"].backward()
                optimizer.step()
        return Descent(stack_losses(history), cheapest.tensors[0], x.detach())

    def losses(
        self, x: Tensor, labels: Tensor, probe: BatchNormProbe, shift: Sequence[int], flip: bool, reduction: int = 1
    ) -> dict[str, Tensor]:
        """All terms of weight > 0 and their `total`, on the reduced, rolled and mirrored pixels; differentiable in x."""
        seen = F.avg_pool2d(x, reduction) if reduction > 1 else x
        seen = seen.roll(tuple(shift), dims=(2, 3))
        seen = seen.flip(3) if flip else seen
        images = self.denormalize(seen)
        logits_t = self.teacher(images)
        terms = {
            "oh": lambda: one_hot_loss(logits_t, labels),
            "bn": lambda: batch_norm_loss(
                probe.means,
                probe.variances,
                probe.running_means,
                probe.running_variances,
                first_layer_weight=self.config.first_bn_multiplier,
            ),
            "tv_l1": lambda: total_variation_l1(seen),
            "tv_l2": lambda: total_variation_l2(seen),
            "l2": lambda: self.norm(seen),
            "adv": lambda: self.competition(self.student(images), logits_t),
        }
        return weigh({name: terms[name]() for name in self.weights}, self.weights)

    def state_dict(self) -> dict:
        """Nothing outlives a call."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def build(problem: Problem, config: PixelConfig) -> PixelSynthesizer:
    return PixelSynthesizer(*problem, config)
