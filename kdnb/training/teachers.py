"""Trained classifiers from the artifact cache: teachers, judges and students are trained once for each recipe, and then read."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import nn

from kdnb.data import DATASETS
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.models import build, identity
from kdnb.models.base import Classifier
from kdnb.models.names import parse_foreign
from kdnb.models.taps import wrap
from kdnb.randomness import seed_everything
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import state_hash
from kdnb.training.evaluation import evaluate
from kdnb.training.importers import load_classifier
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe

_ONE_CYCLE = Recipe(epochs=20, batch_size=64, lr=0.1, nesterov=True)
_CIFAR_SCRATCH = Recipe(
    epochs=200,
    batch_size=256,
    lr=0.1,
    weight_decay=1e-4,
    schedule="multistep",
    milestones=(120, 150, 180),
    lr_gamma=0.2,
)
TEACHER_RECIPES = {
    "digits": _ONE_CYCLE,
    "fashion_mnist": dataclasses.replace(_ONE_CYCLE, epochs=10, batch_size=128),
    "cifar10": _CIFAR_SCRATCH,  # as CMI and AEAHL-RG train theirs
    "cifar100": _CIFAR_SCRATCH,
    "imagenet": dataclasses.replace(_CIFAR_SCRATCH, epochs=90, milestones=(30, 60), lr_gamma=0.1),  # as torchvision
}


def teacher_recipe(data: Dataset, **changes) -> Recipe:
    """How teachers of this data set are trained here: the table's recipe with the data set's own augmentation, and the given changes.

    With other `epochs` the milestones keep their share of the training, so that the rate always falls.
    """
    recipe = TEACHER_RECIPES.get(data.name, _CIFAR_SCRATCH if data.name in DATASETS else _ONE_CYCLE)
    if "epochs" in changes:
        moved = {round(milestone * changes["epochs"] / recipe.epochs) for milestone in recipe.milestones}
        changes = {"milestones": tuple(sorted(one for one in moved if 0 < one < changes["epochs"]))} | changes
    return dataclasses.replace(recipe, crop_padding=data.crop_padding, flip=data.spec.flip, **changes)


@dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
        model: in eval mode.
        history: a row for each epoch; for imported weights one row, epoch 0.
        hash: of its weights.
    """

    model: nn.Module
    history: list[dict]
    hash: str

    @property
    def top1(self) -> float:
        return self.history[-1]["top1"]


Model: TypeAlias = (
    str | nn.Module | Callable[[], nn.Module]
)  # a name; a network; or what makes one, for fresh weights at every seed


def classifier(model: Model, data: Dataset) -> nn.Module:
    """A classifier for a data set, on its device.

    Args:
        model: a name for `kdnb.models.build`; a module, of which a copy is taken; or a function without arguments that returns one.
            What is not of `kdnb` is wrapped, and gets images standardised with the data set's mean and std, as a named model does.
    """
    if isinstance(model, str):
        return build(model, **data.normalization, image_size=data.image_size).to(data.test.device)
    made = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    if not isinstance(made, nn.Module):
        raise InputError(f"a model is a name, an nn.Module, or a function that returns one, got {type(made).__name__}")
    if not isinstance(made, Classifier):
        made = wrap(made, data.image_shape, mean=data.spec.mean, std=data.spec.std)
    return made.to(data.test.device)


def fresh(model: Model, data: Dataset, seed: int) -> nn.Module:
    """An untrained classifier for a data set, on its device; weights that are drawn depend on the seed alone."""
    seed_everything(seed)
    return classifier(model, data)


def given(model: nn.Module, data: Dataset) -> Trained:
    """A trained network that the caller holds, as a teacher; its accuracy is measured here."""
    net = classifier(model, data).eval()
    return Trained(net, [{"epoch": 0} | evaluate(net, data.test)], state_hash(net.plain.state_dict()))


def _hash(model: str, state: dict) -> str:
    """The identity of weights; those of a foreign network say nothing without its code, so that is hashed as well."""
    digest = state_hash(state)
    return hashlib.sha256(f"{identity(model)} {digest}".encode()).hexdigest()[:16] if parse_foreign(model) else digest


def train_or_load(
    model: str, data: Dataset, recipe: Recipe, *, seed: int = 0, split: str = "private", description: str | None = None
) -> Trained:
    """A classifier trained on one split of a data set, or the one an identical recipe gave before.

    Args:
        model: a name for `kdnb.models.build`.
        split: "private" (the teacher's), "judge" (the public images with labels, for evaluation only) or "train" (both).
    """
    part: Split = getattr(data, split)
    key = {
        "model": identity(model),
        "dataset": data.name,
        "image_size": data.image_size,
        "split": split,
        "data": part.hash,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }

    def make(progress_folder: Path) -> dict:
        net = fresh(model, data, seed)
        found = fit(
            net,
            part,
            data.test,
            recipe,
            seed=seed,
            folder=progress_folder,
            description=description or f"training {model}",
        )
        return {"model": net.state_dict(), "history": found.history}

    state = artifact("classifier", key, make)
    net = classifier(model, data)
    net.load_state_dict(state["model"])
    return Trained(net.to(part.device).eval(), state["history"], _hash(model, net.plain.state_dict()))


def teacher_for(
    name: str,
    data: Dataset,
    checkpoint: str = "",
    seed: int = 0,
    *,
    split: str = "train",
    epochs: int = 0,
    description: str = "teacher",
) -> Trained:
    """A teacher: from a checkpoint if one is given, else trained by the data set's own recipe.

    Args:
        name: architecture; checkpoint: any form that `kdnb.training.importers` reads. Its accuracy is measured here, not believed.
        split, epochs: of the training, "train" (all images) or "private"; 0 epochs stand for the recipe's own.
    """
    if not checkpoint:
        recipe = teacher_recipe(data, **{"epochs": epochs} if epochs else {})
        return train_or_load(name, data, recipe, seed=seed, split=split, description=description)
    model = load_classifier(Path(checkpoint), name, **data.normalization, image_size=data.image_size).model
    model = model.to(data.test.device)
    return Trained(model, [{"epoch": 0} | evaluate(model, data.test)], _hash(name, model.plain.state_dict()))
