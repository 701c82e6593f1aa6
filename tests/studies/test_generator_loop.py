"""kdnb.studies.generator_loop: modes start and learn as stated, the student comes closer to the teacher, a killed run resumes bit for bit."""

import dataclasses

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator
from kdnb.generators.reusable import prepare
from kdnb.studies.datafree_loop import student_rate
from kdnb.studies.generator_loop import distil_from_generator
from tests.material import (
    GENERATOR_LOOP,
    Killed,
    classifier,
    few_images,
    fused,
    run_generator_loop,
    same_weights,
    without_times,
)

# --- the loop ------------------------------------------------------------------------------------------------------------------


def test_the_pool_and_the_history_are_as_the_budget_says():
    _, _, found = run_generator_loop()
    assert [row["stored"] for row in found.history] == [8, 16, 20, 20]
    assert [row["images"] for row in found.history] == [8, 16, 24, 32]
    assert found.images.shape == (20, 1, 8, 8) and found.images.abs().max() <= 1
    assert len(found.inner) == 4 * GENERATOR_LOOP.inner_steps


def test_the_student_waits_for_the_warm_up():
    _, _, found = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, warmup=2))
    assert ["train" in row for row in found.history] == [False, False, True, True]


def test_the_adversarial_term_starts_one_round_before_the_student():
    _, _, found = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, warmup=2))
    assert ["adv" in row for row in found.history] == [False, True, True, True]


def test_the_mean_of_a_round_is_that_of_its_inner_steps():
    _, _, found = run_generator_loop()
    for row in found.history:
        steps = [step for step in found.inner if step["epoch"] == row["epoch"]]
        assert row["bn"] == pytest.approx(sum(step["bn"] for step in steps) / 2)
        assert row["loss_first"] == steps[0]["total"]


def test_the_student_comes_closer_to_the_teacher():
    _, _, found = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, epochs=8, student_steps=10))
    assert found.history[-1]["train"] < 0.5 * found.history[1]["train"]


def test_the_rate_falls_as_a_cosine_from_the_warm_up_on():
    config = dataclasses.replace(GENERATOR_LOOP, epochs=12, warmup=2, lr=0.2, final_lr=0.0)
    assert [student_rate(config, epoch) for epoch in (2, 7, 12)] == pytest.approx([0.2, 0.1, 0.0])


def test_the_teacher_keeps_its_weights_and_gathers_no_gradient():
    teacher = classifier(9).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distil_from_generator(teacher, classifier(0), fused(), 3, few_images(), GENERATOR_LOOP)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_generator_samples_alike_in_evaluation_and_training_mode():
    _, generator, _ = run_generator_loop()
    z = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        still = generator(z)
        moving = generator.train()(z)
    assert (still - moving).abs().mean() < 0.2 * moving.std()


def test_branches_that_start_apart_stay_apart_and_twins_stay_twins():
    for twins in (False, True):
        _, generator, _ = run_generator_loop(generator=fused(twin_branches=twins))
        equal = [
            torch.equal(a, b) for a, b in zip(generator.gan1.parameters(), generator.gan2.parameters(), strict=True)
        ]
        assert (
            all(equal)
            if twins
            else not any(a for a, p in zip(equal, generator.gan1.parameters(), strict=True) if p.dim() > 1)
        )


@pytest.mark.parametrize("hard_loss", ["none", "no_aea", "aea"])
def test_every_hard_loss_trains(hard_loss):
    _, _, found = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, hard_loss=hard_loss, probability=0.5))
    assert found.history[-1]["train"] > 0


def test_attacked_images_change_what_the_student_learns():
    plain, _, _ = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, hard_loss="no_aea"))
    attacked, _, _ = run_generator_loop(dataclasses.replace(GENERATOR_LOOP, hard_loss="aea", probability=0.5))
    assert not same_weights(plain, attacked)


@pytest.mark.parametrize(("hard_loss", "killed_in"), [("none", 1), ("none", 3), ("aea", 2)])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, monkeypatch, hard_loss, killed_in):
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1)
    config = dataclasses.replace(GENERATOR_LOOP, hard_loss=hard_loss, probability=0.5)
    student, generator, found = run_generator_loop(config)

    def kill(**row):
        if row["epoch"] == killed_in + 1:  # before this round's checkpoint, after its shard
            raise Killed

    with pytest.raises(Killed):
        run_generator_loop(config, folder=tmp_path, log=kill)
    again, generator_again, resumed = run_generator_loop(config, folder=tmp_path)
    assert same_weights(student, again) and same_weights(generator, generator_again)
    assert torch.equal(found.images, resumed.images) and torch.equal(found.labels, resumed.labels)
    assert without_times(found.history) == without_times(resumed.history) and found.inner == resumed.inner


def test_a_finished_run_is_only_read(tmp_path):
    student, _, found = run_generator_loop(folder=tmp_path)
    again, _, resumed = run_generator_loop(
        folder=tmp_path, log=lambda **row: pytest.fail("a finished run worked again")
    )
    assert (
        same_weights(student, again) and resumed.history == found.history and torch.equal(resumed.images, found.images)
    )


def test_a_latent_generator_works_without_branches():
    torch.manual_seed(2)
    _, _, found = run_generator_loop(generator=LatentGenerator(image_size=8, channels=1, latent_dim=6, width=4))
    assert len(found.history) == 4


# --- reuse ---------------------------------------------------------------------------------------------------------------------


def moved(mode: str, lr: float) -> dict[str, float]:
    """Largest change of a weight, by part, in one round of one inner step: Adam's first step is close to its learning rate."""
    source = fused(seed=7)
    generator = fused()
    prepare(generator, mode, *((source.gan2.state_dict(), source.decoder.state_dict()) if mode != "anew" else ()))
    before = {name: value.detach().clone() for name, value in generator.named_parameters()}
    run_generator_loop(
        dataclasses.replace(GENERATOR_LOOP, epochs=1, inner_steps=1, lr_generator=lr, student_steps=0),
        generator,
        mode=mode,
    )
    change = {name: (value.detach() - before[name]).abs().max().item() for name, value in generator.named_parameters()}
    return {
        part: max(size for name, size in change.items() if name.startswith(part))
        for part in ("gan1", "gan2", "decoder")
    }


@pytest.mark.parametrize(
    ("mode", "factor"), [("anew", 1.0), ("reuse_common", 1.0), ("reuse_finetune", 0.1), ("reuse_fix", 0.0)]
)
def test_each_mode_learns_at_its_stated_rates(mode, factor):
    change = moved(mode, lr=1e-3)
    assert change["gan1"] == pytest.approx(1e-3, rel=0.02)
    assert change["gan2"] == pytest.approx(factor * 1e-3, rel=0.02, abs=1e-9)
    assert change["decoder"] == pytest.approx(factor * 1e-3, rel=0.02, abs=1e-9)


# --- settings ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("inner_steps", 0),
        ("hard_loss", "soft"),
        ("generator", "gan"),
        ("lr", 0.0),
        ("temperature", 0.0),
        ("pool_size", 2),
        ("synthesis_batch", 1),
    ],
)
def test_a_setting_out_of_range_is_refused(field, value):
    with pytest.raises(InputError, match=field.replace("_", ".")):
        dataclasses.replace(GENERATOR_LOOP, **{field: value})


def test_a_latent_generator_can_reuse_nothing():
    with pytest.raises(InputError, match="ReusableGenerator"):
        run_generator_loop(generator=LatentGenerator(image_size=8, channels=1, latent_dim=6, width=4), mode="reuse_fix")
