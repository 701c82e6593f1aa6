import pytest
import torch

from kdnb.losses import kd_loss, teacher_doubt, ttm_loss, ttm_per_sample, wttm_loss

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
def test_rows_and_weights_from_powers_of_probabilities(gamma):
    powers = TEACHER.softmax(1) ** gamma
    doubt = powers.sum(1)
    q, p = powers / doubt[:, None], STUDENT.softmax(1)
    rows = (q * (q / p).log()).sum(1)
    assert torch.allclose(ttm_per_sample(STUDENT, TEACHER, gamma), rows)
    assert torch.allclose(teacher_doubt(TEACHER, gamma), doubt)
    assert ttm_loss(STUDENT, TEACHER, gamma).item() == pytest.approx(rows.mean().item())
    assert wttm_loss(STUDENT, TEACHER, gamma).item() == pytest.approx((doubt * rows).mean().item())


def test_at_power_one_it_is_plain_soft_targets():
    assert ttm_loss(STUDENT, TEACHER, 1.0).item() == pytest.approx(kd_loss(STUDENT, TEACHER, 1.0).item())


def test_only_the_teacher_is_tempered():
    assert ttm_loss(0.3 * TEACHER, TEACHER, 0.3).item() == pytest.approx(0, abs=1e-12)
    assert ttm_loss(TEACHER, TEACHER, 0.3).item() > 0.01


def test_doubt_runs_from_one_to_a_power_of_the_classes():
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert teacher_doubt(logits, 0.2).tolist() == pytest.approx([1.0, 4**0.8])


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_the_gradient_is_exact_and_the_students_alone(loss):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: loss(z, TEACHER), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_logits_of_ten_thousand_stay_finite(loss, dtype):
    student = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = loss(student, -student.detach(), 0.1)
    value.backward()
    # the teacher is certain of class 0, whose log-probability the student puts at -2e4
    assert value.item() == pytest.approx(2e4, rel=1e-2) and student.grad.isfinite().all()
