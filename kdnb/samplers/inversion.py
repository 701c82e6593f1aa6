"""What the synthesisers of data-free distillation share: how a loss is weighed, which iterate is kept, what a teacher must have.

A synthesiser is anything with `call(rng) -> Synthesis`, `state_dict` and `load_state_dict`; one that can hand out images at any time also
has `sample(count, rng)`. Its module has `build(problem, config)`. The table of all of them is `kdnb.samplers.field`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.probes import BatchNormProbe
from kdnb.samplers.synthesizer import Synthesis

__all__ = [
    "Cheapest",
    "Problem",
    "Synthesis",
    "draw_classes",
    "require_features",
    "require_batch_norm",
    "require_sizes",
    "stack_losses",
    "weigh",
]


class Problem(NamedTuple):
    """What a synthesiser is built for.

    Attributes:
        teacher, student: classifiers of images in [-1, 1], on one device.
        image_shape: (C, H, W).
        num_classes: K.
        mean, std: normalisation of the data, one float a channel, in units of [0, 1].
    """

    teacher: nn.Module
    student: nn.Module
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def device(self) -> torch.device:
        return next(self.teacher.parameters()).device


class Cheapest:
    """The tensors that were offered with the lowest loss, the earlier on a tie, chosen on the device without waiting for it."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.tensors: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def offer(self, loss: Tensor, *tensors: Tensor) -> None:
        """Take copies of `tensors`, which may change in place afterwards, if `loss`, a scalar, is below all before."""
        if self.loss is None:
            self.loss, self.tensors = loss.detach().clone(), tuple(tensor.detach().clone() for tensor in tensors)
            return
        lower = loss < self.loss
        self.loss = torch.where(lower, loss, self.loss)
        self.tensors = tuple(torch.where(lower, new, old) for new, old in zip(tensors, self.tensors, strict=True))


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The losses with their weighted sum as `total`."""
    return dict(losses) | {"total": sum(weights[name] * value for name, value in losses.items())}


def stack_losses(history: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars by step and name -> name -> (steps,), detached."""
    return {name: torch.stack([losses[name].detach() for losses in history]) for name in history[0]}


def draw_classes(count: int, num_classes: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
    """(count,) wanted classes, uniform and sorted, as the released codes of CMI and Fast-Datafree have them."""
    return torch.randint(num_classes, (count,), generator=rng, device=device).sort().values


def require_batch_norm(teacher: nn.Module, method: str) -> None:
    """Raises InputError for a teacher without batch-norm layers that remember statistics."""
    with BatchNormProbe(teacher) as probe:
        if not any(layer.running_mean is not None for layer in probe.layers):
            raise InputError(
                f"{method} matches the statistics of batch-norm layers, and this teacher "
                f"({type(teacher).__name__}) has none; use zskt, dfad or dafl"
            )


def require_features(network: nn.Module, method: str) -> None:
    """Raises InputError for a network whose forward pass takes no `return_features`."""
    parameters = inspect.signature(network.forward).parameters.values()
    if not any(one.name == "return_features" or one.kind is one.VAR_KEYWORD for one in parameters):
        raise InputError(
            f"{method} looks at features inside the networks; {type(network).__name__} is no classifier of kdnb.models"
        )


def require_sizes(**sizes: float) -> None:
    """Raises InputError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")
