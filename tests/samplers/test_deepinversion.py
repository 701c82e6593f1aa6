"""Inversion of pixels: which iterate comes back, units and range, stages, rates, refusals."""

from dataclasses import replace

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses.datafree import one_hot_loss
from kdnb.samplers.deepinversion import (
    ADAPTIVE_BENCHMARK,
    CIFAR_BENCHMARK,
    IMAGENET,
    PixelConfig,
    PixelSynthesizer,
    build,
    pixel_rate,
)
from tests.samplers.nets import SHAPE, bare, problem, rng, states, unchanged

SMALL = PixelConfig(batch_size=6, stages=((1, 8),), lr=0.1, bn_weight=1.0)


def make(config=SMALL, **changes):
    return build(problem(), replace(config, **changes))


def test_a_batch_has_images_in_range_and_every_iterations_losses():
    made = make()(rng())
    assert made.images.shape == (6, *SHAPE) and made.images.abs().amax() <= 1
    assert set(made.losses) == {"oh", "bn", "tv_l2", "total"} and made.losses["total"].shape == (8,)


def test_the_iterate_of_lowest_loss_comes_back_and_not_the_last():
    synthesizer = make(roll=0, tv_l2_weight=1.0)
    x, labels = torch.randn(6, *SHAPE, generator=rng()), torch.arange(6) % 3
    steps, rates = 8, [0.1] * 4 + [9.0] * 4  # the last are so large that the loss rises
    found = synthesizer.descend(x, labels, rates, [(0, 0)] * steps, [False] * steps)
    best = found.losses["total"].argmin().item()
    assert best < steps - 1 and not torch.equal(found.best, found.last)
    again = synthesizer.descend(x, labels, rates[:best], [(0, 0)] * best, [False] * best) if best else None
    assert torch.equal(found.best, again.last if again else x)


def test_inversion_makes_the_teacher_name_the_wanted_classes():
    synthesizer = make(stages=((1, 60),), batch_size=12, bn_weight=0.0, tv_l2_weight=0.0, roll=0, clip=True)
    made = synthesizer(rng())
    with torch.no_grad():
        reached = one_hot_loss(synthesizer.teacher(made.images), made.labels)
    assert reached.item() == pytest.approx(made.losses["oh"].min().item(), rel=1e-4)
    assert reached < 0.95 * made.losses["oh"][1]


def test_the_adaptive_form_asks_the_student_and_the_plain_form_does_not():
    assert "adv" in make(ADAPTIVE_BENCHMARK, batch_size=4, stages=((1, 2),))(rng()).losses
    assert "adv" not in make(CIFAR_BENCHMARK, batch_size=4, stages=((1, 2),))(rng()).losses


def test_classifiers_stay_as_they_are():
    synthesizer = make(adv_weight=1.0)
    kept = states(synthesizer.teacher), states(synthesizer.student)
    synthesizer(rng())
    assert unchanged(synthesizer.teacher, kept[0]) and unchanged(synthesizer.student, kept[1])


def test_a_first_stage_sees_means_and_a_second_goes_on_from_there():
    made = make(IMAGENET, batch_size=4, stages=((2, 3), (1, 2)), roll=2)(rng())
    assert made.images.shape == (4, *SHAPE) and made.losses["total"].shape == (5,)


def test_clipped_pixels_never_leave_the_range_in_which_they_are_judged():
    synthesizer = make(clip=True, lr=5.0, roll=0)
    x = torch.zeros(6, *SHAPE)
    found = synthesizer.descend(x, torch.arange(6) % 3, [5.0] * 4, [(0, 0)] * 4, [False] * 4)
    assert synthesizer.denormalize(found.best).abs().amax() <= 1 + 1e-6
    assert synthesizer.denormalize(found.last).abs().amax() > 1


def test_rates_warm_up_and_fall_as_a_cosine():
    config = replace(SMALL, schedule="cosine", rate_warmup=4, lr=1.0)
    rates = [pixel_rate(config, step, 8) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert pixel_rate(SMALL, 5, 8) == SMALL.lr


def test_the_same_source_gives_the_same_images():
    assert torch.equal(make()(rng(4)).images, make()(rng(4)).images)


def test_a_teacher_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="DeepInversion matches the statistics"):
        build(problem(bare()), SMALL)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not divide"):
        make(stages=((3, 2),))
    with pytest.raises(InputError, match="channels"):
        PixelSynthesizer(*problem()[:4], (0.5, 0.5), (0.5, 0.5), SMALL)
    with pytest.raises(InputError, match="schedule"):
        replace(SMALL, schedule="linear")
    with pytest.raises(InputError, match="iterations"):
        replace(SMALL, stages=((1, 0),))
