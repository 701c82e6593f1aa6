"""kdnb.training.teachers: one recipe is trained once, and what is read is what was trained."""

import dataclasses

import pytest
import torch

from kdnb.data import load
from kdnb.storage.checkpoints import state_hash
from kdnb.training import teachers
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import TEACHER_RECIPES, fresh, teacher_recipe, train_or_load

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
