"""Which method helps this student? Methods and seeds under one recipe, each trained once and kept in the artifact cache.

A killed comparison continues where it was: finished students come from the cache, the one in progress from its last checkpoint. Students
of the same recipe are shared by all experiments that ask for them, the baselines above all.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb import methods
from kdnb.checkpoints import artifact
from kdnb.classifiers import Trained, fresh, teacher_recipe, train_or_load
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.evaluation import evaluate
from kdnb.importers import load_classifier
from kdnb.losses import region_logits
from kdnb.recipes import recipe_key
from kdnb.training import fit
from kdnb.training_recipe import Recipe

BASELINES = {"student alone": "ce", "plain KD": "kd"}  # at their published settings, in every comparison


class Setting(NamedTuple):
    """A method with hyper-parameters over its published ones."""

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


def one_at_a_time(setting: Setting) -> dict[str, dict[str, Setting]]:
    """The method with one hyper-parameter changed and the rest as they are: scales; temperature halved and doubled; weight a third and
    threefold. Only what the method has; the setting itself is among them.

    >>> [made.hyper for made in one_at_a_time(Setting("kd"))["temperature"].values()]
    [{'temperature': 2.0}, {'temperature': 4.0}, {'temperature': 8.0}]
    """
    hyper = methods.build(setting.method, **setting.hyper).hyper
    values = {"scales": [[1], [1, 2], [1, 2, 4]]} if "scales" in hyper else {}
    values |= {
        name: [hyper[name] / factor, hyper[name], hyper[name] * factor]
        for name, factor in (("temperature", 2), ("kd_weight", 3))
        if name in hyper
    }
    return {
        name: {_text(value): Setting(setting.method, setting.hyper | {name: value}) for value in choices}
        for name, choices in values.items()
    }


def _text(value: float | list) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def teacher_for(name: str, data: Dataset, checkpoint: str = "", seed: int = 0) -> Trained:
    """A teacher on the whole training split: from a checkpoint if one is given, else trained by the data set's own recipe.

    Args:
        name: architecture; checkpoint: any form that `kdnb.importers` reads. Its accuracy is measured here, not believed.
    """
    if not checkpoint:
        return train_or_load(name, data, teacher_recipe(data), seed=seed, split="train", description="teacher")
    model, digest = load_classifier(Path(checkpoint), name, **data.normalization)
    model = model.to(data.test.device)
    return Trained(model, [{"epoch": 0} | evaluate(model, data.test)], digest)


def student_recipe(data: Dataset, milestones: Sequence[int] = (), **values) -> Recipe:
    """One cycle with Nesterov momentum; with milestones the schedule of the published tables: plain momentum, steps of 0.1.

    Args:
        values: further fields of `Recipe`; augmentation is the data set's own.
    """
    schedule = (
        {"schedule": "multistep", "milestones": tuple(milestones)}
        if milestones
        else {"schedule": "one_cycle", "nesterov": True}
    )
    return Recipe(crop_padding=data.crop_padding, flip=data.spec.flip, **schedule, **values)


class Distilled(NamedTuple):
    """A trained student in eval mode with its method (which predicts), the history of its epochs, seconds, and the name of its recipe."""

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
    student: str,
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
        omitted_class: a class of which no image is in the student's training split.
    Raises:
        InputError: what `methods.build`, `Method.bind` and `fit` refuse, or a class that there isn't.
    """
    net, method = _bound(setting, student, teacher, data, recipe, seed)
    train = data.train if omitted_class is None else data.train.without_class(_known_class(omitted_class, data))
    key = {
        "student": student,
        "method": setting.method,
        "hyper": method.hyper,
        "teacher": teacher.hash if method.needs_teacher else None,
        "dataset": data.name,
        "image_size": data.image_size,
        "data": train.hash,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }

    def make(progress_folder: Path) -> dict:
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

    state = artifact("student", key, make)
    net.load_state_dict(state["student"])
    method.load_state_dict(state["method"])
    return Distilled(net.eval(), method.eval(), state["history"], state["seconds"], recipe_key(key))


def _bound(
    setting: Setting, student: str, teacher: Trained, data: Dataset, recipe: Recipe, seed: int
) -> tuple[nn.Module, nn.Module]:
    """An untrained student and its method, made for each other."""
    net = fresh(student, data, seed)
    method = methods.build(setting.method, **setting.hyper)
    method.bind(
        net, teacher.model, (data.channels, data.image_size, data.image_size), data.num_classes, recipe.batch_size
    )
    return net, method


def _known_class(label: int, data: Dataset) -> int:
    if not 0 <= label < data.num_classes:
        raise InputError(f"omitted_class must be one of {data.name}'s classes 0 to {data.num_classes - 1}, got {label}")
    return label


def compare(
    settings: Mapping[str, Setting],
    student: str,
    teacher: Trained,
    data: Dataset,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    omitted_class: int | None = None,
) -> list[dict]:
    """Train every setting with every seed, the two baselines first, and measure what came out.

    Args:
        settings: by the name they have in tables; the baselines "student alone" and "plain KD" need not be given.
        teacher: in eval mode; student, recipe, seeds, omitted_class: as `distil`.
    Returns:
        One row per setting and seed:
            top1, best_top1: accuracy after the last epoch, and the best there was (chosen on the test set, so no headline).
            omitted_top1: accuracy on the test images of the class that was left out; absent without one.
            agreement: share of test images on which student and teacher name the same class.
            kl_to_teacher: mean KL(teacher || student) at temperature 1, nats.
            extra_parameters: of the method, beside the student's own.
            seconds: of training, as measured when it happened. recipe, teacher: their hashes.
    Raises:
        InputError: as `distil`, for any of the settings before the first is trained.
    """
    settings = {name: Setting(method) for name, method in BASELINES.items()} | dict(settings)
    for setting in settings.values():
        _bound(setting, student, teacher, data, recipe, seed=0)
    cells = [(name, setting, seed) for name, setting in settings.items() for seed in seeds]
    rows = []
    for number, (name, setting, seed) in enumerate(cells, start=1):
        made = distil(
            setting,
            student,
            teacher,
            data,
            recipe,
            seed=seed,
            omitted_class=omitted_class,
            description=f"{name}, seed {seed} ({number} of {len(cells)})",
        )
        best = max(row["top1"] for row in made.history if "top1" in row)
        rows.append(
            {
                "setting": name,
                "method": setting.method,
                "seed": seed,
                "top1": made.history[-1]["top1"],
                "best_top1": best,
            }
            | measure(made, teacher.model, data, omitted_class)
            | {
                "extra_parameters": made.method.extra_parameters(),
                "seconds": round(made.seconds, 1),
                "recipe": made.key,
                "teacher": teacher.hash,
            }
        )
    return rows


@torch.inference_mode()
def look(model: nn.Module, images: Tensor, scales: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What a network says about images (B, K) and about their regions (B, K, M), by its own classifier (`kdnb.losses.region_logits`)."""
    features = model(images, return_features=True)
    regions = region_logits(features.final_map, model.head.weight, model.head.bias, scales)
    return features.logits.clone(), regions.clone()


@torch.inference_mode()
def measure(
    made: Distilled, teacher: nn.Module, data: Dataset, omitted_class: int | None = None, batch_size: int = 500
) -> dict[str, float]:
    """What a student took over from its teacher, on the test split: see `compare`."""
    sums = torch.zeros(4, dtype=torch.float64, device=data.test.device)
    for images, labels in data.test.batches(batch_size):
        logits_s, logits_t = made.logits(images).float(), teacher(images).float()
        guess = logits_s.argmax(dim=1)
        omitted = labels == (-1 if omitted_class is None else omitted_class)
        kl = F.kl_div(logits_s.log_softmax(dim=1), logits_t.log_softmax(dim=1), reduction="sum", log_target=True)
        sums += torch.stack(
            [(guess == logits_t.argmax(dim=1)).sum(), kl, (omitted & (guess == labels)).sum(), omitted.sum()]
        ).double()
    agreement, kl, found, omitted = sums.tolist()
    row = {"agreement": agreement / len(data.test), "kl_to_teacher": kl / len(data.test)}
    return row if omitted_class is None else row | {"omitted_top1": found / omitted if omitted else math.nan}


# --- statistics ----------------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval; the interval is NaN for one pair, which says nothing about spread."""

    mean: float
    low: float
    high: float
    n: int


def paired_difference(rows: Sequence[Mapping], setting: str, baseline: str, metric: str = "top1") -> Difference:
    """How much better a setting is than a baseline, seed by seed.

        d_i = x_i - y_i;   mean d +- t_{0.975, n-1} s / sqrt(n),   s with divisor n - 1

    The interval assumes normal differences and covers the spread over seeds only: the test images are the same in all runs.

    Args:
        rows: of `compare`, at least with "setting", "seed" and the metric.
    Raises:
        InputError: an unknown setting, or the two were not run with the same seeds.

    Source: Student, 1908.
    """
    values = {}
    for name in (setting, baseline):
        check_name("setting", name, dict.fromkeys(row["setting"] for row in rows))
        values[name] = {row["seed"]: row[metric] for row in rows if row["setting"] == name}
    if values[setting].keys() != values[baseline].keys():
        raise InputError(
            f"{setting} and {baseline} were not run with the same seeds: {sorted(values[setting])} and {sorted(values[baseline])}"
        )
    differences = torch.tensor(
        [value - values[baseline][seed] for seed, value in values[setting].items()], dtype=torch.float64
    )
    mean, n = differences.mean().item(), len(differences)
    if n < 2:
        return Difference(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * differences.std().item() / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def summarize(
    rows: Sequence[Mapping], metrics: Sequence[str] = ("top1", "omitted_top1", "agreement", "kl_to_teacher")
) -> list[dict]:
    """One row per setting: n, and for each metric that was measured mean and standard deviation (divisor n - 1) over seeds."""
    table = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == name]
        line = {"setting": name, "n": len(own)}
        for metric in (metric for metric in metrics if metric in own[0]):
            values = torch.tensor([row[metric] for row in own], dtype=torch.float64)
            line |= {metric: values.mean().item(), f"{metric}_sd": values.std().item() if len(own) > 1 else math.nan}
        table.append(line)
    return table
