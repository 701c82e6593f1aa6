"""What a diffusion prior has seen: the teacher's own domain, a lopsided part of it, a little of it, or nothing of it.

A pretrained prior is never the teacher's training set. Four domains stand for what it can be:

    same      all public images of the data set
    skewed    public images with some classes nearly absent
    mixed     one part public images, several parts of another data set
    foreign   another data set only

No prior sees a private or a test image, of its own data set or of the other one: both give their public split only. The labels of
the public images choose images for `skewed`; no prior is trained on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdnb.choices import DOMAINS
from kdnb.data import load
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError, check_name
from kdnb.randomness import generator_for

FOREIGN = {"digits": "fashion_mnist", "fashion_mnist": "digits"}  # grey, and alike in size
PROCEDURAL = "procedural textures and shapes"
_RARE = (0, 1, 2, 3, 4)  # images of the rare classes, in turn


@dataclass(frozen=True)
class PriorDomain:
    """The training images of a prior.

    Attributes:
        name: one of `DOMAINS`.
        images: (N, C, H, W) in [-1, 1]; images of a small set may stand there several times.
        own: how many of them are public images of the teacher's data set.
        foreign: where the others come from: a data set, `PROCEDURAL`, or "" where there are none.
        counts: of the teacher's public images by class, (K,).
    """

    name: str
    images: Tensor
    own: int
    foreign: str
    counts: tuple[int, ...]

    @property
    def identity(self) -> dict:
        """What tells this set of images from another, for the name of an artifact."""
        return {"name": self.name, "own": self.own, "foreign": self.foreign, "images": Split(self.images).hash}

    def __str__(self) -> str:
        parts = [f"{self.own} public images"] if self.own else []
        others = len(self.images) - self.own
        return f"{self.name}: " + " and ".join(parts + ([f"{others} of {self.foreign}"] if others else []))


def prior_domain(
    data: Dataset,
    name: str = "same",
    *,
    counts: Sequence[int | None] | None = None,
    share: float = 0.1,
    max_images: int = 10_000,
    seed: int = 0,
) -> PriorDomain:
    """The images that a prior of this domain is trained on.

    Args:
        data: the teacher's data set; its `public` images and, for `skewed`, their labels (`data.judge`) are read.
        name: one of `DOMAINS`.
        counts: for `skewed`, images kept of each class, None for all; default: all of the first half of the classes and
            0, 1, 2, 3, 4, 0, 1, ... of the others.
        share: for `mixed`, share of own images, in (0, 1). A set too small for its share stands there several times.
        max_images: N at most, for `mixed` and `foreign`.
        seed: of the choice of images and of procedural ones.
    Raises:
        InputError: an unknown domain, counts for another number of classes or of more images than there are, a share outside (0, 1),
            or a data set that stays on disk.
    """
    check_name("prior domain", name, DOMAINS)
    if not isinstance(data.public, Split):
        raise InputError(f"prior domains need a data set in memory; {data.name} stays on disk")
    assert data.judge.labels is not None
    own, labels = data.public.images.cpu(), data.judge.labels.cpu()
    order = torch.randperm(len(own), generator=generator_for(seed, "prior domain", data.name))
    foreign, source = torch.empty(0, *own.shape[1:]), ""
    if name == "same":
        kept = torch.arange(len(own))
    elif name == "skewed":
        kept = _skewed(labels, order, _rare_counts(data.num_classes) if counts is None else counts, data.num_classes)
    elif name == "foreign":
        kept = order[:0]
        foreign, source = foreign_images(data, max_images, seed)
    else:
        if not 0 < share < 1:
            raise InputError(f"the share of own images in a mixed prior lies in (0, 1), got {share}")
        size = min(max_images, round(len(own) / share))
        kept = order[: max(1, round(share * size))]
        foreign, source = foreign_images(data, max_images, seed)
        wanted = size - len(kept)
        foreign = foreign.repeat(-(-wanted // len(foreign)), 1, 1, 1)[:wanted]
    found = torch.bincount(labels[kept], minlength=data.num_classes)
    images = torch.cat([own[kept], foreign]).to(data.public.device)
    return PriorDomain(name, images, len(kept), source, tuple(found.tolist()))


def foreign_images(data: Dataset, count: int, seed: int = 0) -> tuple[Tensor, str]:
    """At most `count` public images of another data set in the size and channels of `data`, and its name.

    Where `FOREIGN` names none, or its files are not there, `count` images of `procedural_images` and `PROCEDURAL`.
    """
    name = FOREIGN.get(data.name)
    if name is not None:
        try:
            images = load(name, data.image_size).public.images
        except InputError:  # no files: fall back and say so in the name
            pass
        else:
            order = torch.randperm(len(images), generator=generator_for(seed, "foreign domain", name))
            return images[order[:count]], name
    return procedural_images(count, data.channels, data.image_size, seed), PROCEDURAL


def procedural_images(count: int, channels: int, image_size: int, seed: int = 0) -> Tensor:
    """Textures and shapes that need no download: (count, C, H, W) in [-1, 1].

    Six kinds in turn, each with its own position, size, angle and brightness: waves, checks, discs, rings, rectangles and wedges, on
    a black ground. Channels differ by a gain, so colour images are tinted.
    """
    generator = generator_for(seed, "procedural images", count, channels, image_size)
    axis = torch.linspace(-1, 1, image_size)
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    draws = torch.rand(6, count, 1, 1, generator=generator)
    angle, radius, frequency = torch.pi * draws[0], 0.25 + 0.45 * draws[1], 4 + 10 * draws[2]
    u = torch.cos(angle) * (x - draws[3] + 0.5) + torch.sin(angle) * (y - draws[4] + 0.5)  # turned and moved axes
    v = torch.cos(angle) * (y - draws[4] + 0.5) - torch.sin(angle) * (x - draws[3] + 0.5)
    distance = (u.square() + v.square()).sqrt()
    kinds = torch.stack(
        [
            0.5 + 0.5 * torch.sin(frequency * u),
            (torch.sin(frequency * u) * torch.sin(frequency * v) > 0).float(),
            (distance < radius).float(),
            ((distance < radius) & (distance > 0.6 * radius)).float(),
            ((u.abs() < radius) & (v.abs() < radius * (0.3 + 0.7 * draws[5]))).float(),
            ((v > 0) & (v < radius) & (u.abs() < 0.8 * v)).float(),
        ]
    )  # (6, count, H, W)
    index = torch.arange(count)
    chosen = kinds[index % len(kinds), index] * (0.5 + 0.5 * draws[5])
    gain = 0.4 + 0.6 * torch.rand(count, channels, 1, 1, generator=generator) if channels > 1 else 1.0
    return (chosen[:, None] * gain).expand(count, channels, image_size, image_size) * 2 - 1


def _rare_counts(num_classes: int) -> list[int | None]:
    half = (num_classes + 1) // 2
    return [None] * half + [_RARE[index % len(_RARE)] for index in range(num_classes - half)]


def _skewed(labels: Tensor, order: Tensor, counts: Sequence[int | None], num_classes: int) -> Tensor:
    """Indices of the first `counts[k]` images of each class k in the given order."""
    if len(counts) != num_classes:
        raise InputError(f"a skewed prior needs one count for each of {num_classes} classes, got {len(counts)}")
    kept = []
    for label, count in enumerate(counts):
        members = order[labels[order] == label]
        if count is not None and not 0 <= count <= len(members):
            raise InputError(f"class {label} has {len(members)} public images, a skewed prior asks for {count}")
        kept.append(members[:count])
    return torch.cat(kept)
