import math

import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import crd_log_normalizer, crd_log_scores, crd_loss

GENERATOR = torch.Generator().manual_seed(0)
N, D = 9, 4
ANCHORS = F.normalize(torch.randn(3, D, generator=GENERATOR, dtype=torch.float64), dim=1)
MEMORY = F.normalize(torch.randn(N, D, generator=GENERATOR, dtype=torch.float64), dim=1)
PLACES = torch.tensor([[0, 4, 5, 8], [1, 3, 3, 7], [2, 8, 6, 4]])


def loss_of(anchors, memory=MEMORY, temperature=0.07):
    scores = crd_log_scores(anchors, memory, PLACES, temperature)
    return crd_loss(scores - crd_log_normalizer(scores, N), N)


def test_scores_loss_and_normaliser_from_their_equations():
    scores = [[math.exp(sum(a * b for a, b in zip(v, MEMORY[j].tolist(), strict=True)) / 0.07) for j in row]
              for v, row in zip(ANCHORS.tolist(), PLACES.tolist(), strict=True)]  # fmt: skip
    Z = N * sum(sum(row) for row in scores) / 12
    share, loss = 3 / N, 0.0
    for row in scores:
        positive, *negatives = (value / Z for value in row)
        loss -= math.log(positive / (positive + share + 1e-7)) / 3
        loss -= sum(math.log(share / (value + share + 1e-7)) for value in negatives) / 3
    ours = crd_log_scores(ANCHORS, MEMORY, PLACES)
    assert torch.allclose(ours.exp(), torch.tensor(scores, dtype=torch.float64))
    assert crd_log_normalizer(ours, N).exp().item() == pytest.approx(Z)
    assert loss_of(ANCHORS).item() == pytest.approx(loss)


def test_the_loss_by_hand():
    # one negative of n = 1: share 1; x = 1 and 1: -ln 1/2 - ln 1/2
    assert crd_loss(torch.zeros(1, 2), 1).item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_a_student_beside_its_positive_costs_less_than_one_beside_a_negative():
    assert loss_of(MEMORY[PLACES[:, 0]]) < loss_of(MEMORY[PLACES[:, 1]])


def test_gradients_are_right_and_the_memory_gets_none():
    anchors, memory = ANCHORS.clone().requires_grad_(), MEMORY.clone().requires_grad_()
    scores = crd_log_scores(ANCHORS, MEMORY, PLACES)
    fixed = crd_log_normalizer(scores, N)  # a constant of training
    assert torch.autograd.gradcheck(lambda v: crd_loss(crd_log_scores(v, MEMORY, PLACES) - fixed, N), anchors)
    loss_of(anchors, memory).backward()
    assert memory.grad is None and anchors.grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [0.07, 0.001])
def test_scores_beyond_float16_and_float32_stay_finite(temperature):
    anchors = ANCHORS.half().requires_grad_()
    loss = loss_of(anchors, ANCHORS.half()[[0] * N], temperature)  # e^(1 / 0.07) is 1.6 million, e^1000 nothing holds
    loss.backward()
    assert loss.isfinite() and anchors.grad.isfinite().all() and loss.dtype == torch.float32


def test_autocast_leaves_the_scores_alone():
    exact = crd_log_scores(ANCHORS.float(), MEMORY.float(), PLACES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crd_log_scores(ANCHORS.float(), MEMORY.float(), PLACES), exact)


def test_no_negatives_or_no_temperature_are_refused():
    with pytest.raises(InputError, match="at least one negative"):
        crd_loss(torch.zeros(2, 1), 5)
    with pytest.raises(InputError, match="temperature"):
        crd_log_scores(ANCHORS, MEMORY, PLACES, 0.0)
