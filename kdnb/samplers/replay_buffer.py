"""A first-in-first-out memory of images on the training device: one preallocated ring, one indexed copy per push or draw."""

import torch
from torch import Tensor

from kdnb.errors import InputError


class ReplayBuffer:
    """The newest `capacity` images and their labels.

    Args:
        capacity: how many images stay; pushing one more evicts the oldest.
        image_shape: (C, H, W).
        device, dtype: of the ring; float16 halves the memory of long runs.
    Raises:
        InputError: capacity < 1, or a push of another shape.

    Order is exact: after any pushes the buffer holds the last min(pushed, capacity) images, oldest first in `contents()`.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if capacity < 1:
            raise InputError(f"a replay buffer needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self._images = torch.zeros(capacity, *image_shape, device=device, dtype=dtype)
        self._labels = torch.zeros(capacity, device=device, dtype=torch.int64)
        self._pushed = 0

    def __len__(self) -> int:
        return min(self._pushed, self.capacity)

    def push(self, images: Tensor, labels: Tensor) -> None:
        """Append (B, C, H, W) images and (B,) labels, evicting as many of the oldest as need be."""
        if images.shape[1:] != self._images.shape[1:] or len(images) != len(labels):
            raise InputError(
                f"the buffer holds images {tuple(self._images.shape[1:])} with one label each, "
                f"got {tuple(images.shape)} with {len(labels)} labels"
            )
        skipped = max(0, len(images) - self.capacity)  # of a batch larger than the ring only the end would stay
        images, labels = images[skipped:], labels[skipped:]
        positions = (torch.arange(len(images), device=self._labels.device) + self._pushed + skipped) % self.capacity
        self._images[positions] = images.detach().to(self._images)
        self._labels[positions] = labels.to(self._labels)
        self._pushed += skipped + len(images)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`count` images and labels drawn uniformly without replacement (all of them, if fewer are stored)."""
        indices = torch.randperm(len(self), generator=generator, device=self._labels.device)[:count]
        return self._images[indices].float(), self._labels[indices]

    def contents(self) -> tuple[Tensor, Tensor]:
        """All images and labels, oldest first."""
        start = self._pushed % self.capacity if self._pushed > self.capacity else 0
        order = (torch.arange(len(self), device=self._labels.device) + start) % self.capacity
        return self._images[order].float(), self._labels[order]

    def state_dict(self) -> dict:
        return {"images": self._images[: len(self)], "labels": self._labels[: len(self)], "pushed": self._pushed}

    def load_state_dict(self, state: dict) -> None:
        stored = len(state["images"])
        if (
            stored > self.capacity
            or state["images"].shape[1:] != self._images.shape[1:]
            or stored != min(state["pushed"], self.capacity)
        ):
            raise InputError(
                f"this state holds {stored} images {tuple(state['images'].shape[1:])} of {state['pushed']} pushed and "
                f"does not fit a buffer of {self.capacity} images {tuple(self._images.shape[1:])}"
            )
        self._images[:stored] = state["images"].to(self._images)
        self._labels[:stored] = state["labels"].to(self._labels)
        self._pushed = state["pushed"]
