"""Distillation without the teacher's data: the online loop of Fast-AD.

    for every epoch:   labels ~ U{0..K-1};  images = source(labels);  buffer.push(images)          synthesis and buffer phase
                       repeat: x ~ buffer;  student <- SGD on KD_tau(student(x), teacher(x))        student phase

The source is whatever makes images: a guided or unguided diffusion sampler, noise, real images. All sources get the same budget.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdnb.choices import LAYOUTS
from kdnb.data.augmentation import augment
from kdnb.data.splits import OrderedSplit
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.generators.fitting import FittedTeacher, fit_images, native_shape
from kdnb.losses import kd_loss
from kdnb.parameters import group
from kdnb.progress import progress
from kdnb.randomness import generator_for, seed_everything
from kdnb.samplers.cadr import Guidance, GuidanceConfig
from kdnb.samplers.diffusion import sample
from kdnb.samplers.replay_buffer import ReplayBuffer
from kdnb.training.evaluation import evaluate
from kdnb.training.loop import check_layout
from kdnb.training.recipe import MEMORY_FORMATS
from kdnb.training.resume import Resumable
from kdnb.training.schedules import multistep
from kdnb.training.student_phase import student_phase

# labels (B,) and a generator -> images (B, C, H, W) in [-1, 1]
Source = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class OnlineConfig:
    """Constants of the online loop; the defaults are the published CIFAR-100 setting.

    Attributes:
        epochs: rounds of synthesis and student training.
        images_per_epoch: new images a round.
        total_images: stop making images when so many were made; None: never.
        student_steps, batch_size: SGD steps a round and images a step.
        buffer_size: capacity of the replay buffer.
        temperature: tau of the distillation loss; labels are never trained on.
        lr, momentum, weight_decay, milestones, lr_gamma: SGD and its steps, in epochs that had a student phase.
        crop_padding, flip: augmentation of buffer images (the released code has none).
        balanced: labels cycle through the classes instead of being drawn uniformly.
        eval_every: epochs between evaluations; the last is always evaluated.
        layout: memory format of the student, as in `kdnb.training.recipe.Recipe`.
    """

    epochs: int = 200
    images_per_epoch: int = 64
    total_images: int | None = None
    student_steps: int = 100
    batch_size: int = 64
    buffer_size: int = 4096
    temperature: float = 4.0
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (100, 150)
    lr_gamma: float = 0.1
    crop_padding: int = 0
    flip: bool = False
    balanced: bool = False
    eval_every: int = 1
    layout: str = "contiguous"

    def __post_init__(self):
        check_name("layout", self.layout, LAYOUTS)
        positive = {
            "epochs": self.epochs,
            "images_per_epoch": self.images_per_epoch,
            "student_steps": self.student_steps,
            "batch_size": self.batch_size - 1,
            "buffer_size": self.buffer_size,
            "temperature": self.temperature,
            "lr": self.lr,
        }
        for name, value in positive.items():
            if value <= 0:
                raise InputError(f"{name} is too small for the online loop, got {getattr(self, name)}")


def online_config(data: Dataset, values: Mapping[str, Any]) -> OnlineConfig:
    """The online loop that a notebook's parameters describe: fields of `OnlineConfig` by their names, and over them those in `online`.

    Images for the student are augmented as the data set's recipes do unless `online` says `augment:false`, as published.
    """
    given = dict(values) | group(values, "online")
    augmented = given.get("augment", True)
    fields = {field.name for field in dataclasses.fields(OnlineConfig)}
    config = OnlineConfig(**{name: value for name, value in given.items() if name in fields})
    padding, flip = (data.crop_padding, data.spec.flip) if augmented else (0, False)
    return dataclasses.replace(config, milestones=tuple(config.milestones), crop_padding=padding, flip=flip)


# --- sources -------------------------------------------------------------------------------------------------------------------


def noise_source(image_shape: tuple[int, int, int]) -> Source:
    """Gaussian noise clamped to [-1, 1]: the control that knows nothing of the data."""

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(len(labels), *image_shape, generator=generator, device=labels.device).clamp(-1, 1)

    return draw


def pool_source(images: Tensor) -> Source:
    """Real images drawn without their labels: the reference for what the public split itself is worth."""

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        indices = torch.randint(len(images), (len(labels),), generator=generator, device=images.device)
        return images[indices]

    return draw


@contextmanager
def diffusion_source(
    prior,
    image_shape: tuple[int, int, int],
    *,
    teacher: nn.Module | None = None,
    guidance: GuidanceConfig | None = None,
    solver: str = "ddim",
    num_steps: int = 50,
):
    """A diffusion prior, guided by the teacher if `guidance` is given; a context manager because guidance holds hooks on the teacher.

    `image_shape` is the teacher's; a prior of another shape is sampled in its own and fitted, see `kdnb.generators.fitting`.
    """
    native = native_shape(prior, image_shape)
    if guidance is not None and native != tuple(image_shape):
        teacher = FittedTeacher(teacher, image_shape)
    guide = Guidance(teacher, guidance) if guidance is not None else None

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        images = sample(
            prior,
            labels,
            native,
            guidance=guide,
            solver=solver,
            num_steps=num_steps,
            generator=generator,
            batch_size=len(labels),
        ).images
        return fit_images(images.clamp(-1, 1), image_shape)

    try:
        yield draw
    finally:
        if guide is not None:
            guide.close()


# --- the loop ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlineResult:
    """What the online loop leaves.

    Attributes:
        history: one row an epoch.
        images, labels: last in the buffer.
        seconds: by phase.
    """

    history: list[dict]
    images: Tensor
    labels: Tensor
    seconds: dict[str, float]

    @property
    def last(self) -> dict:
        return self.history[-1]

    @property
    def best(self) -> dict:
        return max((row for row in self.history if "top1" in row), key=lambda row: row["top1"])


def draw_labels(count: int, num_classes: int, balanced: bool, generator: torch.Generator) -> Tensor:
    """Classes to ask for: uniform, or a shuffled cycle that holds each equally often (give or take one)."""
    device = generator.device
    if balanced:
        return (torch.arange(count, device=device) % num_classes)[
            torch.randperm(count, generator=generator, device=device)
        ]
    return torch.randint(num_classes, (count,), generator=generator, device=device)


def distil_online(
    teacher: nn.Module,
    student: nn.Module,
    source: Source,
    image_shape: tuple[int, int, int],
    num_classes: int,
    test: OrderedSplit,
    config: OnlineConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str = "data-free distillation",
) -> OnlineResult:
    """Run the loop of the module's head; the student is left with the weights of the last epoch.

    A killed run continues from `folder` with the same bits: student, optimiser, buffer, history and random state are in the
    checkpoint, and labels, noise, draws and crops are functions of (seed, epoch, step).
    While fewer images than a batch are stored, the student phase and its schedule wait, as in the released code.
    """
    device = test.device
    teacher.to(device).eval()
    check_layout(student, config.layout, device)
    student.to(device, memory_format=MEMORY_FORMATS[config.layout])
    optimizer = torch.optim.SGD(student.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    buffer = ReplayBuffer(config.buffer_size, image_shape, device)
    seed_everything(seed)
    # phases: epochs that had a student phase; made: images made
    start = {"history": [], "seconds": {"synthesis": 0.0, "student": 0.0}, "phases": 0, "made": 0}
    work = Resumable(folder, {"student": student, "optimizer": optimizer, "buffer": buffer}, start)
    history, seconds = work["history"], work["seconds"]
    enough = min(config.batch_size, config.buffer_size, config.total_images or config.batch_size)
    loss = partial(_loss, teacher, student, buffer, config)

    for epoch in progress(range(work.done, config.epochs), description, config.epochs, work.done):
        started = time.monotonic()
        wanted = (
            config.images_per_epoch
            if config.total_images is None
            else min(config.images_per_epoch, config.total_images - work["made"])
        )
        if wanted > 0:
            generator = generator_for(seed, "synthesis", epoch, device=device)
            labels = draw_labels(wanted, num_classes, config.balanced, generator)
            buffer.push(source(labels, generator), labels)
            work["made"] += wanted
        synthesized = time.monotonic()
        seconds["synthesis"] += synthesized - started

        row: dict = {"epoch": epoch + 1, "stored": len(buffer)}
        if len(buffer) >= enough:
            rate = multistep(config.lr, config.lr_gamma, config.milestones, work["phases"])
            row |= {
                "lr": rate,
                "kd": student_phase(
                    student, optimizer, loss, steps=config.student_steps, rate=rate, seed=seed, epoch=epoch
                ),
            }
            work["phases"] += 1
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
            row |= evaluate(student, test)
        history.append(row)
        seconds["student"] += time.monotonic() - synthesized
        if log:
            log(**row)
        work.save(epoch + 1, last=epoch + 1 == config.epochs)

    student.eval()
    return OnlineResult(history, *buffer.contents(), seconds)


def _loss(
    teacher: nn.Module, student: nn.Module, buffer: ReplayBuffer, config: OnlineConfig, rng: torch.Generator
) -> Tensor:
    """The distillation loss of one batch of the buffer."""
    images, _ = buffer.sample(config.batch_size, rng)
    images = augment(images, config.crop_padding, config.flip, rng)
    with torch.inference_mode():
        logits_t = teacher(images)
    images = images.contiguous(memory_format=MEMORY_FORMATS[config.layout])
    return kd_loss(student(images), logits_t.clone(), config.temperature)
