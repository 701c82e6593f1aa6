import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import (
    dkd_loss,
    dkd_per_sample,
    kd_loss,
    kd_per_sample,
    multiscale_pool,
    region_logits,
    sdd_dkd_loss,
    sdd_dkd_lskd_loss_released,
    sdd_groups,
    sdd_kd_loss,
    sdd_kd_lskd_loss_released,
    sdd_weights,
    standardize,
)

GENERATOR = torch.Generator().manual_seed(0)
B, K, M = 6, 4, 5
STUDENT, TEACHER = torch.randn(2, B, K, M, generator=GENERATOR, dtype=torch.float64).mul(2).unbind()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def answers(rows):
    """(B, M) predicted classes -> (B, 3, M) logits that say so."""
    return F.one_hot(torch.tensor(rows), 3).transpose(1, 2).double()


# the true class is 0 everywhere: image right / wrong (1), regions right, wrong, wrong in another way
GROUPS = answers([[0, 0, 1, 2], [1, 0, 1, 2]])


def test_a_map_of_sixteen_numbers_is_pooled_by_hand():
    feature_map = torch.arange(16.0).view(1, 1, 4, 4)
    assert multiscale_pool(feature_map, [1, 2]).tolist() == [[[7.5, 2.5, 4.5, 10.5, 12.5]]]
    assert multiscale_pool(feature_map, [4]).tolist() == [[list(range(16))]]


@pytest.mark.parametrize(("scales", "regions"), [([1], 1), ([1, 2], 5), ([1, 4], 17), ([1, 2, 4], 21)])
def test_scales_give_the_sum_of_their_squares(scales, regions):
    assert multiscale_pool(torch.zeros(2, 3, 8, 8), scales).shape == (2, 3, regions)


def test_coarse_scales_come_from_the_grid_not_from_the_map():
    feature_map = torch.randn(1, 2, 7, 7, generator=GENERATOR)
    cells = [(0, 2), (1, 4), (3, 6), (5, 7)]  # the overlapping bins of 7 pixels
    grid = torch.stack(
        [torch.stack([feature_map[0, :, a:b, c:d].mean((1, 2)) for c, d in cells], 1) for a, b in cells], 1
    )
    pooled = multiscale_pool(feature_map, [1, 2, 4])[0]
    assert torch.allclose(pooled[:, 0], grid.mean((1, 2)), atol=1e-6)
    assert torch.allclose(pooled[:, 4], grid[:, 2:, 2:].mean((1, 2)), atol=1e-6)
    assert not torch.allclose(pooled[:, 0], feature_map[0].mean((1, 2)), atol=1e-3)


def test_a_map_of_two_pixels_fills_the_grid_four_times():
    feature_map = torch.arange(4.0).view(1, 1, 2, 2)
    assert multiscale_pool(feature_map, [4])[0, 0].tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2


def test_region_zero_is_the_ordinary_logit_where_four_divides_the_map():
    feature_map = torch.randn(2, 3, 8, 8, generator=GENERATOR)
    head = torch.nn.Linear(3, K)
    logits = region_logits(feature_map, head.weight, head.bias, [1, 2])
    assert torch.allclose(logits[:, :, 0], head(feature_map.mean((2, 3))), atol=1e-6)
    assert torch.allclose(logits[:, :, 2], head(feature_map[:, :, :4, 4:].mean((2, 3))), atol=1e-6)
    assert torch.allclose(
        region_logits(feature_map, head.weight, None, [1]) + head.bias[:, None], logits[:, :, :1], atol=1e-6
    )


@pytest.mark.parametrize("scales", [[], [3], [2, 1], [1, 1], [8], [0]])
def test_scales_that_do_not_divide_the_grid_are_refused(scales):
    with pytest.raises(InputError, match="scales must be"):
        multiscale_pool(torch.zeros(1, 1, 4, 4), scales)


def test_a_map_that_does_not_fit_the_classifier_is_refused():
    with pytest.raises(InputError, match="takes 5 features, the map has 3 channels"):
        region_logits(torch.zeros(1, 3, 4, 4), torch.zeros(2, 5), None, [1])


def test_the_four_groups_and_their_weights():
    labels = torch.zeros(2, dtype=torch.int64)
    assert sdd_groups(GROUPS, labels).tolist() == [[0, 0, 1, 1], [2, 3, 2, 2]]  # wrong in another way counts as wrong
    assert sdd_weights(GROUPS, labels, 1.7).tolist() == [[1, 1, 1.7, 1.7], [1, 1.7, 1, 1]]


def _weights(w):
    right = TEACHER.argmax(1) == LABELS[:, None]
    return [[1.0 if right[b, m] == right[b, 0] else w for m in range(M)] for b in range(B)]


@pytest.mark.parametrize("standardized", [False, True])
def test_sdd_kd_from_its_equation(standardized):
    z = standardize if standardized else (lambda x: x)
    rows = [
        [w * kd_loss(z(STUDENT[b : b + 1, :, m]), z(TEACHER[b : b + 1, :, m]), 3.0) for m, w in enumerate(row)]
        for b, row in enumerate(_weights(2.5))
    ]
    expected = sum(map(sum, rows)) / (B * M)
    assert sdd_kd_loss(STUDENT, TEACHER, LABELS, 3.0, 2.5, standardized).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize("standardized", [False, True])
def test_sdd_dkd_from_its_equation(standardized):
    z = standardize if standardized else (lambda x: x)
    total = 0
    for b, row in enumerate(_weights(2.5)):
        for m, w in enumerate(row):
            pair = (z(STUDENT[b : b + 1, :, m]), z(TEACHER[b : b + 1, :, m]))
            total += w * dkd_loss(*pair, LABELS[b : b + 1], 2.0, 3.0, 1.5)
    ours = sdd_dkd_loss(STUDENT, TEACHER, LABELS, 2.0, 3.0, 1.5, 2.5, standardized)
    assert ours.item() == pytest.approx(total.item() / (B * M), rel=1e-12)


def test_one_region_is_plain_kd_and_dkd():
    student, teacher = STUDENT[:, :, :1], TEACHER[:, :, :1]
    assert torch.equal(sdd_kd_loss(student, teacher, LABELS), kd_loss(student[:, :, 0], teacher[:, :, 0]))
    assert torch.equal(sdd_dkd_loss(student, teacher, LABELS), dkd_loss(student[:, :, 0], teacher[:, :, 0], LABELS))


def test_released_kd_fusion_groups_by_the_wrong_image_and_averages_each_group():
    rows = kd_per_sample(standardize(STUDENT.transpose(1, 2)), standardize(TEACHER.transpose(1, 2)), 2.0)
    right = TEACHER.argmax(1) == LABELS[:, None]
    groups = {True: [], False: []}
    for m in range(M):
        for b in range(B):
            groups[bool(right[b, m] == right[(m * B + b) // M, 0])].append(rows[b, m].item())
    assert groups[True] and groups[False]
    expected = sum(sum(group) / len(group) for group in groups.values())
    assert sdd_kd_lskd_loss_released(STUDENT, TEACHER, LABELS).item() == pytest.approx(expected, rel=1e-12)


def test_released_kd_fusion_with_an_empty_group_is_one_mean():
    labels = TEACHER[:, :, 0].argmax(1)  # the teacher is right everywhere
    teacher = TEACHER[:, :, :1].expand(-1, -1, M)
    rows = kd_per_sample(standardize(STUDENT.transpose(1, 2)), standardize(teacher.transpose(1, 2)), 2.0)
    assert sdd_kd_lskd_loss_released(STUDENT, teacher, labels).item() == pytest.approx(rows.mean().item(), rel=1e-12)


def test_released_dkd_fusion_sums_over_rows_unless_there_is_one_region():
    mean = sdd_dkd_loss(STUDENT, TEACHER, LABELS, 9.0, 72.0, 2.0, standardize_logits=True)
    assert sdd_dkd_lskd_loss_released(STUDENT, TEACHER, LABELS).item() == pytest.approx(B * M * mean.item())
    student, teacher = STUDENT[:, :, :1], TEACHER[:, :, :1]
    tckd, nckd = dkd_per_sample(standardize(student[:, :, 0]), standardize(teacher[:, :, 0]), LABELS, 2.0)
    assert sdd_dkd_lskd_loss_released(student, teacher, LABELS).item() == pytest.approx(
        (9 * tckd + 72 * nckd).mean().item()
    )


ALL = pytest.mark.parametrize(
    "loss", [sdd_kd_loss, sdd_dkd_loss, sdd_kd_lskd_loss_released, sdd_dkd_lskd_loss_released]
)


@ALL
def test_zero_at_agreement_and_gradient_to_the_student_only(loss):
    assert loss(TEACHER, TEACHER, LABELS).item() == pytest.approx(0, abs=1e-12)
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher, LABELS).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: loss(z, TEACHER, LABELS), student)


@ALL
def test_huge_half_precision_logits_stay_finite(loss):
    student = (STUDENT / STUDENT.abs().max() * 1e4).half().requires_grad_()
    value = loss(student, (TEACHER / TEACHER.abs().max() * 1e4).half(), LABELS)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@ALL
def test_shapes_that_do_not_fit_are_refused(loss):
    with pytest.raises(InputError, match="must be equal"):
        loss(STUDENT, TEACHER[:, :, :1], LABELS)
    with pytest.raises(InputError, match="region logits must be"):
        loss(STUDENT[:, :, 0], TEACHER[:, :, 0], LABELS)
    with pytest.raises(InputError, match="labels must be int64"):
        loss(STUDENT, TEACHER, LABELS[:2])
