import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses.tolerant import top_score_difference
from tests.material import method_loss

PROBS = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)


def test_top_score_difference_by_hand():
    # first row: 0.5 - (0.3 + 0.1) / 2 = 0.3; second row: 0
    assert top_score_difference(PROBS.log(), num_top=3).item() == pytest.approx(0.15, abs=1e-12)


def test_all_classes_can_be_counted():
    assert top_score_difference(PROBS[:1].log(), num_top=4).item() == pytest.approx(0.5 - 0.5 / 3, abs=1e-12)


def test_certain_predictions_reach_the_largest_difference():
    assert top_score_difference(torch.eye(5) * 1e4).item() == 1.0


def test_patriarch_mixes_cross_entropy_and_difference():
    z, y = PROBS.log(), torch.tensor([2, 1])
    expected = 0.7 * F.cross_entropy(z, y) + 0.3 * 0.15
    assert torch.allclose(method_loss("tolerant_patriarch", z, None, y, ce_weight=0.7, num_top=3), expected)


def test_generation_has_no_soft_term_where_it_agrees_with_its_parent():
    z, y = PROBS.log(), torch.tensor([2, 1])
    assert torch.allclose(method_loss("tolerant", z, z + 5, y, ce_weight=0.6), 0.6 * F.cross_entropy(z, y))


def test_generation_divergence_is_at_temperature_one():
    z, t, y = PROBS.log(), PROBS.flip(1).log(), torch.tensor([0, 0])
    kl = (PROBS.flip(1) * (PROBS.flip(1) / PROBS).log()).sum(1).mean()
    assert torch.allclose(method_loss("tolerant", z, t, y, ce_weight=0.0), kl)


def test_gradients_are_those_of_the_value():
    z, y = (
        torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(),
        torch.tensor([0, 5, 2]),
    )
    assert torch.autograd.gradcheck(lambda logits: method_loss("tolerant_patriarch", logits, None, y), z)
    teacher = z.detach().flip(0)
    assert torch.autograd.gradcheck(lambda logits: method_loss("tolerant", logits, teacher, y), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_stay_finite(dtype):
    z = (torch.eye(5) * 1e4).to(dtype).requires_grad_()
    value = method_loss("tolerant_patriarch", z, None, torch.tensor([1, 2, 3, 4, 0]))
    value = value + method_loss("tolerant", z, z.detach().flip(0), torch.arange(5))
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize("num_top", [1, 5])
def test_a_count_outside_the_classes_is_refused(num_top):
    with pytest.raises(InputError, match="num_top"):
        top_score_difference(PROBS, num_top)


def test_a_weight_outside_the_unit_interval_is_refused():
    with pytest.raises(InputError, match="ce_weight"):
        method_loss("tolerant_patriarch", PROBS, None, torch.tensor([0, 0]), ce_weight=1.2)
