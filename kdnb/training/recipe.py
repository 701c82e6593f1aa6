"""How a network is trained: the settings of plain training and distillation, and the learning rate as a function of the step."""

from dataclasses import dataclass

import torch

from kdnb.errors import InputError, check_name
from kdnb.training.schedules import cosine, multistep, one_cycle

SCHEDULES = ("one_cycle", "multistep", "cosine", "constant")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD, its schedule and its augmentation.

    Attributes:
        epochs, batch_size: passes over the data and images per step; a last batch of one image is dropped (batch norm).
        lr, momentum, nesterov, weight_decay: SGD.
        schedule: "one_cycle" (cosine up over the first quarter, cosine down to lr/250,000), "multistep", "cosine" (per epoch), "constant".
        milestones, lr_gamma: multistep: epochs (zero-based) from which on the rate is multiplied by lr_gamma.
        final_lr: end of the cosine.
        warmup_epochs: linear warm-up over so many epochs, for multistep and cosine.
        crop_padding, flip: augmentation, in pixels and as a yes or no.
        clip_norm: global gradient norm limit, None for none.
        precision: "fp32", "bf16" or "fp16" autocast.
        layout: "contiguous" or "channels_last" (faster for stages of 8 channels and more; crashes torch 2.15 on a CPU below that).
        compile: torch.compile the student.
        ema_decay: evaluate an exponential moving average of the weights of student and adapters; None for none.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
    milestones: tuple[int, ...] = ()
    lr_gamma: float = 0.1
    final_lr: float = 0.0
    warmup_epochs: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    clip_norm: float | None = None
    precision: str = "fp32"
    layout: str = "contiguous"
    compile: bool = False
    ema_decay: float | None = None
    eval_every: int = 1

    def __post_init__(self):
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("precision", self.precision, PRECISIONS)
        check_name("layout", self.layout, LAYOUTS)
        if self.epochs < 1 or self.batch_size < 2 or self.lr <= 0 or self.eval_every < 1:
            raise InputError(
                f"a recipe needs epochs >= 1, batch_size >= 2, lr > 0 and eval_every >= 1, got {self.epochs}, "
                f"{self.batch_size}, {self.lr}, {self.eval_every}"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InputError(f"milestones must rise, got {list(self.milestones)}")


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (zero-based): a pure function, so there is no scheduler state to lose."""
    epoch = step // steps_per_epoch
    if recipe.schedule == "one_cycle":
        return one_cycle(recipe.lr, step, recipe.epochs * steps_per_epoch)
    rate = recipe.lr
    if recipe.schedule == "multistep":
        rate = multistep(recipe.lr, recipe.lr_gamma, recipe.milestones, epoch)
    elif recipe.schedule == "cosine":
        rate = cosine(recipe.lr, recipe.final_lr, epoch / recipe.epochs)
    if step < recipe.warmup_epochs * steps_per_epoch:
        rate *= (step + 1) / (recipe.warmup_epochs * steps_per_epoch)
    return rate
