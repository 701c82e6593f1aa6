"""Disagreement, attention and class-activation terms: values by hand, reductions, gradients through both networks, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdnb.errors import InputError
from kdnb.losses import disagreement as d
from kdnb.losses.datafree import adversarial_loss, class_balance_loss
from kdnb.losses.kd import kd_loss

LOGITS_S = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
LOGITS_T = torch.tensor([[math.log(3.0), 0.0], [1.0, 0.0]], dtype=torch.float64)
KL_FIRST = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # of the first row; the second agrees


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_disagreement_by_hand():
    assert d.disagreement_loss(LOGITS_S, LOGITS_T).item() == pytest.approx(-KL_FIRST / 2)
    assert d.disagreement_l1_loss(LOGITS_S, LOGITS_T).item() == pytest.approx(-math.log(3.0) / 4)


def test_the_element_mean_is_weaker_by_the_number_of_classes_and_the_released_form_by_tau_squared():
    logits_s, logits_t = normal(5, 4), normal(5, 4, seed=1)
    whole = kd_loss(logits_s, logits_t, 3.0)
    assert torch.allclose(d.element_mean_kl(logits_s, logits_t, 3.0), whole / 4)
    assert torch.allclose(d.element_mean_kl_released(logits_s, logits_t, 3.0), whole / 36)


def test_without_a_mask_rows_of_different_labels_count_too():
    logits_t = torch.tensor([[3.0, 0.0]])
    logits_s = -logits_t
    assert adversarial_loss(logits_s, logits_t) == 0 and d.disagreement_loss(logits_s, logits_t) < -1


@pytest.mark.parametrize("loss", [d.disagreement_loss, d.disagreement_l1_loss, d.element_mean_kl])
def test_gradients_flow_through_both_networks_and_are_right(loss):
    inputs = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss(*inputs), inputs))


@pytest.mark.parametrize("loss", [d.disagreement_loss, d.disagreement_l1_loss, d.element_mean_kl])
def test_large_logits_of_half_precision_stay_finite(loss):
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float16)
    assert loss(logits, logits.flip(1)).isfinite()


def test_balance_to_base_ten_is_that_to_base_e_over_ln_ten():
    logits = normal(6, 5)
    assert torch.allclose(d.class_balance_loss_released(logits), class_balance_loss(logits) / math.log(10.0))
    assert d.class_balance_loss_released(torch.zeros(2, 10)).item() == pytest.approx(-1.0)


def test_an_attention_map_has_unit_length_and_ignores_scale():
    feat = normal(2, 3, 4, 4)
    assert torch.allclose(d.attention_map(feat).norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert d.attention_loss(feat, 5 * feat).item() == pytest.approx(0.0, abs=1e-15)


def test_attention_by_hand():
    left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]])
    assert d.attention_loss(left, right).item() == pytest.approx(1.0)  # (1 + 1) / 2 positions


def test_the_mean_of_a_class_activation_map_is_the_logit_without_bias():
    final_map, weight = normal(2, 3, 4, 4), normal(5, 3, seed=1)
    maps = d.class_activation_maps(final_map, weight)
    assert torch.allclose(maps.mean((2, 3)), F.linear(final_map.mean((2, 3)), weight))
    assert d.class_activation_loss(final_map, final_map, weight, weight) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: d.disagreement_loss(torch.zeros(2, 3), torch.zeros(2, 4)),
        lambda: d.element_mean_kl(torch.zeros(2, 3), torch.zeros(2, 3), 0.0),
        lambda: d.attention_map(torch.zeros(2, 3)),
        lambda: d.attention_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)),
        lambda: d.class_activation_maps(torch.zeros(2, 3, 4, 4), torch.zeros(5, 4)),
        lambda: d.class_activation_loss(*[torch.ones(1, 2, s, s) for s in (2, 4)], *[torch.ones(3, 2)] * 2),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(InputError):
        call()
