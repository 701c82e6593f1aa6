import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import (
    batch_relation_rows,
    class_relation_rows,
    confidence_masks,
    kd_per_sample,
    kd_rows,
    mlld_loss,
    mlld_loss_released,
    standardize,
)

B, K = 7, 5
GENERATOR = torch.Generator().manual_seed(0)
WEAK_S, STRONG_S, WEAK_T, STRONG_T = torch.randn(4, B, K, generator=GENERATOR, dtype=torch.float64).mul(2).unbind()
LOGITS = (WEAK_S, STRONG_S, WEAK_T, STRONG_T)
TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
BOTH = pytest.mark.parametrize("loss", [mlld_loss, mlld_loss_released])


def _relations(student, teacher, tau, of_classes):
    """Squared differences of the relation matrices, entry by entry: a list of row sums."""
    p, q = ((z / tau).softmax(1) for z in (student, teacher))
    p, q = (p.T, q.T) if of_classes else (p, q)
    return [sum(((q[i] @ q[j]) - (p[i] @ p[j])).item() ** 2 for j in range(len(p))) for i in range(len(p))]


def test_masks_by_hand():
    # confidences .9, .6, .8, .7 have the median .75; class masses 2.0, 1.3, 0.7 the median 1.3
    p = torch.tensor([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.1, 0.45, 0.45], [0.7, 0.2, 0.1]])
    samples, classes = confidence_masks(p.log())
    assert samples.tolist() == [False, True, True, False] and classes.tolist() == [False, True, True]


def test_rows_of_all_temperatures_are_those_of_each():
    rows = kd_rows(WEAK_S, WEAK_T, TEMPERATURES)
    for row, tau in zip(rows, TEMPERATURES, strict=True):
        assert torch.allclose(row, kd_per_sample(WEAK_S, WEAK_T, tau))


@pytest.mark.parametrize(("rows", "of_classes"), [(batch_relation_rows, False), (class_relation_rows, True)])
def test_relation_rows_from_their_equation(rows, of_classes):
    ours = rows(WEAK_S, WEAK_T, (2.0, 3.0))
    for row, tau in zip(ours.tolist(), (2.0, 3.0), strict=True):
        assert row == pytest.approx(_relations(WEAK_S, WEAK_T, tau, of_classes))


@pytest.mark.parametrize("standardized", [False, True])
def test_mlld_masks_samples_and_classes_and_uses_both_views(standardized):
    samples, classes = confidence_masks(WEAK_T)
    z = standardize if standardized else (lambda x: x)
    kd = of_classes = of_batch = 0.0
    for tau in TEMPERATURES:
        kd += (kd_per_sample(z(WEAK_S), z(WEAK_T), tau) * samples).mean().item() + kd_per_sample(
            z(STRONG_S), z(STRONG_T), tau
        ).mean().item()
        weak, strong = (torch.tensor(_relations(*pair, tau, True)) for pair in ((WEAK_S, WEAK_T), (STRONG_S, STRONG_T)))
        of_classes += (weak * classes + strong).mean().item()
        weak, strong = (
            torch.tensor(_relations(*pair, tau, False)) for pair in ((WEAK_S, WEAK_T), (STRONG_S, STRONG_T))
        )
        of_batch += (weak * samples + strong).mean().item()
    assert [term.item() for term in mlld_loss(*LOGITS, TEMPERATURES, standardized)] == pytest.approx(
        [kd, of_classes, of_batch], rel=1e-6
    )


def test_released_masks_only_rescale_and_two_strong_terms_see_the_weak_view():
    samples, classes = (mask.double().mean().item() for mask in confidence_masks(WEAK_T))
    assert (samples, classes) == (4 / 7, 3 / 5)  # odd counts: the median itself is below or equal
    weak = [kd_per_sample(WEAK_S, WEAK_T, tau).mean().item() for tau in TEMPERATURES]
    strong = [kd_per_sample(STRONG_S, STRONG_T, tau).mean().item() for tau in TEMPERATURES]
    kd, of_classes, of_batch = mlld_loss_released(*LOGITS)
    assert kd.item() == pytest.approx(samples * sum(weak) + sum(strong[:3]) + sum(weak[3:]))
    assert of_classes.item() == pytest.approx(
        classes * sum(sum(_relations(WEAK_S, WEAK_T, tau, True)) / K for tau in TEMPERATURES)
    )
    assert of_batch.item() == pytest.approx(
        samples * sum(sum(_relations(WEAK_S, WEAK_T, tau, False)) / B for tau in TEMPERATURES)
    )


@BOTH
@pytest.mark.parametrize("standardized", [False, True])
def test_zero_at_agreement_and_gradient_to_the_student_only(loss, standardized):
    assert [term.item() for term in loss(WEAK_T, STRONG_T, WEAK_T, STRONG_T)] == pytest.approx([0, 0, 0], abs=1e-12)
    leaves = [z.clone().requires_grad_() for z in LOGITS]
    sum(loss(*leaves, standardize_logits=standardized)).backward()
    assert all(z.grad.abs().sum() > 0 for z in leaves[:2]) and all(z.grad is None for z in leaves[2:])
    assert torch.autograd.gradcheck(
        lambda weak, strong: sum(loss(weak, strong, WEAK_T, STRONG_T, standardize_logits=standardized)), leaves[:2]
    )


@BOTH
def test_huge_half_precision_logits_stay_finite(loss):
    logits = [(z.sign() * 1e4).half() for z in LOGITS]
    student = logits[0].requires_grad_()
    total = sum(loss(student, *logits[1:]))
    total.backward()
    assert total.isfinite() and student.grad.isfinite().all()


@BOTH
def test_relations_keep_their_precision_under_autocast(loss):
    close = [z.float() for z in (WEAK_T + 1e-3 * WEAK_S, STRONG_T + 1e-3 * STRONG_S, WEAK_T, STRONG_T)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(*close)
    assert [term.item() for term in ours] == pytest.approx([term.item() for term in loss(*close)], rel=1e-6)


@BOTH
def test_views_of_different_shapes_are_refused(loss):
    with pytest.raises(InputError, match="must be equal"):
        loss(WEAK_S, STRONG_S[:3], WEAK_T, STRONG_T)
