import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import (
    nkd_parts,
    self_target_cross_entropy,
    self_weights,
    target_cross_entropy,
    uskd_non_target,
    uskd_soft_labels,
    uskd_soft_labels_released,
)

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER, WEAK = torch.randn(3, 5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])


def _softmax(z, tau=1.0):
    return torch.tensor(z, dtype=torch.float64).div(tau).softmax(0).tolist()


def test_both_parts_from_their_equations():
    target, others = 0.0, 0.0
    for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        target -= _softmax(t)[y] * math.log(_softmax(s)[y]) / 5
        p, q = (_softmax(z[:y] + z[y + 1 :], 3.0) for z in (s, t))
        others -= 9 * sum(b * math.log(a) for a, b in zip(p, q, strict=True)) / 5
    assert [part.item() for part in nkd_parts(STUDENT, TEACHER, LABELS, 3.0)] == pytest.approx([target, others])
    assert target_cross_entropy(STUDENT, TEACHER, LABELS).item() == pytest.approx(target)


def test_at_agreement_the_loss_is_not_zero_but_its_non_target_gradient_is():
    student = TEACHER.clone().requires_grad_()
    _, others = nkd_parts(student, TEACHER, LABELS, 2.0)
    others.backward()
    assert others.item() > 1 and student.grad.abs().max() < 1e-12


def test_the_gradient_is_exact_and_the_students_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    sum(nkd_parts(student, teacher, LABELS)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: nkd_parts(z, TEACHER, LABELS), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_logits_of_ten_thousand_stay_finite(dtype, label):
    student, label = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True), torch.tensor([label])
    weak = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype)
    loss = sum(nkd_parts(student, -student.detach(), label, 1.0)) + self_target_cross_entropy(student, label)
    for make in (uskd_soft_labels, uskd_soft_labels_released):
        soft = make(student, weak, label)
        assert soft.sum().item() == pytest.approx(1)
        loss = loss + uskd_non_target(student, soft, label)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and student.grad.isfinite().all()


def test_with_two_classes_there_is_one_other_class_and_nothing_to_learn_from_it():
    assert nkd_parts(STUDENT[:, :2], TEACHER[:, :2], LABELS % 2)[1].item() == 0


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match="labels must be int64"):
        nkd_parts(STUDENT, TEACHER, LABELS[:3])
    with pytest.raises(InputError, match="labels must be int64"):
        self_weights(STUDENT, LABELS[:3])


@pytest.mark.parametrize(("power", "expected"), [(1, [0.8, 1.2]), (2, [0.76, 1.24])])
def test_own_certainty_is_moved_to_mean_one(power, expected):
    logits = torch.tensor([[0.4, 0.6], [0.8, 0.2]]).log()
    weights = self_weights(logits, torch.tensor([0, 0]), power)
    assert weights.tolist() == pytest.approx(expected) and weights.mean().item() == pytest.approx(1)
    loss = self_target_cross_entropy(logits, torch.tensor([0, 0]), power)
    by_hand = -(expected[0] * math.log(0.4) + expected[1] * math.log(0.8)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_weight_is_a_constant_of_the_gradient():
    student = STUDENT.clone().requires_grad_()
    self_target_cross_entropy(student, LABELS, 2).backward()
    weights = self_weights(STUDENT, LABELS, 2)
    hot = torch.nn.functional.one_hot(LABELS, 4)
    assert torch.allclose(student.grad, weights[:, None] * (STUDENT.softmax(1) - hot) / 5)


def test_zipf_labels_begin_at_a_half_where_the_label_ranks_first():
    # label 0 is first for both; then 2, 1, 3 by the sum of probabilities: 1/3, 1/2, 1/4 before they are normalised
    logits = torch.tensor([[0.6, 0.1, 0.25, 0.05]]).log()
    soft = uskd_soft_labels(logits, logits, torch.tensor([0]))
    assert soft.tolist()[0] == pytest.approx([0, 4 / 13, 6 / 13, 3 / 13])


def test_zipf_labels_begin_at_one_where_another_class_ranks_first():
    # the label 1 is second: 1 for class 0, 1/3 and 1/4 for the classes behind it
    logits = torch.tensor([[0.6, 0.25, 0.1, 0.05]]).log()
    soft = uskd_soft_labels(logits, logits, torch.tensor([1]))
    assert soft.tolist()[0] == pytest.approx([12 / 19, 0, 4 / 19, 3 / 19])


def test_released_code_ranks_by_logarithms_of_the_student():
    """The weak head prefers class 1, the student class 2; logarithms spread the student's choice less than its probabilities do."""
    student, weak = torch.tensor([[0.02, 0.3, 0.68]]).log(), torch.tensor([[0.02, 0.64, 0.34]]).log()
    label = torch.tensor([0])
    sound, released = (make(student, weak, label).tolist()[0] for make in (uskd_soft_labels, uskd_soft_labels_released))
    assert sound[2] > sound[1] and released[1] > released[2]


def test_non_target_loss_from_its_equation():
    soft = uskd_soft_labels(STUDENT, WEAK, LABELS)
    expected = 0.0
    for s, row, y in zip(STUDENT.tolist(), soft.tolist(), LABELS.tolist(), strict=True):
        p = _softmax(s[:y] + s[y + 1 :])
        expected -= sum(b * math.log(a) for a, b in zip(p, row[:y] + row[y + 1 :], strict=True)) / 5
    assert uskd_non_target(STUDENT, soft, LABELS).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda z: uskd_non_target(z, soft, LABELS), STUDENT.clone().requires_grad_())
