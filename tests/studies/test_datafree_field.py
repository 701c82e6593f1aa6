"""kdnb.studies.datafree_field: every method trains a student in the one loop, resumes bit for bit, and refuses what it can't use."""

import pytest
import torch

from kdnb.choices import DIFFUSION_SOURCES
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.losses import kd_loss
from kdnb.samplers.field import METHODS
from kdnb.samplers.noisy_layers import NoisyConfig
from kdnb.samplers.one_step import OneStepConfig
from kdnb.samplers.source import SourceConfig
from kdnb.studies.datafree_loop import LoopConfig, student_rate
from kdnb.studies.datafree_run import distil_by, student_loss
from kdnb.studies.datafree_settings import SETTINGS, StudentConfig, setting
from tests.material import (
    Killed,
    classifier,
    few_images,
    run_datafree,
    same_weights,
    smallest_setting,
    three_classes,
    without_times,
)
from tests.samplers.nets import bare


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_student(name):
    student, found = run_datafree(name)
    assert not same_weights(student, classifier(0)) and not student.training
    assert ["train" in row for row in found.history] == [False, True, True, True]
    assert ["top1" in row for row in found.history] == [False, True, False, True]
    assert found.images.shape[1:] == (1, 8, 8) and len(found.images) == found.history[-1]["stored"]


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, monkeypatch, name):
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1)
    student, found = run_datafree(name)

    def kill(**row):
        if row["epoch"] == 3:  # before this round's checkpoint
            raise Killed

    with pytest.raises(Killed):
        run_datafree(name, folder=tmp_path, log=kill)
    again, resumed = run_datafree(name, folder=tmp_path)
    assert same_weights(student, again)
    assert torch.equal(found.images, resumed.images) and torch.equal(found.labels, resumed.labels)
    assert without_times(found.history) == without_times(resumed.history) and found.inner == resumed.inner


@pytest.mark.parametrize("data_set", SETTINGS)
def test_every_method_has_settings_for_every_data_set(data_set):
    assert SETTINGS[data_set].keys() == {*METHODS, *DIFFUSION_SOURCES, "noise"}
    for name, (synthesis, student) in SETTINGS[data_set].items():
        kind = type(METHODS[name].config) if name in METHODS else SourceConfig
        assert type(synthesis) is kind and isinstance(student, StudentConfig)


def test_a_data_set_without_settings_gets_the_published_ones():
    assert setting("cmi", three_classes("tiny_imagenet")) == SETTINGS["cifar10"]["cmi"]
    assert setting("cmi", three_classes()) is SETTINGS["digits"]["cmi"]


def test_the_given_temperature_is_used():
    teacher, student, images = classifier(9).eval(), classifier(0).eval(), few_images().images
    supply = lambda count, rng: images  # noqa: E731
    for temperature in (1.0, 20.0):
        loss = student_loss(teacher, student, supply, StudentConfig(temperature=temperature), None)
        assert torch.allclose(loss, kd_loss(student(images), teacher(images), temperature))


def test_dfads_student_minimises_what_its_generator_maximises():
    teacher, student, images = classifier(9).eval(), classifier(0).eval(), few_images().images
    loss = student_loss(teacher, student, lambda count, rng: images, StudentConfig(loss="l1"), None)
    assert torch.allclose(loss, (student(images) - teacher(images)).abs().mean())


def test_given_embeddings_replace_random_vectors():
    vectors = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    plain, named = run_datafree("nayer")[1], run_datafree("nayer", embeddings=vectors)[1]
    assert not torch.equal(plain.images, named.images)
    with pytest.raises(InputError, match="dfq has no use for them"):
        run_datafree("dfq", embeddings=vectors)
    with pytest.raises(InputError, match=r"must be \(3, D\)"):
        run_datafree("nayer", embeddings=vectors[:2])


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'zskt'"):
        setting("zsk", three_classes())


@pytest.mark.parametrize("name", [name for name, line in METHODS.items() if "batch norm" in line.assumes])
def test_methods_that_match_statistics_refuse_a_teacher_without_batch_norm(name):
    with pytest.raises(InputError, match="has none|no classifier of kdnb.models"):
        run_datafree(name, teacher=bare())


def test_dafl_refuses_a_teacher_without_features():
    with pytest.raises(InputError, match="DAFL looks at features"):
        run_datafree("dafl", teacher=bare())


@pytest.mark.parametrize("name", ["zskt", "dfad"])
def test_methods_that_assume_nothing_do_with_any_classifier(name):
    assert len(run_datafree(name, teacher=bare())[1].history) == 4


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (LoopConfig, "epochs", 0),
        (LoopConfig, "lr", 0.0),
        (StudentConfig, "pool_size", 3),
        (StudentConfig, "temperature", 0.0),
        (StudentConfig, "loss", "l2"),
        (OneStepConfig, "latent_dim", 0),
        (NoisyConfig, "batch_size", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(kind, field, value):
    with pytest.raises(InputError, match=field.replace("_", ".")):
        kind(**{field: value})


def test_the_rate_is_the_cosine_of_the_rounds_with_a_student():
    config = LoopConfig(epochs=12, warmup=2, lr=0.2, final_lr=0.0)
    assert [student_rate(config, epoch) for epoch in (2, 7, 12)] == pytest.approx([0.2, 0.1, 0.0])


def test_images_of_another_size_than_the_generators_are_refused():
    odd = three_classes()
    odd.image_size = 10
    odd.test = Split(torch.zeros(3, 1, 10, 10), torch.arange(3))
    with pytest.raises(InputError, match="multiple of 4"):
        distil_by("cmi", classifier(9), classifier(0), odd, smallest_setting("cmi"))
