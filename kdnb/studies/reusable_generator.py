"""Tasks of data-free distillation with a generator: recipes by data set, what one task hands on to the next, results from the cache."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdnb.choices import BRANCH_RULES
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.generators.latent import LatentGenerator, draw_latents
from kdnb.generators.reusable import ReusableGenerator, export_parts, less_active_branch, prepare
from kdnb.models import identity
from kdnb.parameters import group
from kdnb.randomness import generator_for, seed_everything
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import state_hash
from kdnb.studies.generator_loop import GeneratorConfig, distil_from_generator
from kdnb.training.importers import match_weights, read_weights
from kdnb.training.teachers import Trained, fresh

_TEACHER_WEIGHTS = {"vgg11": (1.0, 0.5), "wrn_40_2": (1.1, 0.4)}
_DIGITS = GeneratorConfig(
    epochs=16,
    warmup=2,
    latent_dim=64,
    width=16,
    synthesis_batch=64,
    lr_generator=4e-3,
    bn_weight=1.0,
    oh_weight=1.0,
    adv_weight=1.0,
    bn_momentum=0.0,
    pool_size=2560,
    student_steps=20,
    batch_size=64,
    lr=0.1,
    temperature=4.0,
    perturbation_width=8,
    perturbation_blocks=2,
)
GENERATOR_SETTINGS = {
    "digits": _DIGITS,
    "fashion_mnist": dataclasses.replace(
        _DIGITS, epochs=30, warmup=3, width=32, synthesis_batch=128, pool_size=5120, student_steps=30, batch_size=128
    ),
}
_SPELLINGS = {"images_per_epoch": "synthesis_batch", "generator_width": "width", "buffer_size": "pool_size"}
# the released code's steps for larger images; 256 images of 224 x 224 do not fit, and it takes 64 there
_RELEASED_SIZES = {
    "tiny_imagenet": {"inner_steps": 50},
    "imagenet": {"inner_steps": 50, "synthesis_batch": 64, "batch_size": 64, "pool_size": 26_880},
}


def generator_config(
    data: Dataset, values: Mapping[str, Any] | None = None, *, teacher: str = "", **changes
) -> GeneratorConfig:
    """How generators of this data set are trained here: the recipe of `GENERATOR_SETTINGS` (default: as published) with the data set's
    own augmentation, and over it what a notebook's parameters and further `changes` say.

    Args:
        values: parameters by their names in `kdnb.parameters`; those that are no field of `GeneratorConfig` are ignored.
        teacher: its architecture, for the published weights that depend on it.
    """
    fields = {field.name for field in dataclasses.fields(GeneratorConfig)}
    values = dict(values or {})
    values |= group(values, "loop") if "loop" in values else {}
    if "epsilon" in values:
        values["epsilon"] /= 255
    given: dict[str, Any] = {_SPELLINGS.get(name, name): value for name, value in values.items()}
    given = {name: value for name, value in given.items() if name in fields}
    published: dict[str, Any] = dict(zip(("adv_weight", "oh_weight"), released_weights(teacher), strict=True))
    published |= _RELEASED_SIZES.get(data.name, {})
    recipe = GENERATOR_SETTINGS.get(data.name) or dataclasses.replace(GeneratorConfig(), **published)
    own: dict[str, Any] = {"crop_padding": data.crop_padding, "flip": data.spec.flip}
    return dataclasses.replace(recipe, **own | given | changes)


def released_weights(teacher: str) -> tuple[float, float]:
    """(adv_weight, oh_weight) that the released code of AEAHL-RG uses for this teacher: 1.33 and 0.5 but for VGG-11 and WRN-40-2."""
    return _TEACHER_WEIGHTS.get(teacher, (1.33, 0.5))


def new_generator(config: GeneratorConfig, data: Dataset, seed: int) -> nn.Module:
    """A generator with fresh weights that depend on the seed alone, on the data set's device."""
    seed_everything(seed)
    sizes: dict[str, Any] = {
        "image_size": data.image_size,
        "channels": data.channels,
        "latent_dim": config.latent_dim,
        "width": config.width,
    }
    made = (
        LatentGenerator(**sizes)
        if config.generator == "latent"
        else ReusableGenerator(**sizes, twin_branches=config.twin_branches)
    )
    return made.to(data.test.device)


class Task(NamedTuple):
    """One teacher's student and generator.

    Attributes:
        student, generator: in eval mode.
        history, inner, images, labels, seconds: as in `kdnb.studies.datafree_loop.GeneratorResult`.
    """

    student: nn.Module
    generator: nn.Module
    history: list[dict]
    inner: list[dict]
    images: Tensor
    labels: Tensor
    seconds: dict[str, float]

    @property
    def top1(self) -> float:
        return self.history[-1]["top1"]


def saved_generator(path: Path, config: GeneratorConfig, data: Dataset) -> nn.Module:
    """The generator that an earlier run saved as `checkpoints/generator.safetensors`, in eval mode; nothing in the file is run.

    Args:
        config, data: of the task that reuses it: sizes and channels must be the same.
    Raises:
        InputError: the file can't be read or is damaged, or its generator has other sizes.
    """
    generator = new_generator(config, data, seed=0)
    expected = generator.state_dict()
    weights = match_weights(read_weights(path), expected, "", f"file {Path(path).name}", "a generator of these sizes")
    generator.load_state_dict(weights)
    return generator.eval()


def reused_branch(task: Task, teacher: nn.Module, rule: str = "gan1", seed: int = 0) -> str:
    """Name of the branch that a later task starts from, "gan1" or "gan2".

    Args:
        rule: "gan1" (as released) or "gan2"; "less_active": the branch whose images excite the teacher less, the rule that the
            released code contains and never calls; "more_active": its opposite.
    """
    check_name("branch rule", rule, BRANCH_RULES)
    if rule in ("gan1", "gan2"):
        return rule
    device = next(task.generator.parameters()).device
    rng = generator_for(seed, "branch", device=device)
    z = draw_latents(256, task.generator.latent_dim, rng, device)
    less = less_active_branch(task.generator, lambda images: teacher(images, return_features=True).pooled, z, rng)
    return less if rule == "less_active" else {"gan1": "gan2", "gan2": "gan1"}[less]


def reusable_parts(
    task: Task, teacher: nn.Module, rule: str = "gan1", seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts (branch, decoder) that a later task starts from; the branch is chosen by `reused_branch`."""
    return export_parts(task.generator, reused_branch(task, teacher, rule, seed))


def _relevant(config: GeneratorConfig) -> dict:
    """The settings that a run depends on, so that runs without a hard loss are shared whatever its settings are."""
    unused = {
        "none": ("kd_weight", "ce_weight", "epsilon", "probability", "perturbation_width", "perturbation_blocks"),
        "no_aea": ("epsilon", "probability", "perturbation_width", "perturbation_blocks"),
        "aea": (),
    }[config.hard_loss]
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}


def generator_task(
    data: Dataset,
    teacher: Trained,
    student: str,
    config: GeneratorConfig,
    *,
    mode: str = "anew",
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
    seed: int = 0,
    description: str | None = None,
) -> Task:
    """Run the loop for one teacher, or take the identical run from the cache; a killed run is continued.

    Args:
        student: architecture; its first weights depend on the seed alone.
        mode: one of `generators.reusable.MODES`; parts: of `reusable_parts`, for the reuse modes.
    Raises:
        InputError: parts where the mode takes none, or the other way round.
    """
    generator = new_generator(config, data, seed)
    if config.generator == "reusable":
        prepare(generator, mode, *(parts or ()))
    elif mode != "anew" or parts:
        raise InputError("a latent generator has no branch to reuse; use generator='reusable', or mode 'anew'")
    net = fresh(student, data, seed)
    key = {
        "dataset": data.name,
        "image_size": data.image_size,
        "teacher": teacher.hash,
        "student": identity(student),
        "mode": mode,
        "seed": seed,
        "config": _relevant(config),
        "parts": [state_hash(part) for part in parts] if parts else None,
        "test": data.hashes["test"],
    }

    def make(progress_folder: Path) -> dict:
        found = distil_from_generator(
            teacher.model,
            net,
            generator,
            data.num_classes,
            data.test,
            config,
            mode=mode,
            seed=seed,
            folder=progress_folder,
            description=description or f"{mode}, seed {seed}",
        )
        shutil.rmtree(progress_folder / "pool", ignore_errors=True)
        return found._asdict() | {"student": net.state_dict(), "generator": generator.state_dict()}

    state = artifact("generator", key, make)
    net.load_state_dict(state["student"])
    generator.load_state_dict(state["generator"])
    device = data.test.device
    return Task(
        **state
        | {
            "student": net.eval(),
            "generator": generator.eval(),
            "images": state["images"].to(device),
            "labels": state["labels"].to(device),
        }
    )
