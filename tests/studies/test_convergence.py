"""kdnb.studies.convergence: the numbers of a run, against a history written out by hand."""

import pytest
import torch
from torch import nn

from kdnb.intervals import mean_curve
from kdnb.studies import convergence as study
from kdnb.studies.convergence import convergence
from kdnb.studies.reusable_generator import Task


def task(*rows: tuple[float, float, float]) -> Task:
    history = [
        {"epoch": epoch, "bn": bn, "oh": oh, "top1": top1, "elapsed": 2.0 * epoch}
        for epoch, (bn, oh, top1) in enumerate(rows, start=1)
    ]
    return Task(nn.Identity(), nn.Identity(), history, [], torch.zeros(1), torch.zeros(1), {})


def test_a_run_is_summed_up():
    found = convergence(task((8.0, 2.0, 0.1), (4.0, 2.0, 0.5), (3.0, 2.0, 0.9)), target=0.5)
    assert found == {
        "first": 10.0,
        "round_2": 6.0,
        "last": 5.0,
        "area": 7.0,
        "top1": 0.9,
        "mean_top1": pytest.approx(0.5),
        "rounds_to_target": 2,
        "seconds_to_target": 4.0,
    }


def test_a_target_that_is_missed_has_no_round():
    found = convergence(task((1.0, 1.0, 0.1)), target=0.5)
    assert found["rounds_to_target"] is None and found["seconds_to_target"] is None


def test_a_mean_curve_has_the_range_of_its_runs():
    curve = mean_curve([[{"x": 1.0}, {"x": 4.0}], [{"x": 3.0}, {"x": 4.0}]], lambda row: row["x"])
    assert curve == [{"at": 1, "mean": 2.0, "low": 1.0, "high": 3.0}, {"at": 2, "mean": 4.0, "low": 4.0, "high": 4.0}]


def test_settings_are_modes_with_rules_and_rules_that_choose_alike_share_a_run(monkeypatch):
    from types import SimpleNamespace

    made = []

    def generator_task(data, teacher, student, config, *, mode="anew", parts=None, seed=0, description=None):
        made.append((mode, parts, seed))
        return task((8.0, 2.0, 0.1))

    trained = SimpleNamespace(model=nn.Identity())
    for name, stand_in in {
        "train_or_load": lambda *_, **__: trained,
        "teacher_recipe": lambda _: None,
        "generator_config": lambda *_, **__: None,
        "generator_task": generator_task,
        "export_parts": lambda _, branch: branch,
        "reused_branch": lambda first, teacher, rule, seed: {"less_active": "gan2"}.get(rule, rule),
    }.items():
        monkeypatch.setattr(study, name, stand_in)
    values, modes = {"next_epochs": 1}, ["anew", "reuse_common", "reuse_fix"]
    rows, tasks = study.reuse_study(None, "a", "b", "c", modes, [4, 5], values, 0.5, ["gan1", "less_active"])
    settings = ["anew", "reuse_common gan1", "reuse_common less_active", "reuse_fix gan1", "reuse_fix less_active"]
    assert (
        [(row["setting"], row["seed"]) for row in rows]
        == list(tasks)
        == [(setting, seed) for seed in (4, 5) for setting in settings]
    )
    assert [row["branch"] for row in rows[:3]] == [None, "gan1", "gan2"]
    assert made[:4] == [("anew", None, 4), ("anew", None, 4), ("reuse_common", "gan1", 4), ("reuse_common", "gan2", 4)]
    rows, _ = study.reuse_study(None, "a", "b", "c", modes, [0], values, 0.5)
    assert [row["setting"] for row in rows] == modes
