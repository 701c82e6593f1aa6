"""kdnb.studies.fast_ad: the online loop learns, keeps its budget, and resumes bit for bit."""

import copy
import dataclasses

import pytest
import torch

from kdnb.data import load
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.studies.fast_ad import (
    OnlineConfig,
    diffusion_source,
    distil_online,
    draw_labels,
    noise_source,
    online_config,
    pool_source,
)
from tests.material import ONLINE_LOOP, FloatPrior, Killed, classifier, few_images, same_weights


def run(source, config=ONLINE_LOOP, seed: int = 1, folder=None, teacher=None):
    student = classifier(0)
    found = distil_online(
        teacher or classifier(9).eval(), student, source, (1, 8, 8), 3, few_images(), config, seed=seed, folder=folder
    )
    return student, found


def test_the_student_comes_closer_to_the_teacher():
    _, found = run(
        noise_source((1, 8, 8)), dataclasses.replace(ONLINE_LOOP, epochs=10, student_steps=10, milestones=(8,))
    )
    assert found.last["kd"] < 0.5 * found.history[0]["kd"]


def test_the_ring_and_the_history_are_as_the_budget_says():
    _, found = run(noise_source((1, 8, 8)))
    assert [row["stored"] for row in found.history] == [12, 20, 20, 20]
    assert found.images.shape == (20, *(1, 8, 8)) and len(found.history) == 4
    assert [row["lr"] for row in found.history] == pytest.approx([0.05, 0.05, 0.005, 0.005])


def test_while_too_few_images_are_stored_student_and_schedule_wait():
    _, found = run(noise_source((1, 8, 8)), dataclasses.replace(ONLINE_LOOP, images_per_epoch=3, milestones=(1,)))
    assert ["kd" in row for row in found.history] == [False, False, True, True]
    assert [row.get("lr") for row in found.history] == [None, None, 0.05, pytest.approx(0.005)]


def test_a_bounded_number_of_images_is_made_once():
    made = []

    def source(labels, generator):
        made.append(len(labels))
        return noise_source((1, 8, 8))(labels, generator)

    _, found = run(source, dataclasses.replace(ONLINE_LOOP, images_per_epoch=4, total_images=6))
    assert made == [4, 2] and [row["stored"] for row in found.history] == [4, 6, 6, 6]
    assert ["kd" in row for row in found.history] == [
        False,
        True,
        True,
        True,
    ]  # trains as soon as all its images are there


def test_labels_are_balanced_or_uniform():
    generator = torch.Generator().manual_seed(0)
    assert draw_labels(30, 10, True, generator).bincount().tolist() == [3] * 10
    uniform = draw_labels(3000, 10, False, generator).bincount(minlength=10)
    assert 200 < int(uniform.min()) and int(uniform.max()) < 400 and len(set(uniform.tolist())) > 1


def test_a_pool_is_drawn_without_its_labels():
    images = torch.randn(5, *(1, 8, 8))
    drawn = pool_source(images)(torch.zeros(7, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert all(any(torch.equal(one, image) for image in images) for one in drawn)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_killed_loop_resumes_bit_for_bit(guided, stop, tmp_path, monkeypatch):
    teacher, prior = classifier(9).eval(), FloatPrior()
    guidance = GuidanceConfig(eta=0.3) if guided else None

    def complete(folder, kill_at=None):
        with diffusion_source(prior, (1, 8, 8), teacher=teacher, guidance=guidance, num_steps=3) as source:
            calls = 0

            def dying(labels, generator):
                nonlocal calls
                calls += 1
                if kill_at is not None and calls > kill_at:
                    raise Killed
                return source(labels, generator)

            return run(dying, folder=folder, teacher=teacher)

    straight, expected = complete(None)
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    with pytest.raises(Killed):
        complete(tmp_path, kill_at=stop)
    resumed, found = complete(tmp_path)
    assert same_weights(straight, resumed) and found.history == expected.history
    assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)


def test_a_finished_loop_is_not_run_again(tmp_path):
    first, _ = run(noise_source((1, 8, 8)), folder=tmp_path)

    def forbidden(labels, generator):
        raise AssertionError("images were made again")

    second, found = run(forbidden, folder=tmp_path)
    assert same_weights(first, second) and len(found.history) == 4


def test_guidance_leaves_no_hooks_behind():
    teacher = classifier(9)
    with diffusion_source(FloatPrior(), (1, 8, 8), teacher=teacher, guidance=GuidanceConfig()):
        assert any(module._forward_pre_hooks for module in teacher.modules())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_a_loss_that_is_not_a_number_stops_the_loop():
    def broken(labels, generator):
        return torch.full((len(labels), *(1, 8, 8)), float("nan"))

    with pytest.raises(FloatingPointError, match="infinite or NaN in round 1"):
        run(broken)


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"images_per_epoch": 0}, {"batch_size": 1}, {"buffer_size": 0}, {"temperature": 0.0}, {"lr": -1.0}],
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        OnlineConfig(**bad)


def test_a_notebooks_parameters_reach_the_loop():
    data, values = load("digits"), {"epochs": 3, "lr": 0.2, "milestones": [1], "balanced": True, "seed": 5}
    found = online_config(
        data, values | {"online": "temperature:2 weight_decay:0 momentum:0.5 lr_gamma:0.2 eval_every:2"}
    )
    assert (found.epochs, found.lr, found.milestones, found.balanced) == (3, 0.2, (1,), True)
    assert (found.temperature, found.weight_decay, found.momentum, found.lr_gamma, found.eval_every) == (
        2,
        0,
        0.5,
        0.2,
        2,
    )
    assert (found.crop_padding, found.flip) == (data.crop_padding, data.spec.flip) and found.crop_padding > 0
    assert online_config(data, values | {"online": "augment:false"}).crop_padding == 0


def test_the_layout_of_the_student_changes_speed_and_no_result():
    torch.manual_seed(0)
    wide = build("resnet8w8", num_classes=3, in_channels=1)
    config = dataclasses.replace(ONLINE_LOOP, epochs=2, milestones=())
    found = []
    for layout in ("contiguous", "channels_last"):
        student, own = copy.deepcopy(wide), dataclasses.replace(config, layout=layout)
        distil_online(classifier(9).eval(), student, noise_source((1, 8, 8)), (1, 8, 8), 3, few_images(), own)
        found.append(student)
    for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_layout_that_would_crash_is_refused():
    with pytest.raises(InputError, match="under 8 channels"):
        run(noise_source((1, 8, 8)), dataclasses.replace(ONLINE_LOOP, layout="channels_last"))
