"""Curriculum temperature (CTKD): a temperature trained to raise the student's loss, more strongly as training goes on."""

import math

import torch
from torch import Tensor

from kdnb.losses.checks import upcast


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number; by a negative one gradient descent climbs."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def reversal(epoch: int, epochs: int = 10) -> float:
    """How far the gradient of the temperature is reversed: from 0 down half a cosine to -1 after so many epochs.

        lambda(e) = (cos(pi min(e, n) / n) - 1) / 2

    Args:
        epoch: e, 1-based. epochs: n; 0: fully reversed from the start.

    >>> [round(reversal(epoch, 10), 6) for epoch in (0, 5, 10, 99)], reversal(1, 0)
    ([0.0, -0.5, -1.0, -1.0], -1.0)
    """
    return (math.cos(math.pi * min(epoch, epochs) / epochs) - 1) / 2 if epochs else -1.0


def curriculum_temperature(theta: Tensor, factor: float, start: float = 1.0, span: float = 20.0) -> Tensor:
    """The temperature that a parameter stands for, with its gradient scaled.

        T = t_0 + t_1 sigmoid(theta),   dL/dtheta multiplied by lambda

    Args:
        theta: the learned parameter, any shape.
        factor: lambda, from `reversal`.
        start, span: t_0 and t_1; T lies between t_0 and t_0 + t_1.
    Returns:
        Tensor of the same shape, in float32 at least.

    Source: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, Curriculum Temperature for Knowledge Distillation, AAAI 2023.
    """
    return start + span * ScaledGradient.apply(upcast(theta), factor).sigmoid()
