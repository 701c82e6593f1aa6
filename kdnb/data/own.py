"""Names of the user's own data: `folder:PATH` and `FILE.py:function`. Looked at without opening a picture or running code.

A folder is laid out as torchvision's ImageFolder reads it, PATH/CLASS/PICTURE, or PATH/train/CLASS/PICTURE with PATH/test or PATH/val
beside it; without those, a share of every class becomes the test split. After the name may stand settings:

    folder:my pictures size:64 channels:3 flip:yes skip:broken stream:yes

size: height and width in pixels; channels: 1 or 3, what every picture is turned into; flip: a mirrored picture keeps its class;
skip:broken leaves out pictures that can't be read; stream:yes leaves the pictures on disk also where they fit into memory.
"""

import os
from pathlib import Path
from typing import NamedTuple

from kdnb import usercode
from kdnb.errors import InputError

FOLDER = "folder:"
SETTINGS = ("size", "channels", "flip", "skip", "stream")
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
TESTS = ("test", "val", "valid", "validation")
LEAST = 2  # training pictures a class: one private, one public

_VALUES = {"channels": ("1", "3"), "flip": ("yes", "no"), "skip": ("broken",), "stream": ("yes", "no")}


class OwnName(NamedTuple):
    """What a name stands for: a folder or a function, one of them None.

    Attributes:
        folder: of pictures.
        function: of the user, that returns images.
        settings: what is written after the name, as text.
    """

    folder: Path | None
    function: usercode.UserFunction | None
    settings: dict[str, str]

    @property
    def text(self) -> str:
        """The name in full, with an absolute path."""
        base = self.function.text if self.function else f"{FOLDER}{self.folder}"
        return " ".join([base, *(f"{key}:{value}" for key, value in self.settings.items())])

    @property
    def title(self) -> str:
        """What records and caches call it, wherever it lies; hashes tell data of one title apart."""
        if self.function:
            return f"{self.function.path.name}:{self.function.name}"
        return f"{FOLDER}{self.root.name}"

    @property
    def root(self) -> Path:
        """The folder of a name that is no function's."""
        assert self.folder is not None
        return self.folder


class Listing(NamedTuple):
    """Pictures of one split.

    Attributes:
        names: relative to the folder.
        labels: class number of each.
        classes: their names, by number.
    """

    names: list[str]
    labels: list[int]
    classes: list[str]


def parse_own(name: str) -> OwnName | None:
    """The parts of a name of own data; None for anything else."""
    name = str(name)
    if not name.startswith(FOLDER) and ".py:" not in name:
        return None
    base, settings = usercode.split_settings(name, SETTINGS)
    for key, value in settings.items():
        if key == "size" and not (value.isdecimal() and len(value) < 4 and 8 <= int(value) <= 256):
            raise InputError(f"size must be a number of pixels from 8 to 256, got {value!r}")
        if key in _VALUES and value not in _VALUES[key]:
            raise InputError(f"{key} must be {' or '.join(_VALUES[key])}, got {value!r}")
    if base.startswith(FOLDER):
        path = base.removeprefix(FOLDER).strip()
        if not path:
            raise InputError("a folder of pictures is written folder:PATH, got folder: alone")
        return OwnName(Path(path).expanduser().absolute(), None, settings)
    function = usercode.parse(base)
    if function is None:
        raise InputError(f"data of your own are written folder:PATH or FILE.py:function, got {name[:80]!r}")
    return OwnName(None, function, settings)


def check_own(own: OwnName) -> None:
    """Refuse a folder whose layout can't serve, or a function that isn't there.

    Raises:
        InputError: as `list_pictures` and `kdnb.usercode.check`.
    """
    if own.function:
        usercode.check(own.function, ())
    else:
        list_pictures(own.root)


def list_pictures(folder: Path) -> tuple[Listing, Listing | None]:
    """Training pictures, and test pictures where a folder is set aside for them; in alphabetical order.

    Raises:
        InputError: no such folder, no class folders, one class, an empty class, too few pictures of a class, or classes that differ
            between training and test.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist")
    tests = [folder / name for name in TESTS if (folder / name).is_dir()]
    if not (folder / "train").is_dir():
        if tests and len(_folders(folder)) == len(tests):
            raise InputError(f"{folder.name} has a folder {tests[0].name} and no folder train beside it")
        train = _listing(folder, folder)
        _check_counts(train, folder.name, LEAST + 1, "1 for testing, 1 for the teacher and 1 for the rest")
        return train, None
    train = _listing(folder, folder / "train")
    if not tests:
        _check_counts(train, folder.name, LEAST + 1, "1 for testing, 1 for the teacher and 1 for the rest")
        return train, None
    test = _listing(folder, tests[0])
    _check_counts(train, f"{folder.name}/train", LEAST, "1 for the teacher and 1 for the rest")
    _check_counts(test, f"{folder.name}/{tests[0].name}", 1, "")
    if train.classes != test.classes:
        other = sorted(set(train.classes) ^ set(test.classes))
        there = "train" if other[0] in train.classes else tests[0].name
        raise InputError(
            f"train and {tests[0].name} in {folder.name} must have the same class folders; {other[0]} is in {there} only"
        )
    return train, test


def num_classes(own: OwnName) -> int | None:
    """K of a folder; None where only running the user's function would tell."""
    return len(list_pictures(own.folder)[0].classes) if own.folder else None


def _folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder of pictures {root.name} can't be read: {error.strerror}") from error


def _listing(root: Path, folder: Path) -> Listing:
    """Every picture under folder/CLASS/, at any depth."""
    names, labels, classes = [], [], _folders(folder)
    if not classes:
        raise InputError(f"{folder.name} holds no class folders; pictures of a class lie in {folder.name}/CLASS/")
    for label, name in enumerate(classes):
        found = sorted(
            str(path.relative_to(root))
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        names += found
        labels += [label] * len(found)
    return Listing(names, labels, classes)


def _check_counts(listing: Listing, where: str, least: int, why: str) -> None:
    check_counts(
        [listing.labels.count(label) for label in range(len(listing.classes))], listing.classes, where, least, why
    )


def check_counts(counts: list[int], classes: list[str], where: str, least: int, why: str = "") -> None:
    """Refuse one class, empty classes (all named) and classes with too few images to split."""
    if len(classes) < 2:
        raise InputError(f"{where} has one class, {classes[0]}; a classifier needs at least 2")
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise InputError(f"{where} has no pictures ({', '.join(SUFFIXES)}) of the class {shown}")
    few = [(name, count) for name, count in zip(classes, counts, strict=True) if count < least]
    if few:
        raise InputError(
            f"{where} has {few[0][1]} picture(s) of the class {few[0][0]}; at least {least} are needed: {why}"
        )
