"""One student of one method and seed, from the cache."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb import methods
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.models import identity
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import state_hash
from kdnb.storage.naming import identity_key
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Model, Trained, fresh


class Setting(NamedTuple):
    """What a student is trained by.

    Attributes:
        method: name of `kdnb.methods.METHODS`.
        hyper: hyper-parameters over the published ones.
    """

    method: str
    hyper: dict = {}

    @classmethod
    def make(cls, method: str, **hyper) -> "Setting":
        """A setting that `methods.build` accepts, checked now rather than after a teacher was trained; None stands for the published value.

        >>> Setting.make("kd", temperature=2.0, kd_weight=None)
        Setting(method='kd', hyper={'temperature': 2.0})
        """
        hyper = {name: value for name, value in hyper.items() if value is not None}
        methods.build(method, **hyper)
        return cls(method, hyper)

    @classmethod
    def read(cls, text: str) -> "Setting":
        """`Setting.read("dkd beta:2")`, as in parameter files."""
        method, hyper = methods.parse_method(text)
        return cls.make(method, **hyper)


def student_recipe(data: Dataset, milestones: Sequence[int] = (), **values) -> Recipe:
    """One cycle with Nesterov momentum; with milestones the schedule of the published tables: plain momentum, steps of 0.1.

    Args:
        values: further fields of `Recipe`, another `schedule` among them; augmentation is the data set's own.
    """
    usual = {"schedule": "multistep" if milestones else "one_cycle", "milestones": tuple(milestones)}
    values = usual | values
    values = {"nesterov": values["schedule"] == "one_cycle"} | values
    return Recipe(crop_padding=data.crop_padding, flip=data.spec.flip, **values)


class Distilled(NamedTuple):
    """A trained student.

    Attributes:
        student: in eval mode.
        method: the bound method, which predicts.
        history: a row for each epoch.
        seconds: of training.
        key: name of its recipe in the cache.
    """

    student: nn.Module
    method: nn.Module
    history: list[dict]
    seconds: float
    key: str

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        return self.method.predict(self.student(images, return_features=True)).clone()


def distil(
    setting: Setting,
    student: Model,
    teacher: Trained,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int = 0,
    omitted_class: int | None = None,
    description: str | None = None,
) -> Distilled:
    """One student of one method and seed, from the cache if an identical one was trained before.

    Args:
        student: architecture. Its first weights, the order and the augmentation depend on the seed alone, so seeds pair up over methods.
            A network that has no name (`kdnb.training.teachers.Model`) is trained each time: nothing says when two are the same.
        omitted_class: a class of which no image is in the student's training split.
    Raises:
        InputError: what `methods.build`, `Method.bind` and `fit` refuse, or a class that the data set has not.
    """
    train = data.train if omitted_class is None else data.train.without_class(_known_class(omitted_class, data))
    named = isinstance(student, str)
    net, method = bound(setting, student, teacher, data, recipe, seed, len(train))
    key = {
        "student": identity(student) if isinstance(student, str) else state_hash(net.plain.state_dict()),
        "method": setting.method,
        "hyper": method.hyper,
        "teacher": teacher.hash if method.needs_teacher else None,
        "dataset": data.name,
        "image_size": data.image_size,
        "data": train.hash,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }

    def make(progress_folder: Path | None) -> dict:
        found = fit(
            net,
            train,
            data.test,
            recipe,
            method=method,
            teacher=teacher.model,
            seed=seed,
            folder=progress_folder,
            description=description or f"{setting.method}, seed {seed}",
        )
        return {
            "student": net.state_dict(),
            "method": method.state_dict(),
            "history": found.history,
            "seconds": found.seconds,
        }

    state = artifact("student", key, make) if named else make(None)
    net.load_state_dict(state["student"])
    method.load_state_dict(state["method"])
    return Distilled(net.eval(), method.eval(), state["history"], state["seconds"], identity_key(key))


def bound(
    setting: Setting, student: Model, teacher: Trained, data: Dataset, recipe: Recipe, seed: int, num_images: int
) -> tuple[nn.Module, nn.Module]:
    """An untrained student and its method, made for each other and for a split of so many images."""
    net = fresh(student, data, seed)
    method = methods.build(setting.method, **setting.hyper)
    shape, batch = data.image_shape, recipe.batch_size
    method.bind(net, teacher.model, shape, data.num_classes, batch, recipe.epochs, num_images)
    return net, method


def _known_class(label: int, data: Dataset) -> int:
    if not 0 <= label < data.num_classes:
        raise InputError(f"omitted_class must be one of {data.name}'s classes 0 to {data.num_classes - 1}, got {label}")
    return label
