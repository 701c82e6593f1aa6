"""Whole data sets as device tensors: reading, scaling to [-1, 1], splitting."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.data import DatasetSpec
from kdnb.data.formats import read_cifar_batch, read_idx
from kdnb.data.locate import locate
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.randomness import generator_for

if TYPE_CHECKING:
    from kdnb.data.folders import FolderSplit


@dataclass
class Dataset:
    """A loaded data set.

    Attributes:
        name, spec: as asked for, and what is fixed about it.
        image_size: height and width, in pixels.
        private: the teacher's labelled training images.
        public: images without labels, disjoint from private and test: all that a diffusion prior may see.
        judge: the public images with their labels, for one purpose: a judge network that never shared data with the teacher.
        train: private and public together with labels, for data-driven distillation.
        test: held out; never used to choose anything.
        hashes: of the content of each split, by its name.
    """

    name: str
    spec: DatasetSpec
    image_size: int
    private: "Split | FolderSplit"
    public: "Split | FolderSplit"
    judge: "Split | FolderSplit"
    train: "Split | FolderSplit"
    test: "Split | FolderSplit"
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size

    @property
    def crop_padding(self) -> int:
        """Padding of the random crop in pixels, scaled with the image size (at least 1); 0 where crops are cut from larger pictures."""
        return self.spec.crop_padding and max(1, round(self.spec.crop_padding * self.image_size / self.spec.image_size))

    @property
    def normalization(self) -> dict:
        """Arguments of `kdnb.models.build` that make a network normalise as this data set's recipes do."""
        return {
            "in_channels": self.channels,
            "num_classes": self.num_classes,
            "mean": self.spec.mean,
            "std": self.spec.std,
        }


# --- loading -------------------------------------------------------------------------------------------------------------------


def _digits(_: Path | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's 1797 scans, 8x8, values 0..16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return [(bunch.images[:, None].astype(np.float32) / 16, bunch.target.astype(np.int64))]


def _download(name: str) -> None:
    """torchvision's own download into the first writable data root."""
    import torchvision

    from kdnb.storage.paths import data_roots

    kinds = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
    root = data_roots()[0]
    root.mkdir(parents=True, exist_ok=True)
    getattr(torchvision.datasets, kinds[name])(str(root), download=True)


def _folder(name: str, download: bool) -> Path:
    """Where the files are, fetched first if they are missing and the user said so."""
    try:
        return locate(name)
    except InputError:
        if not download:
            raise
    try:
        _download(name)
    except Exception as error:
        raise InputError(f"{name} could not be downloaded: {error}") from error
    return locate(name)


def _fashion(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    parts = []
    for stem in ("train", "t10k"):
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            path = folder / f"{stem}-{kind}-ubyte"
            arrays.append(read_idx(path if path.is_file() else path.with_name(path.name + ".gz")))
        images, labels = arrays
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.dtype != np.uint8:
            raise InputError(
                f"fashion_mnist: {stem} holds images {images.shape} and labels {labels.shape}, which do not belong together"
            )
        parts.append((images[:, None].astype(np.float32) / 255, labels.astype(np.int64)))
    return parts


def _cifar(folder: Path, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    train = [f"data_batch_{index}" for index in range(1, 6)] if name == "cifar10" else ["train"]
    key = "labels" if name == "cifar10" else "fine_labels"
    parts = []
    for files in (train, ["test_batch" if name == "cifar10" else "test"]):
        batches = [read_cifar_batch(folder / file) for file in files]
        try:
            images = np.concatenate(
                [np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32) for batch in batches]
            )
            labels = np.concatenate([np.asarray(batch[key], dtype=np.int64) for batch in batches])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{name}: a batch lacks what it should hold ({error})") from error
        parts.append((images.astype(np.float32) / 255, labels))
    return parts


# (folder of the files; None where the data come with a package) -> one or two pairs: images (N, C, H, W) in [0, 1], labels (N,)
READERS: dict[str, Callable[..., list[tuple[np.ndarray, np.ndarray]]]] = {
    "digits": _digits,
    "fashion_mnist": _fashion,
    "cifar10": partial(_cifar, name="cifar10"),
    "cifar100": partial(_cifar, name="cifar100"),
}


def _resize(images: Tensor, size: int) -> Tensor:
    """To size x size: bilinear upwards (digits), area average downwards after padding to a multiple (28 -> 32 -> 16)."""
    H = images.shape[-1]
    if H == size:
        return images
    if H < size:
        if size - H <= 4:  # 28 -> 32: a black frame keeps every pixel as it is
            before = (size - H) // 2
            return F.pad(images, (before, size - H - before) * 2)
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    padded = -(-H // size) * size
    before = (padded - H) // 2
    return F.adaptive_avg_pool2d(F.pad(images, (before, padded - H - before) * 2), size)


def _check(name: str, spec: DatasetSpec, images: Tensor, labels: Tensor) -> None:
    if images.shape[1] != spec.channels:
        raise InputError(f"{name} should have {spec.channels} channel(s), its files have {images.shape[1]}")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < spec.num_classes):
        raise InputError(
            f"{name} should have labels 0..{spec.num_classes - 1}, its files have {int(labels.min())}..{int(labels.max())}"
        )


def load_dataset(
    name: str, spec: DatasetSpec, image_size: int, device: str, download: bool, split_seed: int
) -> Dataset:
    """Read, check, scale to [-1, 1], resize and split.

    digits is split here: a permutation drawn from `split_seed` gives test (500), private (600), public (the rest). The others keep
    their published test set; the published training set is permuted and its first part is private, the rest public.
    """
    arrays = READERS[name](None if spec.embedded else _folder(name, download))
    parts = []
    for values, targets in arrays:
        images, labels = torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(targets)
        _check(name, spec, images, labels)
        parts.append(Split(_resize(images, image_size) * 2 - 1, labels))

    order = torch.randperm(len(parts[0]), generator=generator_for(split_seed, "split", name))
    if spec.test is not None:
        test, order = parts[0].subset(order[: spec.test]), order[spec.test :]
    else:
        test = parts[1]
    train = parts[0].subset(order)
    assert train.labels is not None
    private = Split(train.images[: spec.private], train.labels[: spec.private])
    judge = Split(train.images[spec.private :], train.labels[spec.private :])
    hashes = {"private": private.hash, "public": Split(judge.images).hash, "test": test.hash}
    splits = {"private": private, "judge": judge, "train": train, "test": test}
    moved = {key: split.to(device) for key, split in splits.items()}
    return Dataset(name, spec, image_size, public=Split(moved["judge"].images), hashes=hashes, **moved)
