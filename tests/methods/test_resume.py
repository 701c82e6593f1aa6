"""Each method trains on digits as its parameter file says, and a killed training ends with the bits of an undisturbed one."""

from functools import cache

import pytest
import torch

from kdnb import methods
from kdnb.data import load
from kdnb.data.splits import Split
from kdnb.methods import METHODS
from kdnb.models import build
from kdnb.runner.sweep_files import read_sweep
from kdnb.training import loop
from kdnb.training.distil import Setting, student_recipe
from kdnb.training.loop import fit
from kdnb.training.teachers import fresh
from tests.material import Killed

BATCH, STOP = 8, 4  # of 20 images: steps of 8, 8 and 4 images, twice


@cache
def digits():
    torch.set_num_threads(1)
    data = load("digits", 8)
    return (
        data,
        Split(data.train.images[:20], data.train.labels[:20]),
        Split(data.test.images[:20], data.test.labels[:20]),
    )


@cache
def sweep_of_methods() -> dict[str, dict]:
    """The parameters that the sweep of all methods gives each of them."""
    return {run.plan.parameters["method"]: run.plan.parameters for run in read_sweep("digits_methods").runs}


def settings_of(name: str) -> dict:
    """Those of the sweep, on narrower networks so that the whole table takes seconds."""
    p = sweep_of_methods()[name]
    return p | {"teacher": "resnet8w4", "student": "resnet8w8" if p.student == "resnet8w8" else "resnet8w4"}


def trained(name: str, folder=None):
    p, (data, train, test) = settings_of(name), digits()
    setting = Setting(
        p["method"], {key: p[key] for key in ("scales", "temperature", "ce_weight", "kd_weight") if p[key] is not None}
    )
    recipe = student_recipe(
        data, p["milestones"], epochs=2, batch_size=BATCH, lr=p["lr"] / 10, clip_norm=p["clip_norm"], ema_decay=0.5
    )
    torch.manual_seed(3)
    teacher = build(p["teacher"], **data.normalization).eval()
    student = fresh(p["student"], data, seed=0)
    method = methods.build(setting.method, **setting.hyper)
    method.bind(student, teacher, (1, 8, 8), 10, BATCH, recipe.epochs, len(train))
    found = fit(student, train, test, recipe, method=method, teacher=teacher, seed=5, folder=folder)
    return student, method, found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_killed_within_an_epoch_resumes_bit_for_bit(name, tmp_path, monkeypatch):
    straight, straight_method, expected = trained(name)
    accumulate, steps = loop._accumulate, []

    def dying(*arguments):
        accumulate(*arguments)
        steps.append(1)
        if len(steps) == STOP:
            raise Killed

    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    monkeypatch.setattr(loop, "_accumulate", dying)
    with pytest.raises(Killed):
        trained(name, tmp_path)
    monkeypatch.setattr(loop, "_accumulate", lambda *arguments: steps.append(1) or accumulate(*arguments))
    resumed, resumed_method, found = trained(name, tmp_path)
    assert len(steps) == 6 + 1  # the step whose checkpoint was never written is taken again, nothing else
    for first, second in ((straight, resumed), (straight_method, resumed_method)):
        assert first.state_dict().keys() == second.state_dict().keys()
        assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert found.history == expected.history and all(key in found.last for key in ("top1", "loss"))


def test_the_sweep_has_every_method_and_no_other():
    assert sweep_of_methods().keys() == METHODS.keys()
