"""The student's part of a round of data-free distillation: some steps of SGD on images that a buffer holds."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdnb.randomness import generator_for
from kdnb.rehearsal import cut
from kdnb.training.resume import stop_if_not_finite


def student_phase(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
    epoch: int,
) -> float:
    """Train the student for one round; what it sees is a function of (seed, epoch, step).

    Args:
        student: left in training mode. optimizer: of its parameters, set to the learning rate `rate`.
        loss: draws a batch with the generator it is given, on the student's device, and returns the loss, a scalar.
        steps: SGD steps, >= 1. epoch: zero-based round.
    Returns:
        The mean loss. It is read from the device once, at the end.
    Raises:
        FloatingPointError: the loss became infinite or NaN.
    """
    device = next(student.parameters()).device
    student.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    total = torch.zeros((), device=device)
    for step in cut(range(steps), "step"):
        value = loss(generator_for(seed, "student", epoch, step, device=device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        total += value.detach()
    mean = total / steps
    stop_if_not_finite("student", {"the loss": mean}, f"in round {epoch + 1}")
    return mean.item()
