import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import dist_parts, pearson

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64)


def _correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cross = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return cross / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_correlation_by_hand():
    # deviations (-1, 0, 1) and (-1, 1, 0): cross 1, norms sqrt 2 each
    assert pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 1.0])).item() == pytest.approx(0.5)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_both_parts_from_their_equations(tau):
    p, q = ((z / tau).softmax(1) for z in (STUDENT, TEACHER))
    rows = [_correlation(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    columns = [_correlation(a, b) for a, b in zip(p.T.tolist(), q.T.tolist(), strict=True)]
    expected = [tau**2 * (1 - sum(values) / len(values)) for values in (rows, columns)]
    assert [part.item() for part in dist_parts(STUDENT, TEACHER, tau)] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_lost_where_probabilities_agree():
    assert [part.item() for part in dist_parts(TEACHER + 3.0, TEACHER)] == pytest.approx([0, 0], abs=1e-4)


def test_the_gradient_is_exact_and_the_students_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    sum(dist_parts(student, teacher)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: dist_parts(z, TEACHER), student)


def test_a_single_image_correlates_with_nothing_over_samples():
    _, intra = dist_parts(STUDENT[:1], TEACHER[:1], 2.0)
    assert intra.item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_certain_and_undecided_students_keep_finite_gradients(dtype):
    """A saturated column has norm 0, an undecided row deviation 0; in float16 the guard itself would vanish.

    The row's gradient has the size of the guard's inverse, hence the factor, which stands for a loss scale.
    """
    student = torch.tensor([[1e4, 0.0, 0.0], [1e4, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=dtype, requires_grad=True)
    loss = sum(dist_parts(student, torch.eye(3, dtype=dtype), 1.0))
    (loss / 1e5).backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert student.grad.isfinite().all() and student.grad[:2].abs().max() < 1e-3


def test_another_shape_is_refused():
    with pytest.raises(InputError, match="must be equal"):
        dist_parts(STUDENT, TEACHER[:3])
