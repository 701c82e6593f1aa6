"""Priors on pixels: norms, the adaptive term and its released form, the valid range."""

import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses.pixel_priors import (
    adaptive_loss,
    adaptive_loss_released,
    clip_pixels,
    l2_prior,
    l2_prior_batch,
    pixel_bounds,
)

SURE = torch.tensor([[30.0, 0.0]])


def test_the_norm_of_a_batch_grows_with_its_size_and_the_mean_norm_does_not():
    image = torch.full((1, 1, 3, 3), 2.0)
    batch = image.expand(4, -1, -1, -1)
    assert l2_prior(image) == 6 and l2_prior(batch) == 6
    assert l2_prior_batch(image) == 6 and l2_prior_batch(batch) == 12


def test_the_adaptive_term_is_one_where_the_networks_agree_and_1_minus_ln_2_where_they_exclude_each_other():
    assert adaptive_loss(SURE, SURE) == 1
    assert adaptive_loss(10 * SURE, -10 * SURE).item() == pytest.approx(1 - math.log(2.0))


def test_the_released_term_loses_its_gradient_where_its_divergence_passes_one():
    logits = (20 * torch.eye(4)[:1]).requires_grad_()
    loss = adaptive_loss_released(logits, 20 * torch.eye(4)[1:2])
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].abs().sum() == 0


def test_clipped_pixels_lie_between_black_and_white():
    low, high = pixel_bounds((0.5, 0.25), (0.5, 0.25), torch.zeros(()))
    assert low.flatten().tolist() == [-1, -1] and high.flatten().tolist() == [1, 3]
    x = torch.full((1, 2, 1, 1), 9.0)
    assert clip_pixels(x, (0.5, 0.25), (0.5, 0.25)).flatten().tolist() == [1, 3]


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_a_bad_normalisation_is_refused(mean, std):
    with pytest.raises(InputError, match="std"):
        pixel_bounds(mean, std, torch.zeros(()))
