"""kdnb.reuse_study: the numbers of a run, against a history written out by hand."""

import pytest
import torch
from torch import nn

from kdnb.generator_distillation import Task
from kdnb.reuse_study import convergence, mean_curve


def task(*rows: tuple[float, float, float]) -> Task:
    history = [{"epoch": epoch, "bn": bn, "oh": oh, "top1": top1, "elapsed": 2.0 * epoch} for epoch, (bn, oh, top1) in enumerate(rows, start=1)]
    return Task(nn.Identity(), nn.Identity(), history, [], torch.zeros(1), torch.zeros(1), {})


def test_a_run_is_summed_up():
    found = convergence(task((8.0, 2.0, 0.1), (4.0, 2.0, 0.5), (3.0, 2.0, 0.9)), target=0.5)
    assert found == {"first": 10.0, "round_2": 6.0, "last": 5.0, "area": 7.0, "top1": 0.9, "mean_top1": pytest.approx(0.5),
                     "rounds_to_target": 2, "seconds_to_target": 4.0}


def test_a_target_that_is_missed_has_no_round():
    found = convergence(task((1.0, 1.0, 0.1)), target=0.5)
    assert found["rounds_to_target"] is None and found["seconds_to_target"] is None


def test_a_mean_curve_has_the_range_of_its_runs():
    curve = mean_curve([[{"x": 1.0}, {"x": 4.0}], [{"x": 3.0}, {"x": 4.0}]], lambda row: row["x"])
    assert curve == [{"at": 1, "mean": 2.0, "low": 1.0, "high": 3.0}, {"at": 2, "mean": 4.0, "low": 4.0, "high": 4.0}]
