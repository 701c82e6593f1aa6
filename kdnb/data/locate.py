"""Where the files of a data set are."""

from pathlib import Path

from kdnb.errors import InputError
from kdnb.storage.paths import data_roots

# folders searched under each data root, and the files that must be there
FILES: dict[str, tuple[list[str], list[str]]] = {
    "fashion_mnist": (
        ["FashionMNIST/raw", "fashion-mnist"],
        ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
    ),
    "cifar10": (["cifar-10-batches-py"], [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]),
    "cifar100": (["cifar-100-python"], ["train", "test"]),
}


def locate(name: str) -> Path:
    """The folder that holds every file of a data set; an `InputError` with what to do where there is none."""
    folders, files = FILES[name]
    folder = find_folder(folders, files)
    if folder is None:
        debian = ", install Debian's dataset-fashion-mnist" if name == "fashion_mnist" else ""
        raise InputError(
            f"no complete copy of {name} found ({', '.join(files)}); put the files under KDNB_DATA/{folders[0]}{debian}, "
            f"or run `inv download {name}`"
        )
    return folder


def find_folder(candidates: list[str], needed: list[str]) -> Path | None:
    """First folder ROOT/CANDIDATE that holds every needed file (plain or .gz)."""
    for root in data_roots():
        for candidate in candidates:
            folder = root / candidate
            if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in needed):
                return folder
    return None


# data sets of pictures: folders searched under each data root, and what must be there
PICTURE_FOLDERS: dict[str, tuple[list[str], list[str]]] = {
    "tiny_imagenet": (["tiny-imagenet-200", "tiny_imagenet"], ["train", "val"]),
    "imagenet": (["imagenet", "ILSVRC2012"], ["train", "val"]),
    "cub200": (["CUB_200_2011", "cub200"], ["images", "images.txt", "image_class_labels.txt", "train_test_split.txt"]),
}


def find_pictures(name: str) -> Path:
    """The folder of a data set of pictures.

    Raises:
        InputError: none of the folders searched has all that must be there.
    """
    folders, needed = PICTURE_FOLDERS[name]
    for root in data_roots():
        for folder in folders:
            if all((root / folder / item).exists() for item in needed):
                return root / folder
    raise InputError(
        f"no complete copy of {name} found; put it under KDNB_DATA/{folders[0]}, so that {', '.join(needed)} lie in that folder "
        "(it is not downloaded for you)"
    )
