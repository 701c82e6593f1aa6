"""Training on stored soft labels: crops are replayed, and no teacher is asked again. FKD as it is, and FerKD, which picks among the crops.

The loop is `kdnb.training.loop.fit`: a `ReplaySplit` hands it crops in place of images and distributions in place of labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.data.crops import replay_crops
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.losses.soft_labels import CONTEXT, POSITIVE, ferkd_partition, ferkd_targets, self_mix
from kdnb.methods.stored_labels import StoredLabels
from kdnb.randomness import generator_for
from kdnb.rehearsal import rehearsing
from kdnb.studies.label_store import LabelStore
from kdnb.training.loop import Fit, fit
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import fresh


class Thresholds(NamedTuple):
    """FerKD's borders on the teacher's confidence; the published values are not known.

    Attributes:
        low: below it crops are discarded as too hard.
        middle: from here on they keep the teacher's answer; between low and middle they are context, with the smoothed true label.
        top: above it they are discarded as too easy.
        smoothing: of the labels of context crops.
    """

    low: float = 0.3
    middle: float = 0.5
    top: float = 1.0
    smoothing: float = 0.1


@dataclass(frozen=True)
class ReplaySplit:
    """Stored crops with stored labels in the shape that `fit` wants of a split. One pass shows m crops of every image.

    Its batches are functions of (seed, epoch, step): a resumed `fit` gets the same ones.

    Attributes:
        store: of these images, on their device.
        images: (N, C, H, W).
        labels: (N,) int64 true classes, used by FerKD's relabelling.
        size: side of the crops, in pixels.
        num_draw: m crops of an image in a batch; batch sizes must be multiples of it.
        thresholds: None: FKD. Else FerKD: discarded crops are drawn only where an image has nothing better, and do not count.
        mix: share lambda ~ U(mix, 1) of a crop in SelfMix; None: no mixing.

    Sources: Shen and Xing, ECCV 2022 (FKD); Shen, ICCV 2023 (FerKD). Deviation: crops to be discarded are never cut, where others are left.
    """

    store: LabelStore
    images: Tensor
    labels: Tensor
    size: int
    num_draw: int = 4
    thresholds: Thresholds | None = None
    mix: float | None = None

    def __post_init__(self):
        if len(self.store) != len(self.images) or len(self.labels) != len(self.images):
            raise InputError(
                f"store, images and labels must belong together, got {len(self.store)}, {len(self.images)} and {len(self.labels)}"
            )
        if not 1 <= self.num_draw <= self.store.num_crops:
            raise InputError(
                f"num_draw must lie between 1 and the {self.store.num_crops} stored crops, got {self.num_draw}"
            )
        if self.mix is not None and (not 0 <= self.mix <= 1 or self.num_draw < 2):
            raise InputError(
                f"SelfMix needs 0 <= mix <= 1 and at least 2 crops of an image, got mix = {self.mix}, num_draw = {self.num_draw}"
            )
        if self.thresholds is not None and not rehearsing() and not bool(self.useful().any()):
            raise InputError(f"thresholds {tuple(self.thresholds)[:3]} discard every stored crop")

    def __len__(self) -> int:
        return len(self.images) * self.num_draw

    @property
    def device(self) -> torch.device:
        return self.images.device

    def regions(self) -> Tensor:
        """FerKD's region of every stored crop, (N, M) int64 in 0..3."""
        assert self.thresholds is not None
        low, middle, top, _ = self.thresholds
        return ferkd_partition(stored_confidence(self.store), low, middle, top)

    def useful(self) -> Tensor:
        """(N, M) bool: crops that FerKD trains on."""
        region = self.regions()
        return (region == CONTEXT) | (region == POSITIVE)

    def epoch(self, seed: int, epoch: int, batch_size: int, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops (B, C, size, size) and targets (B, K) of some steps of a pass; targets of zeros mark crops that do not count."""
        if batch_size % self.num_draw:
            raise InputError(
                f"batch_size must be a multiple of the {self.num_draw} crops drawn of each image, got {batch_size}"
            )
        order = torch.randperm(len(self.images), generator=generator_for(seed, "order", epoch)).to(self.device)
        useful = None if self.thresholds is None else self.useful()
        count = batch_size // self.num_draw
        for step in steps:
            chosen = order[step * count : (step + 1) * count]
            generator = generator_for(seed, "crops", epoch, step)
            crops, targets = self._draw(chosen, useful, generator)
            if self.mix is not None:
                lam = self.mix + (1 - self.mix) * torch.rand(len(chosen), generator=generator).to(crops)
                counted = (targets.sum(2) > 0.5).all(1)  # a crop without a target has nothing to mix
                crops, targets = self_mix(crops, targets, torch.where(counted, lam, 1.0))
            yield crops.flatten(0, 1), targets.flatten(0, 1)

    def _draw(self, chosen: Tensor, useful: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(b, m, C, size, size) and (b, m, K): m of M random keys, those of useful crops raised above all others."""
        keys = torch.rand(len(chosen), self.store.num_crops, generator=generator).to(self.device)
        if useful is not None:
            keys = keys + useful[chosen]
        positions = keys.topk(self.num_draw, dim=1).indices
        rows = chosen[:, None]
        targets = self.store.labels(chosen, positions)
        if useful is not None:
            assert self.thresholds is not None
            low, middle, top, smoothing = self.thresholds
            labels = self.labels[chosen][:, None].expand_as(positions)
            targets, keep = ferkd_targets(targets, labels, low, middle, top, smoothing)
            targets = targets * keep[..., None]
        return replay_crops(
            self.images[chosen], self.store.boxes[rows, positions], self.store.flips[rows, positions], self.size
        ), targets


def stored_confidence(store: LabelStore, batch: int = 1000) -> Tensor:
    """The teacher's largest probability on every stored crop, (N, M): exact in every mode that keeps it, 1 for `hard`."""
    return torch.cat([labels.amax(-1) for labels in _all_labels(store, batch)])


def stored_answers(store: LabelStore, batch: int = 1000) -> Tensor:
    """The teacher's most probable class of every stored crop, (N, M) int64."""
    return torch.cat([labels.argmax(-1) for labels in _all_labels(store, batch)])


def _all_labels(store: LabelStore, batch: int) -> Iterator[Tensor]:
    """The distributions of all crops, those of `batch` images at a time: all at once are gigabytes with many crops and classes."""
    crops = torch.arange(store.num_crops, device=store.boxes.device)
    for part in torch.arange(len(store), device=store.boxes.device).split(batch):
        yield store.labels(part, crops.expand(len(part), -1))


def distil_from_store(
    student: str, split: ReplaySplit, data: Dataset, recipe: Recipe, *, seed: int = 0, folder: Path | None = None
) -> tuple[nn.Module, Fit]:
    """A student of stored labels: first weights as everywhere else, `fit` on the split, measured on the test images.

    Args:
        student: architecture.
        recipe: its epochs count how often each image is shown; a pass over the split shows it `num_draw` times, so there are that many
            times fewer passes, and milestones and warm-up move with them. Its crops and flips are left out: the stored ones are used.
        folder: for checkpoints.
    Raises:
        InputError: epochs that are no multiple of `num_draw`, and what `fit` refuses.
    """
    if recipe.epochs % split.num_draw:
        raise InputError(
            f"epochs must be a multiple of the {split.num_draw} crops that a pass shows of each image, got {recipe.epochs}"
        )
    net = fresh(student, data, seed)
    recipe = replace(
        recipe,
        epochs=recipe.epochs // split.num_draw,
        milestones=tuple(sorted({round(milestone / split.num_draw) for milestone in recipe.milestones})),
        warmup_epochs=recipe.warmup_epochs / split.num_draw,
        crop_padding=0,
        flip=False,
    )
    return net, fit(
        net, split, data.test, recipe, method=StoredLabels(), seed=seed, folder=folder, description="stored labels"
    )


def forward_cost(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-adds of one image's forward pass, counted by torch over all convolutions and products."""
    from torch.utils.flop_counter import FlopCounterMode

    counter, training = FlopCounterMode(display=False), model.training
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    model.train(training)
    return counter.get_total_flops() // 2
