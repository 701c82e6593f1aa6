"""What every loss asks of its inputs, and the precision it computes in. Shapes only: no check reads a value back from the device."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kdnb.errors import InputError

_HALF = (torch.float16, torch.bfloat16)


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32, all else stays: tau^2 KL at logits of 1e4 overflows float16 (largest number 65504)."""
    return x.float() if x.dtype in _HALF else x


def no_autocast(x: Tensor) -> AbstractContextManager:
    """A block in which autocast doesn't turn the matrix products on x's device back into half precision (meta tensors know no autocast)."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def check_temperature(temperature: float | Tensor) -> None:
    """A finite number above 0; a tensor, learned or computed, is its maker's matter (a check here would wait for the device)."""
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise InputError(f"temperature must be a finite number > 0, got {temperature}")


def check_logits(logits_s: Tensor, logits_t: Tensor, class_dim: int = -1) -> None:
    """Equal shapes with at least two classes along `class_dim`."""
    if logits_s.shape != logits_t.shape:
        raise InputError(
            f"logits_s has shape {tuple(logits_s.shape)}, logits_t {tuple(logits_t.shape)}; they must be equal"
        )
    check_classes(logits_s, class_dim)


def check_classes(logits: Tensor, class_dim: int = -1) -> None:
    if logits.dim() < 2 or logits.shape[class_dim] < 2:
        raise InputError(f"logits must have a batch dimension and at least 2 classes, got shape {tuple(logits.shape)}")


def check_labels(labels: Tensor, shape: torch.Size | tuple) -> None:
    """Integer class ids of the given shape; that each is below K is left to the kernel (a check here would wait for the device)."""
    if tuple(labels.shape) != tuple(shape) or labels.dtype != torch.int64:
        raise InputError(
            f"labels must be int64 class ids of shape {tuple(shape)}, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
