"""Which data-free method makes the best student? All of them over seeds, and what their students cost."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from kdnb.choices import SYNTHESIZERS
from kdnb.data.tensors import Dataset
from kdnb.errors import check_name
from kdnb.randomness import generator_for
from kdnb.rehearsal import cut
from kdnb.samplers.field import METHODS
from kdnb.samplers.inversion import require_batch_norm
from kdnb.studies.datafree_run import NO_CLASS_ASKED, Run, datafree_run
from kdnb.studies.datafree_sources import Diffusion
from kdnb.studies.teacher_behaviour import describe, titles, verdicts
from kdnb.training.evaluation import predict_logits
from kdnb.training.teachers import Trained, classifier, teacher_for

_DIFFUSION = "a diffusion prior of a related domain"
ASSUMES = {name: line.assumes for name, line in METHODS.items()} | {
    "aeahl_rg": "batch norm",
    "unguided": _DIFFUSION,
    "cadr": f"{_DIFFUSION}, batch norm",
    "constant": f"{_DIFFUSION}, batch norm",
    "separate": f"{_DIFFUSION}, batch norm",
    "noise": "nothing",
}
"""What each takes for granted beside a teacher that can be differentiated."""


def field_study(
    data: Dataset,
    teacher: str,
    student: str,
    names: Sequence[str],
    seeds: Sequence[int],
    values: Mapping | None = None,
    diffusion: Diffusion | None = None,
) -> tuple[list[dict], dict[tuple[str, int], Run], dict[int, Trained]]:
    """Every method for every seed; teachers, generators and students all differ between seeds, the prior does not.

    Args:
        values: `teacher_checkpoint`, `teacher_split`, `teacher_epochs` where they are given, as in `reuse_study`.
    Returns:
        One row an evaluation: `method`, `seed`, `round`, `cpu`, `elapsed`, `teacher_images`, `top1`; the runs by (method, seed); the teachers.
    Raises:
        InputError: a teacher that one of the methods can't use, before any is trained.
    """
    values = values or {}
    require_usable(names, teacher, data)
    rows, runs, teachers = [], {}, {}
    for seed in cut(list(seeds), "seed", most=1):
        teachers[seed] = teacher_for(
            teacher,
            data,
            values.get("teacher_checkpoint", ""),
            seed,
            split=values.get("teacher_split", "private"),
            epochs=values.get("teacher_epochs", 0),
            description=f"teacher, seed {seed}",
        )
        for name in names:
            made = datafree_run(
                name, data, teachers[seed], student, teacher_name=teacher, diffusion=diffusion, seed=seed
            )
            runs[name, seed] = made
            keys = ("cpu", "elapsed", "teacher_images", "top1")
            rows += [
                {"method": name, "seed": seed, "round": row["epoch"]} | {key: row[key] for key in keys}
                for row in made.history
                if "top1" in row
            ]
    return rows, runs, teachers


def require_usable(names: Sequence[str], teacher: str, data: Dataset) -> None:
    """Raises InputError for a teacher without batch norm where one of the methods matches its statistics."""
    network = classifier(teacher, data)
    for name in names:
        if "batch norm" in ASSUMES[check_name("data-free method", name, SYNTHESIZERS)]:
            require_batch_norm(network, name)


def mean_curves(rows: Sequence[Mapping], cost: str) -> dict[str, list[tuple[float, float]]]:
    """(cost, top1) of each method at each of its evaluations, means over seeds."""
    groups: dict[str, dict[int, list[Mapping]]] = {}
    for row in rows:
        groups.setdefault(row["method"], {}).setdefault(row["round"], []).append(row)
    return {
        name: [
            (sum(row[cost] for row in found) / len(found), sum(row["top1"] for row in found) / len(found))
            for found in rounds.values()
        ]
        for name, rounds in groups.items()
    }


def pareto_front(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[tuple[float, float, str]]:
    """The (cost, value, name) that nothing cheaper or equally cheap beats, by rising cost.

    >>> pareto_front({"a": [(1.0, 0.2), (4.0, 0.6)], "b": [(2.0, 0.7)], "c": [(3.0, 0.5)]})
    [(1.0, 0.2, 'a'), (2.0, 0.7, 'b')]
    """
    points = sorted(
        ((cost, value, name) for name, curve in curves.items() for cost, value in curve),
        key=lambda point: (point[0], -point[1]),
    )
    front: list[tuple[float, float, str]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def within(curve: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The last value whose cost is within the budget; None where even the first costs more."""
    found = [value for cost, value in curve if cost <= budget]
    return found[-1] if found else None


def at_equal_cost(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[dict]:
    """What each method had reached when it had cost as much as the median method does in all; by kind of cost.

    Args:
        curves: `mean_curves` by kind of cost.
    Returns:
        One row a method: `method`, and for each kind the value `within` that budget (a cheaper method's last one).
    """
    budgets = {kind: median(curve[-1][0] for curve in found.values()) for kind, found in curves.items()}
    rows: dict[str, dict] = {name: {"method": name} for found in curves.values() for name in found}
    for kind, found in curves.items():
        for name, curve in found.items():
            rows[name][f"at {budgets[kind]:.3g} {kind}"] = within(curve, budgets[kind])
    return list(rows.values())


def gallery(runs: Mapping[str, Run], teacher: torch.nn.Module, names: Sequence[str], count: int = 10) -> dict[str, Any]:
    """Images of every run with the teacher's answers, as `kdnb.plots.labelled_rows` takes them.

    Args:
        runs: by method. names: of the K classes. count: images each, drawn from the newest batch.
    Returns:
        groups: images; titles: the teacher's answers with their confidence; frames: whether each is the class asked for, where one was.
    """
    groups, said, frames = {}, {}, {}
    for name, made in runs.items():
        newest = min(64, len(made.images))
        rng = generator_for(0, "gallery", device=made.images.device)
        chosen = torch.randperm(newest, generator=rng, device=made.images.device)[:count] - newest
        groups[name] = made.images[chosen]
        answer = predict_logits(teacher, groups[name]).softmax(dim=1).max(dim=1)
        said[name] = titles(list(names), answer.indices, answer.values)
        if name not in NO_CLASS_ASKED:
            frames[name] = verdicts(answer.indices, made.labels[chosen])
    return {"groups": groups, "titles": said, "frames": frames}


def image_table(runs: Mapping[str, Run], teacher: torch.nn.Module, count: int = 256) -> list[dict]:
    """What the teacher says to the newest `count` images of every run: `confidence`, `imbalance` of its votes, `bn_distance`, and the share
    `as_asked` that it puts into the class asked for (None where none was), see `teacher_behaviour.describe`; and `agrees`, the share on
    which the student gives the teacher's answer."""
    rows = []
    for name, made in runs.items():
        images, labels = made.images[-count:], made.labels[-count:]
        found = describe(teacher, images, None if name in NO_CLASS_ASKED else labels)
        row: dict[str, Any] = {key: found[key] for key in ("images", "confidence", "imbalance", "bn_distance")}
        answers = [predict_logits(network, images).argmax(dim=1) for network in (teacher, made.student)]
        agrees = (answers[0] == answers[1]).float().mean().item()
        rows.append({"method": name} | row | {"as_asked": found.get("accuracy"), "agrees": agrees})
    return rows
