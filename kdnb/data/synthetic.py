"""Noise in the files of a published data set: its names, formats, sizes and classes, for a rehearsal where the real files are missing.

What is learned from it means nothing. It is never found by an ordinary run: only the data root that it is written to holds it.
"""

import io
import itertools
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdnb.data import DATASETS
from kdnb.data.locate import FILES, PICTURE_FOLDERS

# pictures of each class in training and in test, and height and width; all pictures of a class and split are one file, linked
_PICTURES = {"tiny_imagenet": (500, 50, (64, 64)), "imagenet": (8, 2, (375, 500)), "cub200": (30, 29, (375, 500))}


def write_synthetic(name: str, root: Path, seed: int = 0) -> Path:
    """Write a data set under a data root, where `kdnb.data.locate` finds it; what is there already is kept.

    Args:
        name: of `kdnb.data.DATASETS`, other than an embedded one. Sizes are the published ones, but for imagenet (8 pictures a class).
    Returns:
        The folder of the data set.
    """
    folder = root / (FILES | PICTURE_FOLDERS)[name][0][0]
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    writers = {"fashion_mnist": _idx, "cifar10": _cifar, "cifar100": _cifar, "cub200": _cub200}
    writers.get(name, _class_folders)(name, folder, rng)
    (folder / "complete").write_text("noise, written for a rehearsal\n")
    return folder


def _idx(name: str, folder: Path, rng: np.random.Generator) -> None:
    for stem, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % DATASETS[name].num_classes).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{stem}-{kind}-ubyte").write_bytes(head + array.tobytes())


def _cifar(name: str, folder: Path, rng: np.random.Generator) -> None:
    num_classes = DATASETS[name].num_classes
    key = b"labels" if name == "cifar10" else b"fine_labels"
    *train, test = FILES[name][1]
    for file, count in [(part, 50_000 // len(train)) for part in train] + [(test, 10_000)]:
        batch = {
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            key: (np.arange(count) % num_classes).tolist(),
        }
        (folder / file).write_bytes(pickle.dumps(batch, protocol=4))


def _pictures(
    name: str, rng: np.random.Generator, classes: list[str], per_class: int
) -> Iterator[tuple[str, bytes, list]]:
    """(class, the bytes of its JPEG, numbers of its pictures)."""
    from PIL import Image

    numbers = itertools.count()
    for label in classes:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize(_PICTURES[name][2][::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield label, buffer.getvalue(), list(itertools.islice(numbers, per_class))


def _linked(data: bytes, paths: list[Path]) -> None:
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.unlink(missing_ok=True)  # of a rehearsal that was stopped while it wrote
    paths[0].write_bytes(data)
    for path in paths[1:]:
        os.link(paths[0], path)


def _class_folders(name: str, folder: Path, rng: np.random.Generator) -> None:
    classes = [f"n{number:08d}" for number in range(DATASETS[name].num_classes)]
    inner = "images" if name == "tiny_imagenet" else ""
    for label, data, numbers in _pictures(name, rng, classes, _PICTURES[name][0]):
        _linked(data, [folder / "train" / label / inner / f"{label}_{number}.JPEG" for number in numbers])
    rows = []
    for label, data, numbers in _pictures(name, rng, classes, _PICTURES[name][1]):
        if name == "tiny_imagenet":
            _linked(data, [folder / "val" / "images" / f"val_{number}.JPEG" for number in numbers])
            rows += [f"val_{number}.JPEG\t{label}\t0\t0\t62\t62\n" for number in numbers]
        else:
            _linked(data, [folder / "val" / label / f"{label}_{number}.JPEG" for number in numbers])
    if rows:
        (folder / "val" / "val_annotations.txt").write_text("".join(rows))


def _cub200(name: str, folder: Path, rng: np.random.Generator) -> None:
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for training, per_class in ((1, _PICTURES[name][0]), (0, _PICTURES[name][1])):
        classes = [f"{number:03d}.Bird" for number in range(1, DATASETS[name].num_classes + 1)]
        for label, data, numbers in _pictures(name, rng, classes, per_class):
            names = [f"{label}/{'train' if training else 'test'}_{number}.jpg" for number in numbers]
            _linked(data, [folder / "images" / file for file in names])
            for file in names:
                key = len(lists["images"]) + 1
                lists["images"].append(f"{key} {file}\n")
                lists["image_class_labels"].append(f"{key} {int(label[:3])}\n")
                lists["train_test_split"].append(f"{key} {training}\n")
    for stem, rows in lists.items():
        (folder / f"{stem}.txt").write_text("".join(rows))
