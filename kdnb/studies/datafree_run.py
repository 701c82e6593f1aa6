"""One run of a data-free method, whichever it is: distilled in the one loop, kept in the cache."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdnb.choices import DIFFUSION_SOURCES, REUSABLE_METHODS, SYNTHESIZERS
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.generators.reusable import Reuse
from kdnb.losses import kd_loss
from kdnb.losses.disagreement import class_activation_loss, disagreement_l1_loss, element_mean_kl
from kdnb.models import identity
from kdnb.randomness import seed_everything
from kdnb.samplers.field import method
from kdnb.samplers.inversion import Problem, require_features
from kdnb.samplers.source import SourceSynthesizer
from kdnb.samplers.supply import FreshSupply, PoolSupply, Supply
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import state_hash
from kdnb.studies.datafree_loop import GeneratorResult, distil_from_synthesizer
from kdnb.studies.datafree_settings import AEAHL_RG, Setting, StudentConfig, setting
from kdnb.studies.datafree_sources import Diffusion, source_of
from kdnb.studies.fast_ad import Source
from kdnb.studies.reusable_generator import generator_config, generator_task
from kdnb.training.teachers import Trained, fresh

KEPT = 512  # images of a run that stay with it, the newest
NO_CLASS_ASKED = ("dafl", "zskt", "dfad", "dfq", "noise")
"""Those whose labels are the teacher's own answers, or nothing."""


def distil_by(
    name: str,
    teacher: nn.Module,
    student: nn.Module,
    data: Dataset,
    chosen: Setting | None = None,
    *,
    source: Source | None = None,
    embeddings: Tensor | None = None,
    reuse: Reuse | None = None,
    made: Callable[[Any], object] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str | None = None,
) -> GeneratorResult:
    """Train a student without data by the named method; it is left as after the last round, in eval mode.

    Args:
        name: of `samplers.field.METHODS`, or with a `source` whatever that is called.
        teacher: in eval mode, never updated; of images in [-1, 1]. student: trained.
        data: its test images evaluate; of the rest only shape, classes and normalisation are used.
        chosen: default `setting(name, data)`.
        source: images that need no training, instead of a method's.
        embeddings: (K, D) of the class names, NAYER only; without them fixed random vectors are used.
        reuse: a generator of two branches, new or with parts of an earlier one; for the methods of `REUSABLE_METHODS`.
        made: told of the synthesiser before the work starts.
        seed: of the generator and of every draw.
        folder, log, description: of `distil_from_synthesizer`.
    Raises:
        InputError: unknown method, impossible sizes, a teacher without batch norm where its statistics are needed or without features
            where those are, embeddings for another method than NAYER, reuse for one without a generator.
    """
    chosen = chosen or setting(name, data)
    device, config = data.test.device, chosen.student
    teacher.to(device).eval()
    student.to(device)
    if config.loss == "kl_cam":
        require_features(teacher, "SpaceshipNet")
        require_features(student, "SpaceshipNet")
    seed_everything(seed)
    shape = (data.channels, data.image_size, data.image_size)
    synthesizer = synthesizer_for(name, teacher, student, data, chosen, source, embeddings, reuse)
    supply: Supply = (
        PoolSupply(config.pool_size, shape, device, config.crop_padding, config.flip, folder)
        if source is not None or method(name).supply == "pool"
        else FreshSupply(synthesizer, config.crop_padding, config.flip)
    )
    if made is not None:
        made(synthesizer)
    return distil_from_synthesizer(
        teacher,
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


def synthesizer_for(
    name: str,
    teacher: nn.Module,
    student: nn.Module,
    data: Dataset,
    chosen: Setting,
    source: Source | None = None,
    embeddings: Tensor | None = None,
    reuse: Reuse | None = None,
):
    """The synthesiser of a method with new networks, drawn from torch's global state; arguments as in `distil_by`."""
    if source is not None:
        return SourceSynthesizer(source, data.num_classes, chosen.synthesis, data.test.device)
    given: dict[str, Any] = {}
    if embeddings is not None:
        if name != "nayer":
            raise InputError(f"class embeddings are for nayer, {name} has no use for them")
        given["embeddings"] = embeddings.to(data.test.device)
    if reuse is not None:
        if name not in REUSABLE_METHODS:
            raise InputError(f"{name} has no generator to reuse; those that have are {', '.join(REUSABLE_METHODS)}")
        given["reuse"] = reuse
    shape = (data.channels, data.image_size, data.image_size)
    problem = Problem(teacher, student, shape, data.num_classes, data.spec.mean, data.spec.std)
    return method(name).build(problem, chosen.synthesis, **given)


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


# --- from the cache ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A student and how it came about.

    Attributes:
        student: in eval mode.
        history: of the loop.
        images, labels: the newest images it was taught with, and the classes asked for.
        seconds: by phase.
        generator: with `reuse` its state after the last round.
    """

    student: nn.Module
    history: list[dict]
    images: Tensor
    labels: Tensor
    seconds: dict[str, float]
    generator: dict[str, Tensor] | None = None

    @property
    def top1(self) -> float:
        return self.history[-1]["top1"]


def datafree_run(
    name: str,
    data: Dataset,
    teacher: Trained,
    student: str,
    *,
    teacher_name: str = "",
    diffusion: Diffusion | None = None,
    chosen: Setting | None = None,
    embeddings: Tensor | None = None,
    reuse: Reuse | None = None,
    seed: int = 0,
) -> Run:
    """A student of the named method, or the identical one from the cache; a killed run is continued.

    Args:
        name: one of `choices.SYNTHESIZERS`.
        student: architecture; its first weights depend on the seed alone. teacher_name: the teacher's, for constants that depend on it.
        diffusion: for the sources that need a prior. chosen, embeddings, reuse: of `distil_by`; AEAHL-RG takes none of them.
    Raises:
        InputError: unknown method, a diffusion source without a prior, and what `distil_by` refuses.
    """
    check_name("data-free method", name, SYNTHESIZERS)
    if name in DIFFUSION_SOURCES and diffusion is None:
        raise InputError(f"{name} draws from a diffusion prior; give one")
    what = f"{name}, seed {seed}"
    if name == "aeahl_rg":
        changes: dict[str, Any] = {"hard_loss": "aea"} | AEAHL_RG.get(data.name, {})
        config = generator_config(data, teacher=teacher_name, **changes)
        task = generator_task(data, teacher, student, config, seed=seed, description=what)
        return Run(task.student, task.history, task.images[-KEPT:], task.labels[-KEPT:], task.seconds)
    chosen = chosen or setting(name, data, teacher_name)
    net = fresh(student, data, seed)
    key = _made_from(name, data, teacher, student, chosen, diffusion, embeddings, reuse, seed)

    def make(progress_folder: Path) -> dict:
        synthesizers: list[Any] = []
        with source_of(name, data, teacher.model, diffusion) as source:
            found = distil_by(
                name,
                teacher.model,
                net,
                data,
                chosen,
                source=source,
                embeddings=embeddings,
                reuse=reuse,
                made=synthesizers.append,
                seed=seed,
                folder=progress_folder,
                description=what,
            )
        shutil.rmtree(progress_folder / "pool", ignore_errors=True)
        kept = {"images": found.images[-KEPT:], "labels": found.labels[-KEPT:]}
        kept |= {"generator": synthesizers[0].generator.state_dict()} if reuse else {}
        return {"student": net.state_dict(), "history": found.history, "seconds": found.seconds} | kept

    state = artifact("data-free student", key, make)
    net.load_state_dict(state["student"])
    device = data.test.device
    moved = {name: state[name].to(device) for name in ("images", "labels")}
    return Run(**state | moved | {"student": net.eval()})


def _made_from(
    name: str,
    data: Dataset,
    teacher: Trained,
    student: str,
    chosen: Setting,
    diffusion: Diffusion | None,
    embeddings: Tensor | None,
    reuse: Reuse | None,
    seed: int,
) -> dict:
    """What a run depends on, and nothing else."""
    key = {
        "method": name,
        "dataset": data.name,
        "image_size": data.image_size,
        "teacher": teacher.hash,
        "student": identity(student),
        "seed": seed,
        "synthesis": dataclasses.asdict(chosen.synthesis),
        "schedule": dataclasses.asdict(chosen.student),
        "embeddings": None if embeddings is None else state_hash({"": embeddings}),
        "diffusion": None,
        "test": data.hashes["test"],
    }
    if diffusion is not None and name in DIFFUSION_SOURCES:
        rule = diffusion.rules[name]
        key["diffusion"] = {
            "prior": state_hash(diffusion.prior.model.state_dict()),
            "rule": rule and dataclasses.asdict(rule),
            "solver": diffusion.solver,
            "num_steps": diffusion.num_steps,
        }
    if reuse is not None:
        key["reuse"] = {"mode": reuse.mode, "parts": reuse.parts and [state_hash(part) for part in reuse.parts]}
    return key


def images_by(
    names: Sequence[str], data: Dataset, teacher: Trained, student: str, *, teacher_name: str = "", seed: int = 0
) -> dict[str, Split]:
    """The newest images that each method has made for a teacher, oldest first, with the classes asked for, where any were; as `datafree_run`
    takes its arguments."""
    runs = {name: datafree_run(name, data, teacher, student, teacher_name=teacher_name, seed=seed) for name in names}
    return {name: Split(made.images, None if name in NO_CLASS_ASKED else made.labels) for name, made in runs.items()}
