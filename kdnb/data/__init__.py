"""Data sets: one table of facts, one `load`.

Images are float tensors (B, C, H, W) in [-1, 1], black is -1. Mean and standard deviation belong to the networks (`kdnb.models.build`),
so a picture means the same to a sampler, a teacher and a student.

This module imports nothing heavy, so that names can be checked before torch is loaded.
"""

from dataclasses import dataclass

from kdnb.data.own import num_classes, parse_own
from kdnb.errors import InputError, check_name


@dataclass(frozen=True)
class DatasetSpec:
    """What is fixed about a data set.

    Attributes:
        num_classes, channels: K and C.
        image_size: H = W in pixels unless the user asks for another.
        mean, std: per channel on the [0, 1] scale, what networks normalise with; 0.5 / 0.5 leaves [-1, 1] as it is.
        flip: whether a mirrored image keeps its class (never for digits).
        crop_padding: padding of the random crop, in pixels at `image_size`; 0 where crops are cut from larger pictures.
        private, test: sizes of the teacher's private training split and of the test split where kdnb itself splits.
        class_names: for axes and captions.
        embedded: needs no file on disk.
        streamed: stays on disk and is decoded batch by batch (`kdnb.data.folders`), because it doesn't fit into memory.
    """

    num_classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int
    private: int
    class_names: tuple[str, ...] = ()
    test: int | None = None
    embedded: bool = False
    streamed: bool = False


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        10, 1, 16, (0.5,), (0.5,), False, 1, private=600, test=500, class_names=tuple("0123456789"), embedded=True
    ),
    "fashion_mnist": DatasetSpec(10, 1, 16, (0.5,), (0.5,), True, 2, private=10_000, class_names=_FASHION_CLASSES),
    "cifar10": DatasetSpec(
        10,
        3,
        32,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        True,
        4,
        private=25_000,
        class_names=_CIFAR10_CLASSES,
    ),
    "cifar100": DatasetSpec(100, 3, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), True, 4, private=25_000),
    # padding 8 of 64 is CIFAR's share (our choice); 0.5 / 0.5 as in the data-free literature
    "tiny_imagenet": DatasetSpec(200, 3, 64, (0.5,) * 3, (0.5,) * 3, True, 8, private=50_000, streamed=True),
    "imagenet": DatasetSpec(1000, 3, 224, _IMAGENET_MEAN, _IMAGENET_STD, True, 0, private=640_000, streamed=True),
    "cub200": DatasetSpec(200, 3, 224, _IMAGENET_MEAN, _IMAGENET_STD, True, 0, private=3_000, streamed=True),
}


def dataset_spec(name: str) -> DatasetSpec:
    """The facts of a data set; an unknown name is refused with the nearest one."""
    return DATASETS[check_name("dataset", name, DATASETS)]


def known(name: str) -> str:
    """The name of a data set: of the table, `folder:PATH` or `FILE.py:function` (`kdnb.data.own`), whose paths become absolute.

    Raises:
        InputError: an unknown name, with the nearest; what a path points to is `kdnb.data.check.check_files`'s matter.
    """
    own = parse_own(name)
    return own.text if own else check_name("dataset", name, [*DATASETS, "folder:PATH", "FILE.py:function"])


def class_count(name: str) -> int | None:
    """K, as far as it can be told without torch: not of data that a function of the user's makes."""
    own = parse_own(name)
    return num_classes(own) if own else dataset_spec(name).num_classes


def load(name: str, image_size: int | None = None, device: str = "cpu", download: bool = False, split_seed: int = 0):
    """Load a data set: whole, as tensors on `device` (`kdnb.data.tensors.load_dataset`), or as an index of pictures that stay on disk
    and arrive on `device` batch by batch (`kdnb.data.layouts.load_folders`). The user's own data: `kdnb.data.own_images.load_own`."""
    own = parse_own(name)
    spec = None if own else dataset_spec(name)
    if image_size is not None and not 8 <= image_size <= 256:
        raise InputError(f"image_size must be between 8 and 256 pixels, got {image_size}")
    if own:
        from kdnb.data.own_images import load_own

        return load_own(own, image_size, device, split_seed)
    assert spec is not None
    if spec.streamed:
        from kdnb.data.layouts import load_folders

        return load_folders(name, spec, image_size or spec.image_size, device, split_seed)
    from kdnb.data.tensors import load_dataset

    return load_dataset(name, spec, image_size or spec.image_size, device, download, split_seed)
