import pytest
import torch

from kdnb.losses import ScaledGradient, curriculum_temperature, dkd_per_sample, kd_loss, reversal

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])


def test_the_value_passes_and_the_gradient_is_scaled():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y = ScaledGradient.apply(x, -0.5)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert x.grad.tolist() == [-2.0, -3.0]


def test_the_reversal_falls_from_zero_to_minus_one_and_stays():
    values = [reversal(epoch, 10) for epoch in range(13)]
    assert values[0] == 0 and values[5] == pytest.approx(-0.5) and values[10:] == [-1, -1, -1]
    assert values == sorted(values, reverse=True)
    assert reversal(1, 0) == -1


def test_the_temperature_starts_where_it_is_published_and_keeps_its_range():
    theta = torch.tensor([1.0, -1e4, 1e4])
    assert curriculum_temperature(theta, 1.0).tolist() == pytest.approx([1 + 20 / (1 + 2.718281828**-1), 1, 21])


def test_the_temperature_is_learned_through_both_softmaxes_and_the_square():
    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: kd_loss(z, TEACHER, curriculum_temperature(t, 1.0)), (student, theta))
    (reversed_,) = torch.autograd.grad(kd_loss(STUDENT, TEACHER, curriculum_temperature(theta, -0.25)), theta)
    (plain,) = torch.autograd.grad(kd_loss(STUDENT, TEACHER, curriculum_temperature(theta, 1.0)), theta)
    assert reversed_.item() == pytest.approx(-0.25 * plain.item()) and plain.item() != 0


def test_at_the_same_temperature_it_is_plain_soft_targets():
    theta = torch.zeros(1, dtype=torch.float64)
    assert kd_loss(STUDENT, TEACHER, curriculum_temperature(theta, -1.0)).item() == pytest.approx(
        kd_loss(STUDENT, TEACHER, 11.0).item()
    )


def test_dkd_gives_a_learned_temperature_an_exact_gradient():
    """0 log 0 at the label in the teacher's restricted softmax must not reach the temperature."""
    temperature = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: dkd_per_sample(STUDENT, TEACHER, LABELS, t), temperature)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_certain_networks_give_the_temperature_a_finite_gradient(dtype):
    theta = torch.ones(1, dtype=dtype, requires_grad=True)
    student = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype)
    temperature = curriculum_temperature(theta, -1.0)
    tckd, nckd = dkd_per_sample(student, -student, torch.tensor([0]), temperature)
    loss = kd_loss(student, -student, temperature) + tckd.mean() + nckd.mean()
    (loss / 1e5).backward()  # the loss is near 1e6 here, more than float16 holds
    assert loss.dtype == torch.float32 and loss.isfinite() and theta.grad.isfinite().all()
