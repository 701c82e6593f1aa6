"""kdnb.training.teachers: one recipe is trained once, and what is read is what was trained."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kdnb.data import load
from kdnb.storage.checkpoints import state_hash
from kdnb.training import teachers
from kdnb.training.distil import student_recipe
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import TEACHER_RECIPES, fresh, teacher_for, teacher_recipe, train_or_load

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.02)


@pytest.fixture(scope="module")
def data():
    return load("digits", 8)


def test_a_network_is_trained_once_and_read_afterwards(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    first = train_or_load("resnet8w4", data, RECIPE, seed=3)
    monkeypatch.setattr(teachers, "fit", None)  # nothing may be trained any more
    second = train_or_load("resnet8w4", data, RECIPE, seed=3)
    assert first.hash == second.hash == state_hash(second.model.state_dict()) and first.history == second.history
    assert first.top1 == first.history[-1]["top1"] and not second.model.training
    with pytest.raises(TypeError):
        train_or_load("resnet8w4", data, RECIPE, seed=4)


@pytest.mark.parametrize(
    "changed", [{"recipe": dataclasses.replace(RECIPE, lr=0.03)}, {"split": "judge"}, {"model": "resnet8w8"}]
)
def test_another_recipe_split_or_network_is_another_classifier(data, tmp_path, monkeypatch, changed):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    base = {"model": "resnet8w4", "recipe": RECIPE, "split": "private"}
    assert train_or_load(data=data, **base).hash != train_or_load(data=data, **base | changed).hash


def test_fresh_weights_depend_on_the_seed_alone(data):
    one = fresh("resnet8w4", data, 1).state_dict()
    torch.rand(1)
    assert (
        state_hash(one)
        == state_hash(fresh("resnet8w4", data, 1).state_dict())
        != state_hash(fresh("resnet8w4", data, 2).state_dict())
    )


def test_teachers_get_the_data_sets_own_recipe_and_augmentation(data):
    recipe = teacher_recipe(data, epochs=3)
    assert recipe == dataclasses.replace(
        TEACHER_RECIPES["digits"], crop_padding=data.crop_padding, flip=False, epochs=3
    )


def test_the_rate_of_a_teacher_falls_however_long_it_is_trained(data):
    cifar = dataclasses.replace(data, name="cifar100")
    assert teacher_recipe(cifar).milestones == (120, 150, 180)
    assert teacher_recipe(cifar, epochs=20).milestones == (12, 15, 18)
    assert teacher_recipe(cifar, epochs=1).milestones == ()
    assert teacher_recipe(cifar, epochs=100, milestones=(40,)).milestones == (40,)


def test_a_teacher_is_trained_on_the_split_and_for_the_epochs_that_are_asked_for(data, monkeypatch):
    asked = []
    monkeypatch.setattr(
        teachers, "train_or_load", lambda name, data, recipe, **how: asked.append((recipe.epochs, how["split"]))
    )
    teacher_for("resnet8w4", data)
    teacher_for("resnet8w4", data, split="private", epochs=3)
    assert asked == [(20, "train"), (3, "private")]


def test_a_student_has_one_cycle_the_steps_of_its_milestones_or_the_schedule_it_is_given(data):
    base = {"epochs": 9, "batch_size": 8, "lr": 0.1}
    cycle, steps = student_recipe(data, **base), student_recipe(data, [3, 6], **base)
    assert (cycle.schedule, cycle.nesterov, cycle.milestones) == ("one_cycle", True, ())
    assert (steps.schedule, steps.nesterov, steps.milestones) == ("multistep", False, (3, 6))
    given = student_recipe(data, **base, schedule="cosine", warmup_epochs=1.0, precision="bf16", ema_decay=0.9)
    assert (given.schedule, given.nesterov, given.precision, given.ema_decay) == ("cosine", False, "bf16", 0.9)


def test_a_teacher_on_imagenet_is_not_trained_as_one_on_cifar():
    data = SimpleNamespace(name="imagenet", crop_padding=0, spec=SimpleNamespace(flip=True))
    recipe = teacher_recipe(data)
    assert (recipe.epochs, recipe.milestones, recipe.lr_gamma, recipe.batch_size) == (90, (30, 60), 0.1, 256)
