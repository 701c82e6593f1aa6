"""Distillation in a few lines of plain Python: any network, any data, any method of `kdnb.methods`.

    import kdnb

    data = kdnb.load("folder:pets")
    teacher = kdnb.teacher("torchvision:resnet18", data, checkpoint="pets.safetensors")
    found = kdnb.distil(teacher, "resnet8x4", data, method="dkd", epochs=20)

What can be named is cached and resumed: names of models, and data whose hash says what they are. A network given as a module is trained
each time, on a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdnb import models
from kdnb.choices import BASELINES
from kdnb.data import load as load_named
from kdnb.data.own import FOLDER
from kdnb.data.own_arrays import from_arrays, read_made
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.intervals import paired_difference
from kdnb.studies.distillation import compare as compare_settings
from kdnb.training.distil import Distilled, Setting, student_recipe
from kdnb.training.distil import distil as distil_one
from kdnb.training.evaluation import evaluate as evaluate_split
from kdnb.training.export import save_student
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Model, Trained, classifier, given, teacher_for, teacher_recipe, train_or_load


@dataclass(frozen=True)
class Result:
    """A distilled student.

    Attributes:
        student: in eval mode; takes images in [-1, 1]. `student.plain` is the network as its maker made it, for standardised images.
        history: a row for each epoch.
        made, teacher, data, recipe, setting: what it came from.
        name: of the student's architecture; None for a module of your own.
    """

    student: nn.Module
    history: list[dict]
    made: Distilled
    teacher: Trained
    data: Dataset
    recipe: Recipe
    setting: Setting
    name: str | None

    @property
    def top1(self) -> float:
        """Test accuracy after the last epoch, a fraction."""
        return self.history[-1]["top1"]

    def save(self, folder: str | Path, licence: str = "unknown", onnx: bool = False) -> Path:
        """FOLDER/student.safetensors and its card FOLDER/README.md, with `onnx` student.onnx too; returns the path of the weights."""
        facts = {
            "method": f"{self.setting.method} {self.made.method.hyper}",
            "recipe": self.recipe,
            "top-1 on the test split": f"{self.top1:.4f} (teacher {self.teacher.top1:.4f})",
            "hash of the teacher": self.teacher.hash,
            "hash of the recipe": self.made.key,
            "licence": licence,
        }
        return save_student(Path(folder), self.student, self.made.method, self.data, self.name, facts, onnx)


def load(
    data: Any, image_size: int | None = None, device: str = "cpu", test: Any = None, split_seed: int = 0
) -> Dataset:
    """A data set out of whatever there is.

    Args:
        data: a name (`digits`, `folder:PATH`, `FILE.py:function`), the path of a folder of pictures, a `Dataset` of kdnb, a pair (images,
            labels) of tensors or arrays, a torch Dataset, or a DataLoader. Images as bytes, or floats: in [0, 1], or standardised by
            the caller, and then networks get them as they are. A DataLoader is read once, with its augmentation as it falls.
        test: the same for the test split, where `data` is no name; None: a fifth of each class is set aside.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        name = str(data)
        return load_named(f"{FOLDER}{name}" if Path(name).is_dir() else name, image_size, device, split_seed=split_seed)
    train, _, names = read_made(_pairs(data), "the data")
    held = None if test is None else read_made(_pairs(test), "the test data")[0]
    return from_arrays("the data", train, held, image_size, device, split_seed, names, standardized=True)


def _pairs(data: Any) -> Any:
    """A DataLoader's batches as single images."""
    if not isinstance(data, DataLoader):
        return data
    return [(image, label) for images, labels in data for image, label in zip(images, labels, strict=True)]


def teacher(
    model: Model | Trained, data: Any, checkpoint: str | Path = "", epochs: int | None = None, seed: int = 0
) -> Trained:
    """A teacher for a data set: a named one with the weights of a file, or trained here; or a trained module.

    Args:
        model: as `kdnb.models.build` takes names; or a module with its weights.
        checkpoint: weights of a named network, in any form that `kdnb.training.importers` reads; empty: train it.
        epochs: of that training; None: as the data set's recipe says.
    """
    data = load(data)
    if isinstance(model, Trained):
        return model
    if not isinstance(model, str):
        return given(model, data)
    if checkpoint or epochs is None:
        return teacher_for(models.known(model), data, str(checkpoint), seed)
    return train_or_load(models.known(model), data, teacher_recipe(data, epochs=epochs), seed=seed, split="train")


make_teacher = teacher  # below, `teacher` is an argument


def distil(
    teacher: Model | Trained,
    student: Model,
    data: Any,
    method: str = "kd",
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.05,
    seed: int = 0,
    recipe: Recipe | None = None,
    **hyper,
) -> Result:
    """Train a student with a teacher.

    Args:
        teacher: a name (trained here first), a trained module, or what `teacher` returned.
        student: a name, a module (a copy of it is trained), or a function that makes one.
        data: as `load`.
        method: a name of `kdnb.methods.METHODS`, hyper-parameters after it as in "dkd beta:2", or as `hyper`.
        epochs, batch_size, lr: of SGD with one cycle and a clipped gradient; `recipe` replaces them all.
    """
    data = load(data)
    setting, name = _setting(method, hyper), models.known(student) if isinstance(student, str) else None
    recipe = recipe or _recipe(data, epochs, batch_size, lr)
    found = make_teacher(teacher, data, seed=seed)
    made = distil_one(setting, name or student, found, data, recipe, seed=seed)
    return Result(made.student, made.history, made, found, data, recipe, setting, name)


def compare(
    teacher: Model | Trained,
    student: Model,
    data: Any,
    methods: Sequence[str] = ("dkd",),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.05,
    recipe: Recipe | None = None,
) -> list[dict]:
    """Methods over seeds beside the student alone and plain KD, under one recipe.

    Give a student without a name as a function that makes it: seeds then draw its first weights; copies of one module start alike.

    Returns:
        A row a method: `setting`, mean `top1` over seeds, `n`, and for each baseline the mean paired difference with its 95 % interval.
    """
    data = load(data)
    settings = {text: _setting(text, {}) for text in methods}
    recipe = recipe or _recipe(data, epochs, batch_size, lr)
    student = models.known(student) if isinstance(student, str) else student
    found = make_teacher(teacher, data)
    rows = compare_settings(settings, student, found, data, recipe, list(seeds))
    table = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        values = [row["top1"] for row in rows if row["setting"] == name]
        line: dict[str, Any] = {"setting": name, "top1": sum(values) / len(values), "n": len(values)}
        for baseline in BASELINES:
            if name not in BASELINES:
                mean, low, high, _ = paired_difference(rows, name, baseline)
                line[f"over {baseline}"] = (mean, low, high)
        table.append(line)
    return table


def evaluate(model: Model | Trained | Result, data: Any) -> dict[str, float]:
    """top1 and top5 as fractions and the mean cross-entropy in nats, on the test split."""
    data = load(data)
    if isinstance(model, Result):
        return evaluate_split(model.student, data.test, model.made.method.predict)
    if isinstance(model, str):
        raise InputError(f"{model} names a network without weights; evaluate what kdnb.teacher or kdnb.distil returned")
    return evaluate_split(model.model if isinstance(model, Trained) else classifier(model, data), data.test)


def _setting(method: str, hyper: dict) -> Setting:
    read = Setting.read(method)
    return Setting.make(read.method, **read.hyper | hyper)


def _recipe(data: Dataset, epochs: int, batch_size: int, lr: float) -> Recipe:
    return student_recipe(data, epochs=epochs, batch_size=batch_size, lr=lr, clip_norm=5.0)
