"""Splits: what training and evaluation need of images and labels, and the split that is held as tensors."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdnb.randomness import generator_for
from kdnb.rehearsal import batch_for, cut


class AnySplit(Protocol):
    """What training needs of its images: batches by epoch and step, which are functions of the seed."""

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def epoch(self, seed: int, epoch: int, batch_size: int, steps: range) -> Iterator[tuple[Tensor, Tensor | None]]: ...


class OrderedSplit(AnySplit, Protocol):
    """Images that can be asked for in order, too: a `Split`, or a `FolderSplit` on disk."""

    def permutation(self, seed: int, epoch: int) -> Tensor: ...

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]: ...


@dataclass
class Split:
    """Images and labels of one split on one device.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1].
        labels: (N,) int64, or None where the split is unlabelled.
    """

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | slice) -> "Split":
        return Split(self.images[indices], None if self.labels is None else self.labels[indices])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))

    def without_class(self, label: int) -> "Split":
        """All but one class: the omitted-class experiment."""
        assert self.labels is not None
        return self.subset((self.labels != label).nonzero().flatten())

    def take(self, count: int) -> "Split":
        """The first `count` images, or all where there are fewer."""
        return self.subset(slice(count))

    @property
    def device(self) -> torch.device:
        """Where batches arrive."""
        return self.images.device

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 over images and labels."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def permutation(self, seed: int, epoch: int) -> Tensor:
        """The order of one epoch, a function of seed and epoch alone."""
        return torch.randperm(len(self), generator=generator_for(seed, "order", epoch)).to(self.device)

    def epoch(self, seed: int, epoch: int, batch_size: int, steps: range) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of some steps of one epoch, not yet augmented."""
        order = self.permutation(seed, epoch)
        for step in steps:
            indices = order[step * batch_size : (step + 1) * batch_size]
            yield self.images[indices], None if self.labels is None else self.labels[indices]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """In order, without augmentation: for evaluation."""
        batch_size = batch_for(batch_size)
        for start in cut(range(0, len(self), batch_size), "batch", most=1):
            part = slice(start, start + batch_size)
            yield self.images[part], None if self.labels is None else self.labels[part]
