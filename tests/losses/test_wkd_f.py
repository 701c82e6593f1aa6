import statistics

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import grid_moments, wkd_f_losses

GENERATOR = torch.Generator().manual_seed(0)
FEAT_S, FEAT_T = torch.randn(2, 3, 2, 7, 7, generator=GENERATOR, dtype=torch.float64).unbind()


@pytest.mark.parametrize("grid", [1, 2, 4, 7])
def test_moments_of_each_cell(grid):
    means, deviations = grid_moments(FEAT_S, grid)
    bounds = [(i * 7 // grid, -(-(i + 1) * 7 // grid)) for i in range(grid)]
    for cell, ((top, bottom), (left, right)) in enumerate((rows, columns) for rows in bounds for columns in bounds):
        values = FEAT_S[1, 0, top:bottom, left:right].flatten().tolist()
        assert means[1, 0, cell].item() == pytest.approx(statistics.mean(values))
        variance = statistics.variance(values) if len(values) > 1 else 0.0
        assert deviations[1, 0, cell].item() == pytest.approx((variance + 1e-5) ** 0.5)
    pooled = torch.nn.functional.adaptive_avg_pool2d(FEAT_S, grid)
    torch.testing.assert_close(means, pooled.flatten(2))


def test_the_loss_by_hand():
    # means 1 and 3, variances 2 and 8 (divisor 1): deviations sqrt 2 and 2 sqrt 2; two channels alike
    feat_s, feat_t = torch.tensor([0.0, 2.0]).expand(1, 2, 1, 2), torch.tensor([1.0, 5.0]).expand(1, 2, 1, 2)
    of_mean, of_deviation = wkd_f_losses(feat_s, feat_t, eps=0.0)
    assert of_mean.item() == 8 and of_deviation.item() == pytest.approx(2 * 2)


def test_it_is_the_distance_of_gaussians_from_sorted_samples():
    """For x and a x + b of one channel the transport plan pairs ranks: W^2 = mean (a x + b - x)^2 with the divisor n of the variance."""
    x = torch.randn(1, 1, 100, 100, generator=GENERATOR, dtype=torch.float64)
    of_mean, of_deviation = wkd_f_losses(x, 1.7 * x + 0.3, eps=0.0)
    assert (of_mean + of_deviation).item() == pytest.approx((0.7 * x + 0.3).square().mean().item(), rel=1e-3)


def test_places_within_a_cell_may_be_exchanged():
    shuffled = FEAT_T.flatten(2)[:, :, torch.randperm(49, generator=GENERATOR)].view_as(FEAT_T)
    assert sum(wkd_f_losses(shuffled, FEAT_T)).item() == pytest.approx(0, abs=1e-20)
    assert sum(wkd_f_losses(shuffled, FEAT_T, grid=2)) > 0.01


@pytest.mark.parametrize("grid", [1, 4, 7])
def test_gradients_are_right_and_reach_the_student_only(grid):
    feat_s, feat_t = FEAT_S.clone().requires_grad_(), FEAT_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(wkd_f_losses(x, FEAT_T, grid)), feat_s)
    sum(wkd_f_losses(feat_s, feat_t, grid)).backward()
    assert feat_t.grad is None


def test_a_cell_of_one_place_has_no_deviation_and_no_nan():
    feat_s = FEAT_S[:, :, :1, :1].clone().requires_grad_()
    of_mean, of_deviation = wkd_f_losses(feat_s, FEAT_T[:, :, :1, :1])
    (of_mean + of_deviation).backward()
    assert of_deviation.item() == 0 and of_mean > 0 and feat_s.grad.isfinite().all()


def test_half_precision_and_constant_maps_stay_finite():
    flat = torch.full((2, 3, 4, 4), 1000.0, dtype=torch.float16, requires_grad=True)
    loss = sum(wkd_f_losses(flat, torch.zeros(2, 3, 4, 4).half(), 2))
    loss.backward()
    assert loss.item() == pytest.approx(3e6) and flat.grad.isfinite().all()


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        wkd_f_losses(FEAT_S, FEAT_T[:, :1])
