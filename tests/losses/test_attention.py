import pytest
import torch

from kdnb.losses import at_loss, attention_map

GENERATOR = torch.Generator().manual_seed(0)
FEAT_S = torch.randn(3, 4, 4, 4, generator=GENERATOR, dtype=torch.float64)
FEAT_T = torch.randn(3, 5, 4, 4, generator=GENERATOR, dtype=torch.float64)


def test_an_attention_map_by_hand():
    feature_map = torch.tensor(
        [[[[3.0, 0.0]], [[0.0, 4.0]]]]
    )  # squares 9 and 16 over two channels: (4.5, 8) / sqrt(84.25)
    assert attention_map(feature_map).tolist() == [pytest.approx([4.5 / 84.25**0.5, 8 / 84.25**0.5])]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 4.0])
def test_the_loss_from_its_equation(power):
    total = 0.0
    for feat_s, feat_t in zip(FEAT_S, FEAT_T, strict=True):
        rows = []
        for feat in (feat_s, feat_t):
            row = [sum(abs(c[y, x]) ** power for c in feat) / len(feat) for y in range(4) for x in range(4)]
            norm = sum(value**2 for value in row) ** 0.5
            rows.append([value / norm for value in row])
        total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 16
    assert at_loss(FEAT_S, FEAT_T, power).item() == pytest.approx((total / 3).item())


def test_scale_and_channels_do_not_matter_and_equal_attention_costs_nothing():
    assert at_loss(FEAT_T[:, [1, 0, 2, 3, 4]] * -7, FEAT_T).item() == pytest.approx(0, abs=1e-15)
    assert at_loss(FEAT_S, FEAT_T) > 0


def test_the_larger_map_is_pooled_before_the_power_is_taken():
    pooled = torch.nn.functional.avg_pool2d(FEAT_S, 2)
    assert at_loss(FEAT_S, FEAT_T[:, :, :2, :2]).equal(at_loss(pooled, FEAT_T[:, :, :2, :2]))


def test_gradients_reach_the_student_only():
    feat_s, feat_t = FEAT_S.clone().requires_grad_(), FEAT_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: at_loss(x, feat_t.detach()), feat_s)
    at_loss(feat_s, feat_t).backward()
    assert feat_t.grad is None and feat_s.grad.abs().sum() > 0


def test_half_precision_holds_the_squares_of_large_numbers():
    large = (FEAT_S * 1000).half().requires_grad_()  # squares of a million, float16 ends at 65504
    loss = at_loss(large, FEAT_T.half())
    loss.backward()
    assert loss.item() == pytest.approx(at_loss(FEAT_S, FEAT_T).item(), rel=1e-2) and large.grad.isfinite().all()


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_dead_map_is_zero_attention_with_a_finite_gradient(power):
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = at_loss(dead, torch.ones(2, 3, 2, 2), power)
    loss.backward()
    assert loss.item() == pytest.approx(0.25) and dead.grad.isfinite().all()
