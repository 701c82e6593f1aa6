import pytest
import torch

from kdnb.losses import (
    dkd_per_sample,
    kd_per_sample,
    normkd_dkd_per_sample,
    normkd_per_sample,
    spread_scaled,
    standardize,
)

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])


def test_temperatures_by_hand():
    # deviation of (0, 2, 4) with divisor 2 is 2
    scaled, temperature = spread_scaled(torch.tensor([[0.0, 2.0, 4.0]]), factor=3.0)
    assert temperature.tolist() == [6.0] and scaled.tolist()[0] == pytest.approx([-1 / 3, 0, 1 / 3])


def test_every_row_is_soft_targets_at_its_own_temperatures():
    for row in range(5):
        z_s, z_t = STUDENT[row : row + 1], TEACHER[row : row + 1]
        t_s, t_t = 2 * z_s.std().item(), 2 * z_t.std().item()
        expected = t_t**2 * kd_per_sample(z_s / t_s, z_t / t_t, 1.0)
        assert normkd_per_sample(z_s, z_t).item() == pytest.approx(expected.item())
        parts = dkd_per_sample(z_s / t_s, z_t / t_t, LABELS[row : row + 1], 1.0)
        ours = normkd_dkd_per_sample(z_s, z_t, LABELS[row : row + 1])
        assert [part.item() for part in ours] == pytest.approx([t_t**2 * part.item() for part in parts])


def test_it_is_lskd_times_the_squared_spread_of_the_teacher():
    rows = kd_per_sample(standardize(STUDENT), standardize(TEACHER), 2.0)
    assert torch.allclose(normkd_per_sample(STUDENT, TEACHER), TEACHER.var(1) * rows, rtol=1e-5)


def test_the_scale_of_the_student_does_not_matter():
    assert torch.allclose(normkd_per_sample(7 * TEACHER + 1, TEACHER), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_the_gradient_is_exact_and_the_students_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    (
        normkd_per_sample(student, teacher).mean() + sum(normkd_dkd_per_sample(student, teacher, LABELS)).mean()
    ).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: normkd_per_sample(z, TEACHER), student)
    assert torch.autograd.gradcheck(lambda z: normkd_dkd_per_sample(z, TEACHER, LABELS), student)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_logits_are_a_uniform_student_and_a_silent_teacher(level, dtype):
    equal = torch.full((1, 3), level, dtype=dtype, requires_grad=True)
    other = torch.tensor([[0.0, 2.0, 4.0]], dtype=dtype)
    rows = normkd_per_sample(equal, other) + sum(normkd_dkd_per_sample(equal, other, torch.tensor([0])))
    plain = 16 * kd_per_sample(torch.zeros(1, 3), other.float() / 4, 1.0)
    assert normkd_per_sample(equal, other).item() == pytest.approx(plain.item(), rel=1e-5)
    rows.sum().backward()
    assert rows.isfinite().all() and equal.grad.isfinite().all() and equal.grad.abs().max() < 100
    student = other.clone().requires_grad_()
    silent = normkd_per_sample(student, equal) + sum(normkd_dkd_per_sample(student, equal, torch.tensor([0])))
    silent.sum().backward()
    assert silent.item() == 0 and student.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_of_ten_thousand_stay_finite(dtype):
    student = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    rows = normkd_per_sample(student, -student.detach())
    rows.sum().backward()
    assert rows.dtype == torch.float32 and rows.isfinite().all() and student.grad.isfinite().all()
