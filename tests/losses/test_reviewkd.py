import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import hierarchical_context_loss

GENERATOR = torch.Generator().manual_seed(0)
FEAT_S, FEAT_T = torch.randn(2, 3, 2, 8, 8, generator=GENERATOR, dtype=torch.float64).unbind()


def test_a_constant_difference_is_its_square_at_every_level():
    ones = torch.ones(2, 3, 8, 8)
    for size in (1, 2, 4, 7, 8):
        assert hierarchical_context_loss(3 * ones[:, :, :size, :size], ones[:, :, :size, :size]).item() == 4


def test_levels_below_the_map_are_weighted_by_halves():
    d = {8: (FEAT_S - FEAT_T).square().mean()}
    for size in (4, 2, 1):
        d[size] = F.avg_pool2d(FEAT_S - FEAT_T, 8 // size).square().mean()
    expected = (d[8] + d[4] / 2 + d[2] / 4 + d[1] / 8) / 1.875
    assert hierarchical_context_loss(FEAT_S, FEAT_T).item() == pytest.approx(expected.item())
    small_s, small_t = FEAT_S[:, :, :2, :2], FEAT_T[:, :, :2, :2]
    expected = ((small_s - small_t).square().mean() + (small_s - small_t).mean((2, 3)).square().mean() / 2) / 1.5
    assert hierarchical_context_loss(small_s, small_t).item() == pytest.approx(expected.item())


def test_gradients_are_right_and_reach_the_student_only():
    feat_s, feat_t = FEAT_S.clone().requires_grad_(), FEAT_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hierarchical_context_loss(x, FEAT_T), feat_s)
    hierarchical_context_loss(feat_s, feat_t).backward()
    assert feat_t.grad is None


def test_half_precision_holds_large_squares():
    loss = hierarchical_context_loss((FEAT_S * 1000).half(), FEAT_T.half())
    assert loss.dtype == torch.float32 and loss > 65504


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        hierarchical_context_loss(FEAT_S, FEAT_T[:, :1])
