import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import dkd_loss, dkd_per_sample, kd_per_sample

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])


def _kl(q, p):
    return sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))


def _slow(s, t, y, tau):
    """One sample, from the two definitions, over probabilities."""
    p, q = (torch.tensor(z, dtype=torch.float64).div(tau).softmax(0).tolist() for z in (s, t))
    tckd = _kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
    others = [k for k in range(len(s)) if k != y]
    nckd = _kl([q[k] / (1 - q[y]) for k in others], [p[k] / (1 - p[y]) for k in others])
    return tau**2 * tckd, tau**2 * nckd


def test_three_equal_student_logits_by_hand():
    # teacher (1/2, 1/3, 1/6), student uniform, target 0: odds 1/2 against 1/3; among the others 2/3, 1/3 against 1/2, 1/2
    teacher = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
    tckd, nckd = dkd_per_sample(torch.zeros(1, 3), teacher, torch.tensor([0]), 1.0)
    assert tckd.item() == pytest.approx(0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4), rel=1e-5)
    assert nckd.item() == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dkd_from_its_equations(tau):
    parts = [_slow(s, t, y, tau) for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True)]
    tckd, nckd = dkd_per_sample(STUDENT, TEACHER, LABELS, tau)
    assert tckd.tolist() == pytest.approx([a for a, _ in parts]) and nckd.tolist() == pytest.approx(
        [b for _, b in parts]
    )
    expected = sum(3 * a + 5 * b for a, b in parts) / len(parts)
    assert dkd_loss(STUDENT, TEACHER, LABELS, 3.0, 5.0, tau).item() == pytest.approx(expected)


def test_plain_soft_targets_are_tckd_plus_the_teachers_doubt_times_nckd():
    tckd, nckd = dkd_per_sample(STUDENT, TEACHER, LABELS, 2.0)
    doubt = 1 - (TEACHER / 2).softmax(1)[torch.arange(5), LABELS]
    assert torch.allclose(tckd + doubt * nckd, kd_per_sample(STUDENT, TEACHER, 2.0))


def test_dkd_is_zero_when_softmaxes_agree():
    assert dkd_loss(TEACHER - 2.0, TEACHER, LABELS).item() == pytest.approx(0, abs=1e-12)


def test_with_two_classes_there_is_nothing_beside_the_target():
    assert torch.equal(
        dkd_per_sample(STUDENT[:, :2], TEACHER[:, :2], LABELS % 2)[1], torch.zeros(5, dtype=torch.float64)
    )


def test_gradient_reaches_the_student_only_and_is_exact():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    dkd_loss(student, teacher, LABELS).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: dkd_loss(z, TEACHER, LABELS), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_student_sure_of_the_target_keeps_a_finite_loss_and_its_gradient(dtype):
    """All probability on the target leaves nothing representable for the others; log(1 - p) would be -inf."""
    student = torch.tensor([[1e4, 0.0, 10.0]], dtype=dtype, requires_grad=True)
    tckd, nckd = dkd_per_sample(student, torch.zeros(1, 3, dtype=dtype), torch.tensor([0]), 1.0)
    assert tckd.item() == pytest.approx(2 / 3 * 1e4, rel=2e-3)  # q (log q - 0) + (1 - q) (log(1 - q) + 9990)
    assert nckd.item() == pytest.approx(-math.log(2) + 5 + math.log1p(math.exp(-10)), rel=1e-3)
    tckd.sum().backward()
    assert student.grad[0].tolist() == pytest.approx([2 / 3, 0.0, -2 / 3], abs=1e-3)


def test_a_student_sure_of_another_class_stays_finite():
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = dkd_loss(student, torch.zeros(1, 3), torch.tensor([0]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match="labels must be int64"):
        dkd_loss(STUDENT, TEACHER, LABELS[:3])
