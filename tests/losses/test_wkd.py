import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import (
    class_cka_cost,
    head_cosine_cost,
    sharpen,
    sinkhorn_potentials,
    transport_per_sample,
)

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])
COST = torch.rand(4, 4, generator=GENERATOR, dtype=torch.float64).fill_diagonal_(0)


def _slow(s, t, y, cost, tau, lam, iterations):
    """One sample: the plan and its price without the label's row and column, by scalings as they are written."""
    stay = torch.tensor([k for k in range(len(s)) if k != y])
    p, q = ((z[stay] / tau).softmax(0) for z in (s, t))
    price = cost[stay][:, stay].clamp(min=0) + 1e-8
    kernel = (-price / lam).exp()
    u = torch.full_like(p, 1 / len(p))
    for _ in range(iterations):
        v = q / (kernel.T @ u + 1e-8)
        u = p / (kernel @ v + 1e-8)
    plan = u[:, None] * kernel * v
    return (plan * price).sum(), plan


@pytest.mark.parametrize(("tau", "lam", "iterations"), [(8.0, 0.05, 10), (1.0, 0.3, 1)])
def test_transport_from_its_equations(tau, lam, iterations):
    cost = COST - 0.1  # costs below 0 are free
    rows = [_slow(*row, cost, tau, lam, iterations)[0] for row in zip(STUDENT, TEACHER, LABELS, strict=True)]
    ours = transport_per_sample(STUDENT, TEACHER, LABELS, cost, tau, lam, iterations)
    assert torch.allclose(ours, torch.stack(rows), rtol=1e-11)


def test_the_plan_meets_the_students_marginal_and_nears_the_teachers():
    log_p, log_q = STUDENT.log_softmax(1), TEACHER.log_softmax(1)
    misses = []
    for iterations in (1, 5, 200):
        u, v = (x.exp() for x in sinkhorn_potentials(log_p, log_q, COST, 0.2, iterations))
        plan = u[:, :, None] * (-COST / 0.2).exp() * v[:, None]
        assert torch.allclose(plan.sum(2), log_p.exp(), rtol=1e-5)
        misses.append((plan.sum(1) - log_q.exp()).abs().max().item())
    assert misses[0] > misses[1] > misses[2] and misses[2] < 1e-6


def test_equal_distributions_are_nearly_free_and_far_classes_are_dear():
    far = 1 - torch.eye(4, dtype=torch.float64)
    assert (transport_per_sample(TEACHER, TEACHER, LABELS, far) < 1e-6).all()
    one, other = torch.tensor([[0.0, 9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 9.0, 0.0]])
    label, near = torch.tensor([0]), far.clone()
    near[1, 2] = 0.1
    dear, cheap = (transport_per_sample(one, other, label, cost, 1.0).item() for cost in (far, near))
    assert dear == pytest.approx(1, abs=0.01) and cheap == pytest.approx(0.1, abs=0.01)


def test_the_gradient_is_exact_and_the_students_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    transport_per_sample(student, teacher, LABELS, COST).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: transport_per_sample(z, TEACHER, LABELS, COST), student)


@pytest.mark.parametrize("regularization", [0.05, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mass_that_underflows_and_kernels_that_vanish_stay_finite(dtype, regularization):
    student = torch.tensor([[-1e4, 1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    rows = transport_per_sample(student, -student.detach(), torch.tensor([2]), COST, 1.0, regularization)
    rows.sum().backward()
    assert rows.dtype == torch.float32 and rows.isfinite().all() and student.grad.isfinite().all()


def test_the_label_is_out_of_the_transport():
    cost = COST.clone()
    cost[2], cost[:, 2] = 50.0, 50.0
    ours, other = (transport_per_sample(STUDENT[4:], TEACHER[4:], LABELS[4:], one) for one in (COST, cost))
    assert torch.allclose(ours, other)


def test_other_shapes_and_numbers_are_refused():
    with pytest.raises(InputError, match="cost must be"):
        transport_per_sample(STUDENT, TEACHER, LABELS, COST[:3])
    with pytest.raises(InputError, match="regularization > 0"):
        sinkhorn_potentials(STUDENT, TEACHER, COST, 0.0)
    with pytest.raises(InputError, match="iterations >= 1"):
        sinkhorn_potentials(STUDENT, TEACHER, COST, 0.1, 0)
    with pytest.raises(InputError, match="class_features must be"):
        class_cka_cost(COST)


def test_cka_from_centred_gram_matrices():
    features = torch.randn(3, 6, 4, generator=GENERATOR, dtype=torch.float64)
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    grams = [centring @ x @ x.T @ centring for x in features]
    inner = torch.tensor([[(a * b).sum() for b in grams] for a in grams], dtype=torch.float64)
    expected = 1 - inner / (inner.diagonal().sqrt()[:, None] * inner.diagonal().sqrt())
    assert torch.allclose(class_cka_cost(features), expected, atol=1e-12)


def test_a_scaled_and_rotated_class_is_the_same_and_one_without_spread_like_no_other():
    x = torch.randn(6, 2, generator=GENERATOR)
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    cost = class_cka_cost(torch.stack([x, 3 * x @ rotation + 1, torch.ones(6, 2)]).half())
    assert cost[0, 1].item() == pytest.approx(0, abs=1e-3)
    assert cost[2].tolist() == [1, 1, 0] and cost[:, 2].tolist() == [1, 1, 0]


def test_cosines_of_a_classifier_are_constants():
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    cost = head_cosine_cost(weight)
    assert not cost.requires_grad and cost[0].tolist() == [0, 0, 1, 2]


def test_sharpening_by_hand():
    assert sharpen(torch.tensor([0.0, 1.0]), 2.0).tolist() == pytest.approx([0, 1 - math.exp(-2)])
