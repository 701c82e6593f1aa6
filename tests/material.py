"""Material that several tests share."""

import torch
from torch import Tensor

from kdnb.methods import build
from kdnb.models.base import Features


def method_loss(name: str, logits_s: Tensor, logits_t: Tensor | None, labels: Tensor, **hyper) -> Tensor:
    """The whole loss of a method that reads logits alone, in its first epoch."""
    method = build(name, **hyper)
    student = Features(logits_s, [], None, None)
    teacher = None if logits_t is None else Features(logits_t, [], None, None)
    return torch.stack(list(method(student, teacher, labels, 1).values())).sum()
