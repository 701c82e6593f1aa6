import math

import pytest
import torch
from scipy.stats import truncnorm

from kdnb.errors import InputError
from kdnb.losses import ofd_loss, ofd_margin

GENERATOR = torch.Generator().manual_seed(0)
FEAT_S, FEAT_T = torch.randn(2, 3, 2, 4, 4, generator=GENERATOR, dtype=torch.float64).unbind()
MARGIN = torch.tensor([-0.5, -0.1], dtype=torch.float64)


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.7, 0.5), (-0.7, 0.5), (-3.0, -0.5), (1.5, -0.6)])
def test_the_margin_is_the_mean_of_the_negative_half(beta, gamma):
    expected = truncnorm.mean(-math.inf, -beta / abs(gamma), beta, abs(gamma))
    margin = ofd_margin(torch.tensor([beta], dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64))
    assert margin.item() == pytest.approx(expected)


def test_a_channel_that_is_hardly_ever_negative_gets_three_deviations():
    beta, gamma = torch.tensor([3.0, 3.2, 50.0]), torch.tensor([1.0, 1.0, 0.5])  # Phi = 0.00135, 0.0007, 0
    assert ofd_margin(beta, gamma)[1:].tolist() == [-3.0, -1.5] and -3.0 < ofd_margin(beta, gamma)[0] < 0


def test_a_channel_without_spread_is_its_own_mean():
    assert ofd_margin(torch.tensor([-0.5, 0.0, 2.0]), torch.zeros(3)).tolist() == [-0.5, 0.0, 0.0]


def test_the_loss_from_the_three_cases_of_the_paper():
    total = 0.0
    for b in range(3):
        for c in range(2):
            for s, t in zip(FEAT_S[b, c].flatten().tolist(), FEAT_T[b, c].flatten().tolist(), strict=True):
                m = MARGIN[c].item()
                if t > 0:
                    total += (s - t) ** 2
                elif s > max(t, m):
                    total += (s - max(t, m)) ** 2
    assert ofd_loss(FEAT_S, FEAT_T, MARGIN).item() == pytest.approx(total / 3)


def test_a_student_as_silent_as_the_teacher_or_more_costs_nothing():
    silent = torch.full((1, 1, 2, 2), -2.0)
    assert ofd_loss(silent, torch.full((1, 1, 2, 2), -1.0), torch.tensor([-0.5])).item() == 0
    assert (
        ofd_loss(silent, torch.full((1, 1, 2, 2), 1.0), torch.tensor([-0.5])).item() == 4 * 9
    )  # the teacher isn't silent
    assert ofd_loss(torch.zeros(1, 1, 2, 2), silent, torch.tensor([-0.5])).item() == 4 * 0.25  # up to the margin only


def test_gradients_are_right_and_reach_the_student_only():
    feat_s, feat_t = FEAT_S.clone().requires_grad_(), FEAT_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ofd_loss(x, FEAT_T, MARGIN), feat_s)
    ofd_loss(feat_s, feat_t, MARGIN).backward()
    assert feat_t.grad is None


def test_half_precision_holds_sums_over_a_map():
    loss = ofd_loss(torch.full((1, 64, 8, 8), 10.0).half(), torch.zeros(1, 64, 8, 8).half(), torch.zeros(64).half())
    assert loss.item() == 409600


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        ofd_loss(FEAT_S, FEAT_T[:, :1], MARGIN)
