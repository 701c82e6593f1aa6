"""Several processes that train one network together, each with a part of every batch and, ordinarily, a device of its own.

Nothing of a recipe changes with their number. A batch is cut into parts, one a process, after its augmentation. Each process computes
the features of its part; `together` puts them side by side again, so that the loss sees the whole batch, in every process alike. Batch
norm takes the statistics of the whole batch (`share_batch_norm`). The gradients of the parts are summed, which gives those of one process:

    d L / d theta = sum_r (d L / d f_r) (d f_r / d theta),   f_r the features of part r

so all processes take the same step and stay equal. Only the networks' work is divided: each process holds the data and computes the loss.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = timedelta(
    hours=2
)  # of a process that waits for the others; their launcher ends it sooner where one is gone


@dataclass(frozen=True)
class Team:
    """The processes that train together, as this one sees them.

    Attributes:
        rank: of this process, from 0; rank 0 writes files, the others only read them.
        count: of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This process's part of a batch. One with fewer images than processes is not cut: each computes all of it."""
        if size < self.count:
            return slice(0, size)
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def agree(self, value: bool) -> bool:
        """What the leader says."""
        if self.count == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def team() -> Team:
    """The processes that train together; this one alone unless `join` was called."""
    return Team(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else Team()


@contextmanager
def join(rank: int, count: int, meeting_point: str, device: str = "cpu") -> Iterator[Team]:
    """Work with others until the block ends.

    Args:
        rank: of this process, 0 to count - 1.
        meeting_point: a path on which no file is yet, the same for all.
        device: NCCL is used between CUDA devices, gloo otherwise.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, f"file://{meeting_point}", rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield team()
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Sum over the processes; each gets the sum, and every process's gradient flows into every summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def together(value: Any, size: int) -> Any:
    """The whole batch's tensor out of each process's part, (B_r, ...) -> (B, ...); lists and named tuples of them likewise.

    Args:
        value: tensors whose first dimension is the part of the batch; None stays None.
        size: B.
    """
    members = team()
    if members.count == 1 or size < members.count or value is None:
        return value
    if isinstance(value, Tensor):
        place, tensor = members.part(size), value.contiguous()
        before = tensor.new_zeros(place.start, *tensor.shape[1:])
        after = tensor.new_zeros(size - place.stop, *tensor.shape[1:])
        return _Sum.apply(torch.cat([before, tensor, after]))  # zeros are exact, and parts may differ in size
    parts = [together(one, size) for one in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sum over the processes, in one message for each number format."""
    if team().count == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


class _SharedStatistics:
    """Batch norm with the mean and the biased variance of all processes' parts; n is the number of values a channel has in all of them.

    mean = sum x / n,   var = sum (x - mean)^2 / n;   running_var moves towards var n / (n - 1)
    """

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        if not own.training or team().count == 1 or not _parts_differ:
            return super().forward(x)  # type: ignore[misc]
        axes, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        wide = x if x.dtype == torch.float64 else x.float()
        count = x.new_tensor([x.numel() // x.shape[1]], dtype=wide.dtype)
        total = _Sum.apply(torch.cat([wide.sum(axes), count]))
        n, mean = total[-1].detach(), total[:-1] / total[-1]
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / n
        if own.track_running_stats:
            own.num_batches_tracked.add_(1)
            share = own.momentum if own.momentum is not None else 1 / float(own.num_batches_tracked)
            with torch.no_grad():
                own.running_mean.lerp_(mean.to(own.running_mean.dtype), share)
                own.running_var.lerp_((var * n / (n - 1)).to(own.running_var.dtype), share)
        found = centred * (var + own.eps).rsqrt().view(shape)
        if own.affine:
            found = found * own.weight.view(shape) + own.bias.view(shape)
        return found.to(x.dtype)


class _SharedBatchNorm1d(_SharedStatistics, nn.BatchNorm1d):
    pass


class _SharedBatchNorm2d(_SharedStatistics, nn.BatchNorm2d):
    pass


_SHARED = {nn.BatchNorm1d: _SharedBatchNorm1d, nn.BatchNorm2d: _SharedBatchNorm2d}
_parts_differ = False  # whether a forward pass now sees a part of a batch


@contextmanager
def parts_of_a_batch(size: int) -> Iterator[None]:
    """Around forward passes on `team().part(size)` of a batch."""
    global _parts_differ
    before, _parts_differ = _parts_differ, size >= team().count > 1
    try:
        yield
    finally:
        _parts_differ = before


def share_batch_norm(*networks: nn.Module | None) -> None:
    """From now on batch norm in training takes the statistics of whole batches; weights, buffers and their names stay what they are."""
    if team().count > 1:
        for module in (module for network in networks if network is not None for module in network.modules()):
            module.__class__ = _SHARED.get(type(module), type(module))
