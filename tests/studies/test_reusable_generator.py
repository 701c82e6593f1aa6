"""kdnb.studies.reusable_generator: recipes, branch rules, and tasks that are made once."""

import dataclasses

import pytest
import torch

from kdnb.data import load
from kdnb.errors import InputError
from kdnb.generators.reusable import ReusableGenerator
from kdnb.studies.generator_loop import GeneratorConfig
from kdnb.studies.reusable_generator import Task, generator_config, generator_task, released_weights, reusable_parts
from kdnb.training.teachers import Trained
from tests.studies.test_generator_loop import CONFIG, fused, network


def finished(generator: ReusableGenerator) -> Task:
    return Task(network(0), generator.eval(), [], [], torch.zeros(1), torch.zeros(1), {})


def test_the_branch_rules_choose_a_branch_and_its_opposite():
    task, teacher = finished(fused()), network(9).eval()
    chosen = {rule: reusable_parts(task, teacher, rule)[0] for rule in ("gan1", "gan2", "less_active", "more_active")}
    key = next(iter(chosen["gan1"]))
    pairs = [torch.equal(chosen["gan1"][key], chosen[rule][key]) for rule in ("less_active", "more_active")]
    assert sorted(pairs) == [False, True]
    assert not torch.equal(chosen["gan1"][key], chosen["gan2"][key])


def test_released_weights_depend_on_the_teacher():
    assert (
        released_weights("vgg11") == (1.0, 0.5)
        and released_weights("wrn_40_2") == (1.1, 0.4)
        and released_weights("resnet34") == (1.33, 0.5)
    )


@pytest.fixture(scope="module")
def digits():
    return load("digits", 8)


def trained(digits) -> Trained:
    from kdnb.training.teachers import fresh

    return Trained(fresh("resnet8w4", digits, 0).eval(), [{"top1": 0.1}], "teacher")


SMALL = dataclasses.replace(CONFIG, epochs=2, student_steps=1)


def test_parameters_and_changes_go_over_the_recipe_of_the_data_set(digits):
    config = generator_config(digits, {"images_per_epoch": 32, "epochs": 5, "teacher": "resnet8"}, epochs=7)
    assert config.synthesis_batch == 32 and config.epochs == 7 and config.latent_dim == 64
    assert config.crop_padding == digits.crop_padding and not config.flip


def test_a_data_set_without_a_recipe_gets_the_published_setting(digits):
    config = generator_config(dataclasses.replace(digits, name="cifar10"))
    assert (config.epochs, config.width, config.temperature) == (GeneratorConfig().epochs, 64, 20.0)


def test_a_task_is_made_once_and_shared_where_settings_are_unused(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    made = generator_task(digits, trained(digits), "resnet8w4", SMALL)
    again = generator_task(digits, trained(digits), "resnet8w4", dataclasses.replace(SMALL, epsilon=0.5))
    assert len(list((tmp_path / "generator").iterdir())) == 1
    assert again.history == made.history and torch.equal(again.images, made.images)
    generator_task(digits, trained(digits), "resnet8w4", dataclasses.replace(SMALL, hard_loss="no_aea"))
    assert len(list((tmp_path / "generator").iterdir())) == 2


def test_reuse_needs_parts_and_a_generator_with_branches(digits):
    with pytest.raises(InputError, match="needs the branch"):
        generator_task(digits, trained(digits), "resnet8w4", SMALL, mode="reuse_fix")
    with pytest.raises(InputError, match="no branch to reuse"):
        generator_task(
            digits, trained(digits), "resnet8w4", dataclasses.replace(SMALL, generator="latent"), mode="reuse_fix"
        )
