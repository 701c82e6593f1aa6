import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import kd_loss, standardize

LOGITS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_three_logits_by_hand():
    assert torch.allclose(
        standardize(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]), atol=1e-6
    )  # divisor K - 1 = 2


def test_rows_have_mean_zero_and_sample_deviation_one():
    z = standardize(LOGITS, eps=0.0)
    assert z.mean(1).abs().max() < 1e-15 and torch.allclose(z.std(1), torch.ones(4, dtype=torch.float64))


def test_classes_may_stand_in_any_dimension():
    assert torch.equal(standardize(LOGITS.T, dim=0), standardize(LOGITS).T)


def test_the_loss_forgets_shift_and_scale_of_the_logits():
    assert kd_loss(standardize(3 * LOGITS + 7), standardize(LOGITS)).item() == pytest.approx(0, abs=1e-12)


def test_gradient_flows_through_mean_and_deviation():
    assert torch.autograd.gradcheck(standardize, LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_constant_and_huge_rows_stay_finite(dtype):
    logits = torch.tensor([[5.0, 5.0, 5.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    z = standardize(logits)
    z.square().sum().backward()
    assert torch.equal(z[0], torch.zeros(3)) and z.isfinite().all() and logits.grad.isfinite().all()


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="at least 2 classes"):
        standardize(LOGITS[:, :1])
