import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import ab_per_sample, ab_per_sample_released, kd_per_sample

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
LIMITS = [(0.8, 0.0), (0.0, 0.6), (0.5, -0.5), (0.0, 0.0)]
EDGES = pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), *LIMITS])


def test_the_formula_by_hand():
    # p = (1/4, 3/4), q = (1/2, 1/2), alpha = beta = 1: -sum [p q - p^2 / 2 - q^2 / 2] = 1/2 sum (p - q)^2
    p, q = (torch.tensor([values], dtype=torch.float64).log() for values in ([0.25, 0.75], [0.5, 0.5]))
    assert ab_per_sample(q, p, 1.0, 1.0, 1.0).item() == pytest.approx(1 / 16)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (0.2, 1.5), (1.2, -0.4)])
def test_the_formula_from_probabilities(alpha, beta):
    p, q = (TEACHER / 4).softmax(1), (STUDENT / 4).softmax(1)
    total = alpha + beta
    inner = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    assert torch.allclose(ab_per_sample(STUDENT, TEACHER, alpha, beta), -inner.sum(1) / (alpha * beta))


def test_corners_are_both_directions_of_kl_without_the_squared_temperature():
    assert torch.allclose(ab_per_sample(STUDENT, TEACHER, 1.0, 0.0), kd_per_sample(STUDENT, TEACHER, 4.0) / 16)
    assert torch.allclose(ab_per_sample(STUDENT, TEACHER, 0.0, 1.0), kd_per_sample(TEACHER, STUDENT, 4.0) / 16)


@pytest.mark.parametrize(("alpha", "beta"), LIMITS)
def test_limits_continue_the_formula(alpha, beta):
    near = ab_per_sample(STUDENT, TEACHER, alpha + 1e-5, beta + 2e-5)
    assert torch.allclose(ab_per_sample(STUDENT, TEACHER, alpha, beta), near, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "beta", "factor"), [(0.8, 0.3, 1), (0.8, 0.0, 0.8), (0.0, 0.6, 0.6), (0.5, -0.5, 0.5), (0.0, 0.0, 1)]
)
def test_released_limits_are_scaled_by_their_parameter(alpha, beta, factor):
    ours, released = (f(STUDENT, TEACHER, alpha, beta) for f in (ab_per_sample, ab_per_sample_released))
    assert torch.allclose(released, factor * ours)


@EDGES
def test_it_is_zero_at_agreement_and_positive_elsewhere(alpha, beta):
    assert ab_per_sample(TEACHER + 2, TEACHER, alpha, beta).abs().max() < 1e-14
    assert (ab_per_sample(STUDENT, TEACHER, alpha, beta) > 0).all()


@EDGES
def test_the_gradient_is_exact_and_the_students_alone(alpha, beta):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    ab_per_sample(student, teacher, alpha, beta).mean().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: ab_per_sample(z, TEACHER, alpha, beta), student)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (0.8, 0.0), (0.0, 0.6), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_probabilities_that_underflow_keep_finite_values_and_gradients(alpha, beta, dtype):
    student = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = ab_per_sample(student, -student.detach(), alpha, beta, 1.0).mean()
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and student.grad.isfinite().all()


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match="temperature must be"):
        ab_per_sample(STUDENT, TEACHER, temperature=0.0)
