import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import ce_loss, kd_loss, kd_per_sample

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])


def _slow(student, teacher, tau):
    """One sample and one class at a time, with exponentials, as the equation reads."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(z / tau) for z in row] for row in (s, t))
        for a, b in zip(p, q, strict=True):
            total += b / sum(q) * (math.log(b / sum(q)) - math.log(a / sum(p)))
    return tau**2 * total / len(student)


def test_kd_of_two_classes_by_hand():
    # teacher at odds 3 : 1, student at 1 : 1, tau 2: 4 (3/4 log 3/2 + 1/4 log 1/2)
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    assert kd_loss(torch.zeros(1, 2), teacher, 2.0).item() == pytest.approx(
        4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-6
    )


@pytest.mark.parametrize("tau", [1.0, 4.0, 0.5])
def test_kd_from_its_equation(tau):
    assert kd_loss(STUDENT, TEACHER, tau).item() == pytest.approx(_slow(STUDENT, TEACHER, tau), rel=1e-12)


def test_kd_is_zero_when_softmaxes_agree_and_positive_elsewhere():
    assert kd_loss(TEACHER + 3.0, TEACHER).item() == pytest.approx(
        0, abs=1e-12
    )  # a shift of all logits changes nothing
    assert (kd_per_sample(STUDENT, TEACHER) > 0).all()


def test_kd_does_not_depend_on_how_often_a_batch_is_repeated():
    assert kd_loss(STUDENT.repeat(3, 1), TEACHER.repeat(3, 1)).item() == pytest.approx(kd_loss(STUDENT, TEACHER).item())


def test_kd_gradient_is_tau_times_the_difference_of_probabilities_and_the_teacher_has_none():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    kd_loss(student, teacher, 3.0).backward()
    assert torch.allclose(student.grad, 3.0 * ((STUDENT / 3).softmax(1) - (TEACHER / 3).softmax(1)) / 5)
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, TEACHER, 3.0), student)


def test_kd_per_sample_keeps_leading_dimensions():
    stacked = kd_per_sample(STUDENT.view(5, 1, 4).expand(5, 3, 4), TEACHER.view(5, 1, 4).expand(5, 3, 4))
    assert torch.allclose(stacked, kd_per_sample(STUDENT, TEACHER).unsqueeze(1).expand(5, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kd_at_logits_of_ten_thousand_is_finite_in_every_precision(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = kd_loss(student, -student.detach(), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4, rel=1e-2) and student.grad.isfinite().all()


def test_half_precision_kd_is_that_of_the_rounded_logits():
    rounded_s, rounded_t = STUDENT.half(), TEACHER.half()
    assert kd_loss(rounded_s, rounded_t).item() == pytest.approx(
        kd_loss(rounded_s.double(), rounded_t.double()).item(), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_no_temperature_is_refused(temperature):
    with pytest.raises(InputError, match="temperature must be"):
        kd_loss(STUDENT, TEACHER, temperature)


@pytest.mark.parametrize("teacher", [TEACHER[:, :3], TEACHER[:4], TEACHER[:, None]])
def test_logits_of_different_shapes_are_refused(teacher):
    with pytest.raises(InputError, match="must be equal"):
        kd_loss(STUDENT, teacher)


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="at least 2 classes"):
        kd_loss(STUDENT[:, :1], TEACHER[:, :1])


def test_cross_entropy_by_hand_and_from_half_precision():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert ce_loss(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert ce_loss(logits.half(), torch.tensor([1, 0])).dtype == torch.float32


@pytest.mark.parametrize("labels", [LABELS[:4], LABELS.float(), LABELS[:, None]])
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(InputError, match="labels must be int64"):
        ce_loss(STUDENT, labels)
