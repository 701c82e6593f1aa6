"""Data sets too large to hold as tensors: pictures are decoded, cut to size and brought to the device batch by batch.

A pool of threads reads ahead. Decoding and resizing leave Python's lock, so threads serve as well as processes here, and the notebook's
kernel is never forked.
"""

import hashlib
import math
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdnb.data.crops import random_boxes
from kdnb.data.splits import Split
from kdnb.errors import InputError, check_name
from kdnb.randomness import generator_for
from kdnb.rehearsal import batch_for, cut

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MAX_BYTES = 64 * 2**20
_MAX_PIXELS = 100_000_000
_AHEAD = 3  # batches being read while one is in use
_MARGIN = 256 / 224  # what is resized to, over what is kept

FRAMINGS = {
    "resize": "the whole picture, resized to a square",
    "random_resized_crop": "a box of 8 to 100 % of the area, aspect ratio 3/4 to 4/3, resized",
    "random_crop": "resized to a square 256/224 larger, then a random crop",
    "centre_of_square": "resized to a square 256/224 larger, then the centre",
    "centre": "shorter side resized to 256/224 of the size, then the centre",
}


# --- one picture ---------------------------------------------------------------------------------------------------------------


def read_picture(path: Path, channels: int = 3) -> Tensor:
    """A picture file as (channels, H, W) uint8; grey, palette and CMYK files come out as RGB, all as grey with 1 channel, transparency
    is dropped.

    Raises:
        InputError: missing, larger than 64 MB or 100 million pixels, damaged, or of another kind.
    """
    try:
        size = os.stat(path).st_size
        if size > _MAX_BYTES:
            raise InputError(f"picture {path.name} has {size} bytes; at most {_MAX_BYTES} are read")
        with Image.open(path, formats=_FORMATS) as picture:  # reads the header only
            if math.prod(picture.size) > _MAX_PIXELS:
                raise InputError(
                    f"picture {path.name} has {picture.size[0]} x {picture.size[1]} pixels; at most {_MAX_PIXELS} are read"
                )
            pixels = torch.from_numpy(np.array(picture.convert("RGB" if channels == 3 else "L")))
            return pixels.permute(2, 0, 1) if channels == 3 else pixels[None]
    except InputError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:  # all of these come from damaged files
        raise InputError(f"picture {path.parent.name}/{path.name} can't be read: {error}") from error


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def frame(picture: Tensor, framing: str, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Cut and resize one picture (bilinear, antialiased) to size x size.

    Args:
        picture: (C, H, W) uint8.
        framing: one of `FRAMINGS`.
        size: pixels.
        generator: on the CPU, for the two random framings.
    Returns:
        (C, size, size) uint8.

    Source: the customary ImageNet recipe (random_resized_crop, centre); SDD's CUB-200 recipe (random_crop, centre_of_square).
    """
    H, W = picture.shape[1:]
    if framing == "resize":
        return _resize(picture, size, size)
    if framing == "random_resized_crop":
        box = random_boxes(1, H, W, generator=generator)[0].double() * torch.tensor([H, W, H, W])
        top, left, height, width = (int(value) for value in box.round())
        return _resize(picture[:, top : top + height, left : left + width], size, size)
    larger = round(size * _MARGIN)
    if framing == "centre":
        picture = _resize(picture, larger * H // min(H, W), larger * W // min(H, W))
    else:
        picture = _resize(picture, larger, larger)
    top, left = (round((extent - size) / 2) for extent in picture.shape[1:])
    if framing == "random_crop":
        top, left = torch.randint(0, larger - size + 1, (2,), generator=generator).tolist()
    return picture[:, top : top + size, left : left + size]


# --- a split -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Pictures in files with their labels; offers training and evaluation what `kdnb.data.splits.Split` offers.

    Attributes:
        root: folder that the names start from.
        names: N file names relative to root.
        labels: (N,) int64 on the CPU, or None where the split is unlabelled.
        image_size: H = W of the batches.
        training, evaluation: framings of `epoch` and of `batches`.
        device: where batches arrive.
        workers: reading threads; None: one a core, at most 16.
        channels: 3, or 1 for grey.

    Mirroring and padding are the recipe's and happen on the device, as for every other data set.
    """

    root: Path
    names: list[str]
    labels: Tensor | None
    image_size: int
    training: str = "resize"
    evaluation: str = "resize"
    device: torch.device = torch.device("cpu")
    workers: int | None = None
    channels: int = 3

    def __post_init__(self):
        for framing in (self.training, self.evaluation):
            check_name("framing", framing, FRAMINGS)
        if self.labels is not None and len(self.labels) != len(self.names):
            raise InputError(f"{len(self.names)} pictures and {len(self.labels)} labels don't belong together")

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Tensor) -> "FolderSplit":
        indices = indices.cpu()
        return replace(
            self,
            names=[self.names[i] for i in indices.tolist()],
            labels=None if self.labels is None else self.labels[indices],
        )

    def without_class(self, label: int) -> "FolderSplit":
        """All but one class: the omitted-class experiment."""
        assert self.labels is not None
        return self.subset((self.labels != label).nonzero().flatten())

    def take(self, count: int) -> Split:
        """At most `count` >= 1 pictures as tensors, evenly spread over the split, which may lie on disk class by class."""
        count = min(count, len(self))
        part = self.subset(torch.arange(count) * len(self) // count)
        images, labels = zip(*part.batches(500), strict=True)
        return Split(torch.cat(images), None if self.labels is None else torch.cat(labels))

    def unlabelled(self) -> "FolderSplit":
        return replace(self, labels=None)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 over names, labels, size and framings; not over the pictures: that would read them all."""
        header = [str(self.image_size), self.training, self.evaluation] + (["grey"] if self.channels == 1 else [])
        digest = hashlib.sha256("\n".join(header + self.names).encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def permutation(self, seed: int, epoch: int) -> Tensor:
        """The order of one epoch, a function of seed and epoch alone; on the CPU."""
        return torch.randperm(len(self), generator=generator_for(seed, "order", epoch))

    def epoch(self, seed: int, epoch: int, batch_size: int, steps: range) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of some steps of one epoch. Crops are functions of (seed, epoch, index): a resumed epoch sees the same ones."""
        order = self.permutation(seed, epoch)
        return self._stream((order[step * batch_size : (step + 1) * batch_size] for step in steps), (seed, epoch))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """In order, with the framing of evaluation."""
        batches = torch.arange(len(self)).split(batch_for(batch_size))
        return iter(cut(self._stream(batches, None), "batch", len(batches), most=1))

    def _stream(self, batches: Iterable[Tensor], key: tuple[int, int] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        pool = ThreadPoolExecutor(self.workers or min(16, os.cpu_count() or 1), thread_name_prefix="kdnb-pictures")
        pending: deque[tuple[Tensor, list[Future]]] = deque()
        try:
            for indices in batches:
                pending.append((indices, [pool.submit(self._picture, index, key) for index in indices.tolist()]))
                if len(pending) > _AHEAD:
                    yield self._collect(*pending.popleft())
            while pending:
                yield self._collect(*pending.popleft())
        finally:  # also where the consumer stops early
            pool.shutdown(cancel_futures=True)

    def _picture(self, index: int, key: tuple[int, int] | None) -> Tensor:
        picture = read_picture(self.root / self.names[index], self.channels)
        if key is None:
            return frame(picture, self.evaluation, self.image_size)
        return frame(picture, self.training, self.image_size, generator_for(key[0], "crop", key[1], index))

    def _collect(self, indices: Tensor, pictures: list[Future]) -> tuple[Tensor, Tensor | None]:
        """Bytes travel to the device, a quarter of the floats they become there."""
        parts = [torch.stack([picture.result() for picture in pictures])]
        if self.labels is not None:
            parts.append(self.labels[indices])
        if torch.device(self.device).type == "cuda":
            parts = [part.pin_memory() for part in parts]
        images, *labels = (part.to(self.device, non_blocking=True) for part in parts)
        return images.float() / 127.5 - 1, labels[0] if labels else None
