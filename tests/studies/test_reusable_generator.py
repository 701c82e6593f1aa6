"""kdnb.studies.reusable_generator: recipes, branch rules, and tasks that are made once."""

import dataclasses

import pytest
import torch

from kdnb.data import load
from kdnb.errors import InputError
from kdnb.generators.reusable import ReusableGenerator
from kdnb.studies.generator_loop import GeneratorConfig
from kdnb.studies.reusable_generator import (
    Task,
    generator_config,
    generator_task,
    new_generator,
    released_weights,
    reusable_parts,
    saved_generator,
)
from kdnb.training.teachers import Trained
from tests.material import GENERATOR_LOOP, classifier, fused


def finished(generator: ReusableGenerator) -> Task:
    return Task(classifier(0), generator.eval(), [], [], torch.zeros(1), torch.zeros(1), {})


def test_the_branch_rules_choose_a_branch_and_its_opposite():
    task, teacher = finished(fused()), classifier(9).eval()
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


SMALL = dataclasses.replace(GENERATOR_LOOP, epochs=2, student_steps=1)


def test_parameters_and_changes_go_over_the_recipe_of_the_data_set(digits):
    config = generator_config(digits, {"images_per_epoch": 32, "epochs": 5, "teacher": "resnet8"}, epochs=7)
    assert config.synthesis_batch == 32 and config.epochs == 7 and config.latent_dim == 64
    assert config.crop_padding == digits.crop_padding and not config.flip


def test_a_data_set_without_a_recipe_gets_the_published_setting(digits):
    config = generator_config(dataclasses.replace(digits, name="cifar10"))
    assert (config.epochs, config.width, config.temperature) == (GeneratorConfig().epochs, 64, 20.0)


def test_the_published_weights_follow_the_teacher_and_the_released_steps_the_size(digits):
    cifar, tiny = (dataclasses.replace(digits, name=name) for name in ("cifar10", "tiny_imagenet"))
    config = generator_config(cifar, teacher="vgg11")
    assert (config.adv_weight, config.oh_weight, config.inner_steps) == (1.0, 0.5, 10)
    assert generator_config(tiny, teacher="resnet34").inner_steps == 50
    assert generator_config(digits, teacher="vgg11") == generator_config(digits)


def test_constants_of_the_loop_and_the_bound_in_pixels_are_parameters(digits):
    config = generator_config(
        digits, {"loop": "generator_width:8 bn_momentum:0.5", "epsilon": 10.0, "probability": 0.1}
    )
    assert (config.width, config.bn_momentum, config.epsilon, config.probability) == (8, 0.5, 10 / 255, 0.1)
    assert generator_config(digits, {"epsilon": 10.0}) == generator_config(digits)


def test_a_saved_generator_is_the_one_that_was_saved(digits, tmp_path, monkeypatch):
    from kdnb.runs import start_run

    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    made = new_generator(SMALL, digits, seed=3).eval()
    path = start_run("demo", {"seed": 0}).save_network("generator", made)
    z = torch.randn(4, SMALL.latent_dim)
    assert torch.equal(saved_generator(path, SMALL, digits)(z), made(z))


@pytest.mark.parametrize("change", [{"latent_dim": 5}, {"width": 2}, {"generator": "latent"}])
def test_a_saved_generator_of_other_sizes_is_refused_in_a_sentence(digits, tmp_path, change):
    from safetensors.torch import save_file

    path = tmp_path / "generator.safetensors"
    save_file(new_generator(dataclasses.replace(SMALL, **change), digits, seed=0).state_dict(), path)
    with pytest.raises(InputError, match=r"file generator.safetensors is not of a generator of these sizes"):
        saved_generator(path, SMALL, digits)
    path.write_bytes(b"<html>")
    with pytest.raises(InputError, match="neither a torch nor a safetensors file"):
        saved_generator(path, SMALL, digits)


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
