"""kdnb.training.student_phase: plain SGD at the given rate, batches that depend on (seed, epoch, step) alone, a stop where numbers end."""

import pytest
import torch
from torch import nn

from kdnb.training.student_phase import student_phase


def phase(loss=None, **changes):
    student = nn.Linear(2, 1, bias=False)
    nn.init.constant_(student.weight, 0.5)
    seen = []

    def squares(rng: torch.Generator) -> torch.Tensor:
        seen.append(torch.rand(3, 2, generator=rng))
        return (student(seen[-1]) ** 2).mean()

    optimizer = torch.optim.SGD(student.parameters(), lr=9.0)
    mean = student_phase(
        student, optimizer, loss or squares, **{"steps": 2, "rate": 0.1, "seed": 3, "epoch": 0} | changes
    )
    return student, seen, mean


def test_it_is_sgd_written_out():
    student, seen, mean = phase()
    weight, losses = torch.tensor([[0.5, 0.5]]), []
    for x in seen:
        out = x @ weight.T
        losses.append((out**2).mean())
        weight = weight - 0.1 * (2 * out * x).mean(0, keepdim=True)
    assert torch.allclose(student.weight, weight) and mean == pytest.approx(float(sum(losses) / 2)) and student.training


def test_batches_are_a_function_of_seed_epoch_and_step():
    (_, a, _), (_, b, _), (_, c, _), (_, d, _) = phase(), phase(), phase(seed=4), phase(epoch=1)
    assert torch.equal(torch.stack(a), torch.stack(b)) and not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], c[0]) and not torch.equal(a[0], d[0])


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_round():
    with pytest.raises(FloatingPointError, match="student: the loss became infinite or NaN in round 6"):
        phase(lambda _: torch.tensor(float("nan"), requires_grad=True), epoch=5)
