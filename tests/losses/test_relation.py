import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses.relation import relation_loss, relation_loss_released, swapped_prediction

GENERATOR = torch.Generator().manual_seed(0)
NEW = torch.rand(2, 3, 5, 6, generator=GENERATOR, dtype=torch.float64) * 2 - 1
OLD = torch.rand(2, 3, 5, 4, generator=GENERATOR, dtype=torch.float64) * 2 - 1
UNLABELLED = torch.tensor([True, False, True, True, False])
BOTH = pytest.mark.parametrize("loss", [relation_loss, relation_loss_released])


def _slow(new, old, unlabelled, tau, T, with_entropy):
    """Sample by sample from the equation."""
    V, heads, _, _ = new.shape
    chosen = [b for b in range(new.shape[2]) if unlabelled[b]]
    gates = {
        (v, h, b): (new[v, h, b] / (tau * T)).softmax(0)[:4].sum()
        for v in range(V)
        for h in range(heads)
        for b in chosen
    }
    mean = sum(gates.values()) / len(gates)
    result = torch.zeros(heads, dtype=new.dtype)
    for (v, h, b), gate in gates.items():
        q = (old[v, h, b] / (tau * T)).softmax(0)
        p = (new[v, h, b, :4] / (tau * T)).softmax(0)
        term = -(q * p.log()).sum() + (q * q.log()).sum() * with_entropy
        result[h] += T**2 * gate / mean * term / (V * len(chosen))
    return result


def test_relation_from_its_equation():
    assert torch.allclose(relation_loss(NEW, OLD, UNLABELLED, 0.2, 3.0), _slow(NEW, OLD, UNLABELLED, 0.2, 3.0, True))


def test_released_relation_from_its_equation():
    assert torch.allclose(
        relation_loss_released(NEW, OLD, UNLABELLED, 0.2, 3.0), _slow(NEW, OLD, UNLABELLED, 0.2, 3.0, False)
    )


def test_relation_is_zero_where_the_known_classes_agree_and_the_released_one_is_not():
    agreeing = torch.cat([OLD + 0.3, NEW[..., 4:]], -1)  # a shift of all known logits keeps their relation
    assert relation_loss(agreeing, OLD, UNLABELLED).abs().max() < 1e-9
    assert relation_loss_released(agreeing, OLD, UNLABELLED).min() > 1


@BOTH
def test_labelled_samples_do_not_count(loss):
    changed = NEW.clone()
    changed[:, :, ~UNLABELLED] = 0.5
    assert torch.equal(loss(changed, OLD, UNLABELLED), loss(NEW, OLD, UNLABELLED))
    new = NEW.clone().requires_grad_()
    loss(new, OLD, UNLABELLED).sum().backward()
    assert torch.equal(new.grad[:, :, ~UNLABELLED], torch.zeros(2, 3, 2, 6, dtype=torch.float64))
    assert (new.grad[:, :, UNLABELLED].abs().sum(-1) > 0).all()


@BOTH
def test_a_batch_without_unlabelled_samples_gives_zero(loss):
    new = NEW.clone().requires_grad_()
    value = loss(new, OLD, torch.zeros(5, dtype=torch.bool))
    value.sum().backward()
    assert torch.equal(value, torch.zeros(3, dtype=torch.float64)) and torch.equal(new.grad, torch.zeros_like(NEW))


@BOTH
def test_relation_gradient_passes_through_the_gate(loss):
    assert torch.autograd.gradcheck(lambda new: loss(new, OLD, UNLABELLED), NEW.clone().requires_grad_())
    new = NEW.clone().requires_grad_()
    loss(new, OLD, UNLABELLED).sum().backward()
    assert new.grad[..., 4:].abs().sum() > 0  # novel logits enter only through the gate


@BOTH
def test_no_gradient_reaches_the_old_model(loss):
    old = OLD.clone().requires_grad_()
    loss(NEW.clone().requires_grad_(), old, UNLABELLED).sum().backward()
    assert old.grad is None


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_relation_stays_finite_at_huge_logits(loss, dtype):
    new = torch.zeros(1, 1, 2, 3)
    new[..., 2] = 1e4  # the gate of every sample underflows without log space
    new = new.to(dtype).requires_grad_()
    value = loss(new, torch.tensor([[[[0.0, 1e4], [1e4, 0.0]]]], dtype=dtype), torch.tensor([True, True]))
    value.sum().backward()
    assert value.isfinite().all() and new.grad.isfinite().all()


LOGITS = torch.rand(4, 2, 5, 3, generator=GENERATOR, dtype=torch.float64) * 2 - 1
TARGETS = torch.rand(2, 2, 5, 3, generator=GENERATOR, dtype=torch.float64).softmax(-1)


def test_swapped_prediction_from_its_equation():
    expected = torch.zeros(2, dtype=torch.float64)
    for v in range(2):
        for u in range(4):
            if u != v:
                expected += -(TARGETS[v] * (LOGITS[u] / 0.2).log_softmax(-1)).sum(-1).mean(-1) / (2 * 3)
    assert torch.allclose(swapped_prediction(LOGITS, TARGETS, 2, 0.2), expected)


def test_a_view_never_predicts_its_own_target():
    logits = LOGITS[:2].clone().requires_grad_()
    swapped_prediction(logits, TARGETS[:1], num_large=1).sum().backward()
    assert torch.equal(logits.grad[0], torch.zeros(2, 5, 3, dtype=torch.float64)) and logits.grad[1].abs().sum() > 0


def test_targets_of_small_views_are_ignored():
    more = torch.cat([TARGETS, torch.zeros(2, 2, 5, 3, dtype=torch.float64)])
    assert torch.equal(swapped_prediction(LOGITS, more), swapped_prediction(LOGITS, TARGETS))


def test_swapped_prediction_of_one_hot_targets_is_cross_entropy():
    y = torch.tensor([0, 1, 2, 0, 1])
    targets = F.one_hot(y, 3).double().expand(2, 2, 5, 3)
    expected = (F.cross_entropy(LOGITS[0, 0], y) + F.cross_entropy(LOGITS[1, 0], y)) / 2
    assert torch.allclose(swapped_prediction(LOGITS[:2], targets, temperature=1.0)[0], expected)


def test_swapped_prediction_gradients_reach_only_the_logits():
    targets = TARGETS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: swapped_prediction(logits, targets), LOGITS.clone().requires_grad_())
    swapped_prediction(LOGITS.clone().requires_grad_(), targets).sum().backward()
    assert targets.grad is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: relation_loss(NEW[..., :4], OLD, UNLABELLED),
        lambda: relation_loss(NEW, OLD[:1], UNLABELLED),
        lambda: relation_loss(NEW, OLD, UNLABELLED, temperature=0.0),
        lambda: swapped_prediction(LOGITS[:1], TARGETS, 1),
        lambda: swapped_prediction(LOGITS, TARGETS, 3),
        lambda: swapped_prediction(LOGITS, TARGETS, temperature=0.0),
    ],
)
def test_layouts_and_settings_that_do_not_fit_are_refused(call):
    with pytest.raises(InputError):
        call()
