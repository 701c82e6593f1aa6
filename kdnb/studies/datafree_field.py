"""The field of data-free distillation in one loop: each method's settings by data set, its student's loss, and a run.

Settings of "cifar10" are those published (CIFAR-10 scripts of the CMI, Fast-Datafree, NAYER and SpaceshipNet repositories, one round a
batch of images; one-step methods have one round a generator step, so that 80 rounds are the benchmark's epoch of 400 student steps).
Settings of "digits" are ours: 16x16 images, half a minute on one CPU thread.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.losses import kd_loss
from kdnb.losses.disagreement import class_activation_loss, disagreement_l1_loss, element_mean_kl
from kdnb.randomness import seed_everything
from kdnb.samplers.field import METHODS, method
from kdnb.samplers.inversion import Problem, require_features
from kdnb.samplers.supply import FreshSupply, PoolSupply, Supply
from kdnb.studies.datafree_loop import GeneratorResult, LoopConfig, distil_from_synthesizer

STUDENT_LOSSES = ("kd", "l1", "kl_cam")


@dataclass(frozen=True)
class StudentConfig(LoopConfig):
    """The student's schedule and what it learns from.

    Attributes:
        batch_size: images a step. pool_size: images that a pool holds.
        loss: "kd": KD at `temperature`; "l1": mean |S - T| (DFAD); "kl_cam": tau^2 KL / K and class-activation maps (SpaceshipNet, whose
            further term, Grad-CAM of earlier stages with constant weights, is left out).
        temperature: tau. The benchmark's scripts ask for 20 in one-step methods too, but its code then uses 1.
        crop_padding, flip: what teacher and student see.
    """

    batch_size: int = 256
    pool_size: int = 51_200
    loss: str = "kd"
    temperature: float = 20.0
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_name("student loss", self.loss, STUDENT_LOSSES)
        if self.batch_size < 2 or self.pool_size < self.batch_size or self.temperature <= 0:
            raise InputError(
                f"need batch_size >= 2, pool_size >= batch_size and temperature > 0, got {self.batch_size}, "
                f"{self.pool_size} and {self.temperature}"
            )


class Setting(NamedTuple):
    """All constants of one method on one data set.

    Attributes:
        synthesis: the method's own config.
        student: the student's.
    """

    synthesis: object
    student: StudentConfig


_ONE_STEP = StudentConfig(epochs=16_000, student_steps=5, temperature=1.0, crop_padding=0, flip=False, eval_every=80)
_PUBLISHED = {  # student settings; those of synthesis are in `samplers.field`
    "dafl": _ONE_STEP,
    "zskt": _ONE_STEP,
    "dfad": replace(_ONE_STEP, loss="l1"),
    "dfq": replace(_ONE_STEP, epochs=8000, student_steps=10, eval_every=40),
    "deepinversion": StudentConfig(),
    "adaptive_deepinversion": StudentConfig(),
    "cmi": StudentConfig(batch_size=128),
    "fast": StudentConfig(epochs=220, warmup=20, lr=0.2, pool_size=56_320),
    "nayer": StudentConfig(epochs=120, warmup=20, lr=0.2, batch_size=512, pool_size=160_000),
    "spaceshipnet": StudentConfig(student_steps=2000, loss="kl_cam", temperature=30.0),
}

_FEW = StudentConfig(
    epochs=80, student_steps=5, batch_size=64, temperature=1.0, crop_padding=0, flip=False, eval_every=20
)
_MANY = replace(
    _FEW, epochs=200, eval_every=50
)  # without batch norm to hold on to, a faster generator outruns the student
_POOLED = StudentConfig(
    epochs=8,
    student_steps=50,
    batch_size=64,
    pool_size=2560,
    temperature=4.0,
    crop_padding=2,
    flip=False,
    eval_every=4,
)
_SMALL = {"latent_dim": 64, "width": 16, "batch_size": 64}
_SEEN = {"crop_padding": 2, "flip": False}


def _with(name: str, **changes):
    config: Any = METHODS[name].config
    return replace(config, **changes)


SETTINGS: dict[str, dict[str, Setting]] = {
    "cifar10": {name: Setting(METHODS[name].config, student) for name, student in _PUBLISHED.items()},
    "digits": {
        "dafl": Setting(_with("dafl", **_SMALL), _MANY),
        "zskt": Setting(_with("zskt", **_SMALL), _MANY),
        "dfad": Setting(_with("dfad", **_SMALL), replace(_MANY, loss="l1")),
        "dfq": Setting(_with("dfq", **_SMALL, lr=4e-3), _FEW),
        "deepinversion": Setting(
            _with("deepinversion", batch_size=64, stages=((1, 40),), bn_weight=1.0, roll=2, flip=False), _POOLED
        ),
        "adaptive_deepinversion": Setting(
            _with("adaptive_deepinversion", batch_size=64, stages=((1, 40),), bn_weight=1.0, roll=2, flip=False),
            _POOLED,
        ),
        "cmi": Setting(
            _with("cmi", **_SMALL, **_SEEN, num_steps=30, lr=1e-2, head_width=64, bank_size=1024, negatives=256),
            _POOLED,
        ),
        "fast": Setting(
            _with(
                "fast",
                **_SMALL,
                **_SEEN,
                lr_generator=4e-3,
                bn_weight=1.0,
                oh_weight=1.0,
                adv_weight=1.0,
                warmup=2,
                bn_momentum=0.0,
            ),
            replace(_POOLED, epochs=16, student_steps=30, warmup=2),
        ),
        "nayer": Setting(
            _with(
                "nayer",
                **_SEEN,
                embedding_width=64,
                noisy_width=64,
                width=16,
                batch_size=60,
                num_steps=30,
                bn_weight=1.0,
                oh_weight=1.0,
                adv_weight=1.0,
                bn_momentum=0.0,
                warmup=1,
                warmup_loops=2,
                loops=1,
                life=4,
            ),
            replace(_POOLED, warmup=1),
        ),
        "spaceshipnet": Setting(
            _with("spaceshipnet", **_SMALL, **_SEEN, num_steps=30, lr=4e-3, pool_size=1024),
            replace(_POOLED, loss="kl_cam"),
        ),
    },
}


def setting(name: str, data: Dataset) -> Setting:
    """The settings of a method for a data set; those published for CIFAR-10 where the table has none.

    Raises:
        InputError: unknown method.
    """
    method(name)
    return SETTINGS.get(data.name, SETTINGS["cifar10"])[name]


def distil_by(
    name: str,
    teacher: nn.Module,
    student: nn.Module,
    data: Dataset,
    chosen: Setting | None = None,
    *,
    embeddings: Tensor | None = None,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str | None = None,
) -> GeneratorResult:
    """Train a student without data by the named method; it is left as after the last round, in eval mode.

    Args:
        name: of `samplers.field.METHODS`.
        teacher: in eval mode, never updated; of images in [-1, 1]. student: trained.
        data: its test images evaluate; of the rest only shape, classes and normalisation are used.
        chosen: default `setting(name, data)`.
        embeddings: (K, D) of the class names, NAYER only; without them fixed random vectors are used.
        seed: of the generator and of every draw.
        folder, log, description: of `distil_from_synthesizer`.
    Raises:
        InputError: unknown method, impossible sizes, a teacher without batch norm where its statistics are needed or without features
            where those are, embeddings for another method than NAYER.
    """
    line, chosen = method(name), chosen or setting(name, data)
    if embeddings is not None and name != "nayer":
        raise InputError(f"class embeddings are for nayer, {name} has no use for them")
    device, config = data.test.device, chosen.student
    teacher.to(device).eval()
    student.to(device)
    if config.loss == "kl_cam":
        require_features(teacher, "SpaceshipNet")
        require_features(student, "SpaceshipNet")
    seed_everything(seed)
    shape = (data.channels, data.image_size, data.image_size)
    problem = Problem(teacher, student, shape, data.num_classes, data.spec.mean, data.spec.std)
    given = () if embeddings is None else (embeddings.to(device),)
    synthesizer = line.build(problem, chosen.synthesis, *given)
    supply: Supply = (
        PoolSupply(config.pool_size, shape, device, config.crop_padding, config.flip, folder)
        if line.supply == "pool"
        else FreshSupply(synthesizer, config.crop_padding, config.flip)
    )
    return distil_from_synthesizer(
        student,
        synthesizer,
        supply,
        partial(student_loss, teacher, student, supply, config),
        data.test,
        config,
        seed=seed,
        folder=folder,
        log=log,
        description=description or f"{name}, seed {seed}",
    )


def student_loss(
    teacher: nn.Module, student: nn.Module, supply: Supply, config: StudentConfig, rng: torch.Generator
) -> Tensor:
    """The student's loss on one batch of the supply; the teacher is a constant."""
    images = supply(config.batch_size, rng)
    if config.loss == "kl_cam":
        with torch.no_grad():
            seen_t = teacher(images, return_features=True)
        seen_s = student(images, return_features=True)
        maps = seen_s.final_map, seen_t.final_map, student.head.weight, teacher.head.weight.detach()
        return element_mean_kl(seen_s.logits, seen_t.logits, config.temperature) + class_activation_loss(*maps)
    with torch.no_grad():
        logits_t = teacher(images)
    logits_s = student(images)
    if config.loss == "l1":
        return -disagreement_l1_loss(logits_s, logits_t)
    return kd_loss(logits_s, logits_t, config.temperature)
