"""How the data sets of pictures lie on disk, as published (and as torchvision reads them): class folders, or lists beside one folder."""

import os
from pathlib import Path

import torch
from torch import Tensor

from kdnb.data import DatasetSpec
from kdnb.data.folders import FolderSplit
from kdnb.data.locate import find_pictures
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.randomness import generator_for

_SUFFIXES = (".jpeg", ".jpg", ".png")
_MAX_LIST = 64 * 2**20  # bytes of a text file that lists pictures


def class_folders(root: Path) -> tuple[list[str], Tensor, list[str]]:
    """Every picture under root/CLASS/ or root/CLASS/images/, classes and pictures in alphabetical order.

    Returns:
        (names relative to root, (N,) labels, class names).
    Raises:
        InputError: root is no folder that can be read.
    """
    names, labels = [], []
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        for label, folder in enumerate(classes):
            inner = f"{folder}/images" if (root / folder / "images").is_dir() else folder
            found = sorted(entry.name for entry in os.scandir(root / inner) if entry.name.lower().endswith(_SUFFIXES))
            names += [f"{inner}/{name}" for name in found]
            labels += [label] * len(found)
    except OSError as error:
        raise InputError(f"the folder of pictures {root.name} can't be read: {error.strerror}") from error
    return names, torch.tensor(labels, dtype=torch.int64), classes


def _table(path: Path, columns: int) -> list[list[str]]:
    """Rows of a text file, split at blanks; every row has at least `columns` of them."""
    try:
        if path.stat().st_size > _MAX_LIST:
            raise InputError(f"{path.name} is larger than {_MAX_LIST} bytes; it is not the list it should be")
        rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} can't be read: {error}") from error
    if not rows or min(map(len, rows)) < columns:
        raise InputError(f"{path.name} should have {columns} columns in every row; it is damaged")
    return rows


def _imagenet(root: Path) -> list[tuple[list[str], Tensor]]:
    parts = []
    for split in ("train", "val"):
        names, labels, classes = class_folders(root / split)
        parts.append(([f"{split}/{name}" for name in names], labels, classes))
    if parts[0][2] != parts[1][2]:
        raise InputError(
            f"train has {len(parts[0][2])} class folders and val {len(parts[1][2])}, or their names differ"
        )
    return [part[:2] for part in parts]


def _tiny_imagenet(root: Path) -> list[tuple[list[str], Tensor]]:
    """As published: the validation pictures lie in one folder with a list; a copy sorted into class folders is read too."""
    if not (root / "val" / "val_annotations.txt").is_file():
        return _imagenet(root)
    names, labels, classes = class_folders(root / "train")
    index = {name: label for label, name in enumerate(classes)}
    rows = _table(root / "val" / "val_annotations.txt", 2)
    unknown = [row[1] for row in rows if row[1] not in index]
    if unknown:
        raise InputError(f"val_annotations.txt names the class {unknown[0]!r}, which has no folder in train")
    test = [f"val/images/{_plain(row[0])}" for row in rows]
    return [([f"train/{name}" for name in names], labels), (test, torch.tensor([index[row[1]] for row in rows]))]


def _cub200(root: Path) -> list[tuple[list[str], Tensor]]:
    """Three lists of "id value": names, classes from 1, and whether a picture is for training."""
    lists = [
        dict(row[:2] for row in _table(root / f"{stem}.txt", 2))
        for stem in ("images", "image_class_labels", "train_test_split")
    ]
    names, classes, training = lists
    if not names.keys() == classes.keys() == training.keys():
        raise InputError(
            f"cub200: its lists name {', '.join(str(len(part)) for part in lists)} pictures, which should be the same ones"
        )
    if not all(value.isdecimal() and len(value) < 10 for value in classes.values()) or not set(training.values()) <= {
        "0",
        "1",
    }:
        raise InputError(
            "cub200: image_class_labels.txt should hold class numbers, and train_test_split.txt zeros and ones"
        )
    parts = []
    for flag in ("1", "0"):
        chosen = [key for key in names if training[key] == flag]
        parts.append(
            (
                [f"images/{_plain(names[key])}" for key in chosen],
                torch.tensor([int(classes[key]) - 1 for key in chosen]),
            )
        )
    return parts


def _plain(name: str) -> str:
    """A file name from a list, refused if it leads out of the data set."""
    if name.startswith("/") or ".." in Path(name).parts:
        raise InputError(f"a list of pictures names {name!r}, which lies outside of the data set")
    return name


# name: (reader, framing in training, framing in evaluation)
LAYOUTS = {
    "tiny_imagenet": (_tiny_imagenet, "resize", "resize"),
    "imagenet": (_imagenet, "random_resized_crop", "centre"),
    "cub200": (_cub200, "random_crop", "centre_of_square"),
}


def load_folders(name: str, spec: DatasetSpec, image_size: int, device: str, split_seed: int) -> Dataset:
    """Index a data set on disk; no picture is opened before the first batch.

    The published training set is permuted by `split_seed`; `spec.private` of it (at most half) are private, the rest public.

    Raises:
        InputError: not found, its lists are damaged, no pictures, or not the number of classes it should have.
    """
    reader, training, evaluation = LAYOUTS[name]
    root = find_pictures(name)
    parts = []
    for kind, (names, labels) in zip(("training", "test"), reader(root), strict=True):
        if not names:
            raise InputError(f"{name}: its {kind} set holds no picture")
        if int(labels.min()) < 0 or int(labels.max()) >= spec.num_classes or len(labels.unique()) < spec.num_classes:
            raise InputError(
                f"{name} should have pictures of {spec.num_classes} classes, its {kind} set has {len(labels.unique())} "
                f"(labels {int(labels.min())}..{int(labels.max())})"
            )
        parts.append(FolderSplit(root, names, labels, image_size, training, evaluation, torch.device(device)))
    whole, test = parts
    train = whole.subset(torch.randperm(len(whole), generator=generator_for(split_seed, "split", name)))
    count = min(spec.private, len(train) // 2)
    order = torch.arange(len(train))
    private, judge = train.subset(order[:count]), train.subset(order[count:])
    public = judge.unlabelled()
    hashes = {"private": private.hash, "public": public.hash, "test": test.hash}
    return Dataset(
        name, spec, image_size, private=private, public=public, judge=judge, train=train, test=test, hashes=hashes
    )
