"""Images and labels in memory as a `Dataset`: what a user's function returned, arrays; and the splits and measures of own data."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdnb.data import DatasetSpec
from kdnb.data.folders import FolderSplit
from kdnb.data.own import LEAST, check_counts
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.randomness import generator_for

LARGEST = 224  # pixels, unless the user asks for more
GREY = ("1", "L", "LA")  # Pillow's names of pictures without colour
_TEST_SHARE = 0.2  # of each class, where no test split is given
_MEASURED = 5_000  # pictures that mean and std are taken from where the set stays on disk


# --- arrays and what a function returns ----------------------------------------------------------------------------------------


def read_made(made: Any, source: str) -> tuple[tuple, tuple | None, list[str]]:
    """(train, test, class names) out of what a user's function returned; each split as a pair of images and labels.

    Forms: (train_images, train_labels, test_images, test_labels); (images, labels), to be split by seed; or {"train": split, "test":
    split, "class_names": list}, of which only "train" is needed, a split being (images, labels) or anything that yields pairs of one
    image and its label, such as a torch Dataset.
    """
    names: list[str] = []
    if isinstance(made, Mapping):
        unknown = sorted(set(made) - {"train", "test", "class_names"})
        if unknown or "train" not in made:
            raise InputError(
                f"{source} may return the entries train, test and class_names, it returned {sorted(map(str, made))}"
            )
        names = [str(name) for name in made.get("class_names", [])]
        parts = [made["train"], made.get("test")]
    elif isinstance(made, tuple) and len(made) == 4:
        parts = [made[:2], made[2:]]
    else:
        parts = [made, None]
    return _pair(parts[0], source), None if parts[1] is None else _pair(parts[1], source), names


def _pair(part: Any, source: str) -> tuple[Any, Any]:
    if isinstance(part, tuple | list) and len(part) == 2 and _is_array(part[0]) and _is_array(part[1]):
        return tuple(part)
    try:
        items = [(_array(image, source), int(label)) for image, label in _items(part)]
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{source} must give images and labels, or yield pairs of one image and its label: {error}"
        ) from error
    if not items:
        raise InputError(f"{source} yields no images")
    shapes = {tuple(image.shape) for image, _ in items}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise InputError(
            f"{source} yields images of different shapes, {first} and {second}; bring them to one size first"
        )
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def _items(part: Any) -> Iterable:
    """A map-style data set is indexed up to its length: iterating over one need not end."""
    return (
        (part[index] for index in range(len(part)))
        if hasattr(part, "__len__") and hasattr(part, "__getitem__")
        else part
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _array(image: Any, source: str) -> Tensor:
    """One image as (C, H, W)."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("L" if image.mode in GREY else "RGB")))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    image = torch.as_tensor(image)
    return image[None] if image.dim() == 2 else image


def from_arrays(
    name: str,
    train: tuple,
    test: tuple | None,
    image_size: int | None = None,
    device: str = "cpu",
    split_seed: int = 0,
    class_names: Sequence[str] = (),
    flip: bool = False,
    standardized: bool = False,
) -> Dataset:
    """A data set out of images and labels in memory.

    Args:
        train, test: (images, labels): images (N, C, H, W) or (N, H, W), bytes or floats in [0, 1]; labels (N,) whole numbers 0 to K - 1.
            test None: a fifth of each class is set aside.
        image_size: pixels to resize to; None: as they are.
        standardized: floats of any range are taken as standardised by the caller, and networks get them as they are.
    Raises:
        InputError: other shapes, kinds or ranges; one class, a class without images or with too few.
    """
    parts = [_checked(part, name, standardized) for part in (train, test) if part is not None]
    shapes = {tuple(images.shape[1:]) for images, _ in parts}
    if len(shapes) > 1:
        raise InputError(
            f"{name}: training images are {shapes.pop()} and test images {shapes.pop()}; they must be alike"
        )
    H, W = parts[0][0].shape[2:]
    size = image_size or (H if H == W and 8 <= H <= 256 else min(max(min(H, W), 8), LARGEST))
    raw = standardized and any(float(images.amin()) < 0 or float(images.amax()) > 1 for images, _ in parts)
    splits = [
        Split(_square(images, size) if raw else _square(images, size) * 2 - 1, labels) for images, labels in parts
    ]
    count = int(max(labels.max() for _, labels in parts)) + 1
    if class_names and len(class_names) != count:
        raise InputError(f"{name} has labels 0 to {count - 1} and {len(class_names)} class names")
    classes = list(class_names) or [str(label) for label in range(count)]
    for split, least in zip(splits, (LEAST if len(splits) == 2 else LEAST + 1, 0), strict=False):
        counts = torch.bincount(split.labels, minlength=count).tolist()
        if least:
            check_counts(
                counts,
                classes,
                name,
                least,
                "1 for the teacher and 1 for the rest, and 1 for testing if none are set aside",
            )
    return assemble(
        name,
        splits[0],
        splits[1] if len(splits) == 2 else None,
        classes,
        flip,
        split_seed,
        device,
        {},
        standardized=raw,
    )


def _checked(part: tuple, name: str, standardized: bool) -> tuple[Tensor, Tensor]:
    images, labels = torch.as_tensor(part[0]), torch.as_tensor(part[1])
    images = images[:, None] if images.dim() == 3 else images
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"{name}: images must be (N, C, H, W) with 1 or 3 channels, or (N, H, W), got {tuple(images.shape)}"
        )
    if labels.dim() != 1 or len(labels) != len(images) or labels.is_floating_point() or not len(labels):
        raise InputError(
            f"{name}: labels must be one whole number an image, got {labels.dtype} {tuple(labels.shape)} for {len(images)} images"
        )
    if int(labels.min()) < 0:
        raise InputError(f"{name}: labels must be whole numbers from 0, got {int(labels.min())}")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    images = images.float()
    low, high = float(images.amin()), float(images.amax())
    if not math.isfinite(low + high):
        raise InputError(f"{name}: images hold values that are not finite")
    if not standardized and (low < 0 or high > 1):
        raise InputError(f"{name}: images must be bytes, or floats from 0 to 1, got values from {low:g} to {high:g}")
    return images, labels.long()


def _square(images: Tensor, size: int) -> Tensor:
    if images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


# --- splits and measures -------------------------------------------------------------------------------------------------------


def assemble(name, train, test, classes, flip, split_seed, device, notes, standardized=False) -> Dataset:
    """The splits that every data set has, drawn from `split_seed` within each class, and its measured facts."""
    if test is None:
        held, kept = _share(train.labels, _TEST_SHARE, generator_for(split_seed, "test", name))
        train, test = train.subset(kept), train.subset(held)
    first, rest = _share(train.labels, 0.5, generator_for(split_seed, "split", name))
    train = train.subset(torch.cat([first, rest]))
    mean, std = ((0.5,), (0.5,)) if standardized else _measure(train, name)
    size, channels = _shape(train)
    spec = DatasetSpec(
        num_classes=len(classes),
        channels=channels,
        image_size=size,
        mean=mean * channels if standardized else mean,
        std=std * channels if standardized else std,
        flip=flip,
        crop_padding=size // 8,
        private=len(first),
        class_names=tuple(classes),
        streamed=isinstance(train, FolderSplit),
    )
    order = torch.arange(len(train))
    private, judge = train.subset(order[: len(first)]), train.subset(order[len(first) :])
    public = dataclasses.replace(judge, labels=None)
    hashes = {"private": private.hash, "public": public.hash, "test": test.hash, "measured": _text(spec)} | notes
    parts = {"private": private, "judge": judge, "public": public, "train": train, "test": test}
    return Dataset(name, spec, size, hashes=hashes, **{key: _moved(split, device) for key, split in parts.items()})


def _share(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of about this share of each class, at least one of it and never all, and of the rest; both in random order."""
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        taken[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    order = torch.randperm(len(labels), generator=generator)
    return order[taken[order]], order[~taken[order]]


def _shape(split: Split | FolderSplit) -> tuple[int, int]:
    if isinstance(split, FolderSplit):
        return split.image_size, split.channels
    return split.images.shape[2], split.images.shape[1]


def _measure(train: Split | FolderSplit, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the [0, 1] scale, to four places; of pictures on disk from evenly spaced ones."""
    if isinstance(train, FolderSplit):
        train = train.subset(torch.arange(0, len(train), math.ceil(len(train) / _MEASURED)))
    count = 0
    total: Any = 0.0
    square: Any = 0.0
    for images, _ in train.batches(256):
        values = (images.double() + 1) / 2
        count += values.numel() // values.shape[1]
        total, square = total + values.sum((0, 2, 3)), square + values.square().sum((0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    if float(std.min()) < 1e-3:
        raise InputError(f"{name}: all training pictures have nearly the same value in channel {int(std.argmin())}")
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


def _text(spec: DatasetSpec) -> str:
    """The measured facts as one line, for records."""
    return (
        f"{spec.num_classes} classes, {spec.channels}x{spec.image_size}x{spec.image_size}, mean {', '.join(map(str, spec.mean))}, "
        f"std {', '.join(map(str, spec.std))}, flip {'yes' if spec.flip else 'no'}"
    )


def _moved(split: Split | FolderSplit, device: str) -> Split | FolderSplit:
    if isinstance(split, FolderSplit):
        return split
    return split.to(device)
