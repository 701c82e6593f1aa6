import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import batch_similarity, feature_mse, pool_to, pool_to_smaller, semckd_loss, vid_loss
from kdnb.losses.features import unit_length

GENERATOR = torch.Generator().manual_seed(0)
FEAT_S, FEAT_T = torch.randn(2, 3, 4, 2, 2, generator=GENERATOR, dtype=torch.float64).unbind()
VARIANCE = torch.rand(4, generator=GENERATOR, dtype=torch.float64) + 0.5


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 3, 2, 2)
    assert pool_to_smaller(large, small)[0].tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(pool_to_smaller(small, large)[1], pool_to_smaller(large, small)[0])
    assert pool_to(small, (2, 2)) is small


def test_mse_by_hand_and_zero_at_agreement():
    assert feature_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item() == 2.0
    assert feature_mse(FEAT_T, FEAT_T).item() == 0


def test_unit_length_of_zeros_is_zeros_with_a_gradient_of_ordinary_size():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_length(rows)
    unit.sum().backward()
    assert torch.allclose(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0]])) and rows.grad[1].tolist() == [1, 1]


def test_vid_by_hand():
    # one element a channel: 1/2 (2^2 / 4 + log 4) and 1/2 (0 + log 1)
    loss = vid_loss(torch.tensor([[[[1.0]], [[5.0]]]]), torch.tensor([4.0, 1.0]), torch.tensor([[[[3.0]], [[5.0]]]]))
    assert loss.item() == pytest.approx((0.5 * (1 + math.log(4)) + 0) / 2)


def test_vid_is_the_gaussian_likelihood_without_its_constant():
    normal = torch.distributions.Normal(FEAT_S, VARIANCE.sqrt().view(1, -1, 1, 1))
    expected = -normal.log_prob(FEAT_T).mean() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(vid_loss(FEAT_S, VARIANCE, FEAT_T), expected)


def test_vid_is_least_where_the_variance_is_the_mean_squared_error():
    best = (FEAT_S - FEAT_T).square().mean((0, 2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(vid_loss(FEAT_S, best, FEAT_T), best)
    assert gradient.abs().max() < 1e-12


def test_similarity_is_the_product_of_flattened_maps_and_autocast_leaves_it_alone():
    expected = torch.stack([torch.stack([(a * b).sum() for b in FEAT_S]) for a in FEAT_S])
    assert torch.allclose(batch_similarity(FEAT_S), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(batch_similarity(FEAT_S.float()), expected.float(), rtol=1e-5, atol=1e-6)


def test_similarity_of_large_half_precision_maps_does_not_overflow():
    large = torch.full((2, 64, 16, 16), 10.0, dtype=torch.float16)  # the sums are 1.6 million, float16 ends at 65504
    assert batch_similarity(large).tolist() == [[1638400.0] * 2] * 2


def test_semckd_by_hand():
    attention, distances = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]]), torch.tensor([[[4.0, 8.0], [2.0, 100.0]]])
    assert semckd_loss(attention, distances).item() == (0.25 * 4 + 0.75 * 8 + 2) / 2


@pytest.mark.parametrize("loss", [feature_mse, lambda s, t: vid_loss(s, VARIANCE, t)])
def test_gradient_to_the_student_only_and_exact(loss):
    student, teacher = FEAT_S.clone().requires_grad_(), FEAT_T.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda s: loss(s, FEAT_T), student)


def test_vid_gradient_of_the_variance_is_exact():
    assert torch.autograd.gradcheck(lambda v: vid_loss(FEAT_S, v, FEAT_T), VARIANCE.clone().requires_grad_())


def test_half_precision_features_are_compared_in_float32():
    student = torch.full(
        (1, 1, 1, 2), 400.0, dtype=torch.float16
    )  # the square of the difference is above float16's range
    assert feature_mse(student, -student).item() == 640000.0
    assert vid_loss(student, torch.ones(1), -student).item() == 320000.0


@pytest.mark.parametrize("loss", [feature_mse, lambda s, t: vid_loss(s, VARIANCE, t), semckd_loss])
def test_features_of_different_shapes_are_refused(loss):
    with pytest.raises(InputError, match="must have one shape"):
        loss(FEAT_S, FEAT_T[:, :, :1])
