import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import (
    dkd_per_sample,
    rld_left_out,
    rld_loss,
    rld_per_sample,
    sdd_dkd_loss,
    sdd_dkd_lskd_loss_averaged_weights_released,
    sdd_rld_loss,
    sdd_weights,
    standardize,
)

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 6, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
RANKED = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
REGIONS_S, REGIONS_T = torch.randn(2, 6, 5, 5, generator=GENERATOR, dtype=torch.float64)


def _kl(q, p):
    return sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b)


def _slow(s, t, y, tau, top_tau):
    """One sample, from the definitions, over probabilities."""
    p, q = (torch.tensor(z, dtype=torch.float64).div(top_tau).softmax(0).tolist() for z in (s, t))
    top = max(q)
    scd = top_tau**2 * _kl([top, 1 - top], [p[y], 1 - p[y]])
    stay = [k for k in range(len(t)) if t[k] < t[y]]
    if not stay:
        return scd, 0.0
    p, q = (torch.tensor([z[k] for k in stay], dtype=torch.float64).div(tau).softmax(0).tolist() for z in (s, t))
    return scd, tau**2 * _kl(q, p)


def test_both_parts_from_their_definitions():
    expected = [_slow(*row, 4.0, 1.5) for row in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True)]
    scd, mcd = rld_per_sample(STUDENT, TEACHER, LABELS, 4.0, 1.5)
    assert scd.tolist() == pytest.approx([a for a, _ in expected])
    assert mcd.tolist() == pytest.approx([b for _, b in expected])
    mean = sum(2 * a + 3 * b for a, b in expected) / 6
    assert rld_loss(STUDENT, TEACHER, LABELS, 2.0, 3.0, 4.0, 1.5).item() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("label", "left_out"),
    [(0, [True, False, False, False]), (2, [True, True, True, False]), (3, [True, True, True, True])],
)
def test_the_label_and_all_ranked_above_it_are_left_out(label, left_out):
    assert rld_left_out(RANKED, torch.tensor([label])).tolist() == [left_out]


def test_classes_that_tie_with_the_label_are_left_out_too():
    assert rld_left_out(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([1])).tolist() == [[True, True, False]]


def test_a_teacher_that_is_right_makes_it_dkd():
    labels = TEACHER.argmax(1)
    for ours, other in zip(
        rld_per_sample(STUDENT, TEACHER, labels, 4.0, 4.0), dkd_per_sample(STUDENT, TEACHER, labels, 4.0), strict=True
    ):
        assert torch.allclose(ours, other)


def test_where_no_class_ranks_below_the_label_there_is_nothing_to_match():
    student = torch.randn(1, 4, generator=GENERATOR).requires_grad_()
    _, mcd = rld_per_sample(student, RANKED, torch.tensor([3]))
    mcd.sum().backward()
    assert mcd.item() == 0 and torch.equal(student.grad, torch.zeros(1, 4))


def test_the_confidence_asked_of_the_label_is_the_teachers_in_its_own_answer():
    teacher = torch.tensor(
        [[0.7, 0.2, 0.1]]
    ).log()  # its answer is 0, the label 1: a student with 0.7 on the label is right
    scd, _ = rld_per_sample(torch.tensor([[0.2, 0.7, 0.1]]).log(), teacher, torch.tensor([1]))
    assert scd.item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_exact_and_the_students_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    rld_loss(student, teacher, LABELS).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: rld_loss(z, TEACHER, LABELS), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0, 1, 3])
def test_a_student_sure_of_a_class_stays_finite(dtype, label):
    student = torch.tensor([[-1e4, 1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = rld_loss(student, RANKED.to(dtype), torch.tensor([label]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match="labels must be int64"):
        rld_loss(STUDENT, TEACHER, LABELS[:3])


@pytest.mark.parametrize("standardized", [False, True])
def test_every_region_ranks_by_itself_and_is_weighted_by_sdd(standardized):
    total = 0.0
    for region in range(5):
        z_s, z_t = REGIONS_S[:, :, region], REGIONS_T[:, :, region]
        z_s, z_t = (standardize(z_s), standardize(z_t)) if standardized else (z_s, z_t)
        scd, mcd = rld_per_sample(z_s, z_t, LABELS, 4.0, 1.0)
        total += (sdd_weights(REGIONS_T, LABELS, 3.0)[:, region] * (scd + 8 * mcd)).sum()
    loss = sdd_rld_loss(REGIONS_S, REGIONS_T, LABELS, complementary_weight=3.0, standardize_logits=standardized)
    assert loss.item() == pytest.approx(total.item() / 30)


def test_one_region_is_the_plain_loss():
    loss = sdd_rld_loss(REGIONS_S[:, :, :1], REGIONS_T[:, :, :1], LABELS)
    assert loss.item() == pytest.approx(rld_loss(REGIONS_S[:, :, 0], REGIONS_T[:, :, 0], LABELS).item())


def test_released_dskd_weighs_all_regions_alike_by_the_mean_weight():
    arguments = (REGIONS_S, REGIONS_T, LABELS, 9.0, 72.0, 2.0)
    mean = sdd_weights(REGIONS_T, LABELS, 2.0).mean() * sdd_dkd_loss(*arguments, 1.0, standardize_logits=True)
    assert sdd_dkd_lskd_loss_averaged_weights_released(*arguments).item() == pytest.approx(mean.item())
    assert mean.item() != pytest.approx(sdd_dkd_loss(*arguments, 2.0, standardize_logits=True).item(), rel=1e-3)
