"""Small networks and shared checks for tests of synthesisers."""

import copy

import torch
from torch import nn

from kdnb.samplers.inversion import Problem
from tests.material import classifier

SHAPE = (1, 8, 8)


def problem(teacher: nn.Module | None = None, shape=SHAPE) -> Problem:
    return Problem(teacher or classifier(9).eval(), classifier(1).train(), shape, 3, (0.4,), (0.3,))


def bare() -> nn.Module:
    """A classifier without batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


def unchanged(model: nn.Module, before: dict) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
