"""Models by name: `build("resnet8x4", num_classes=100)`, `build("timm:resnet18", 100)`. Nothing heavy is imported to check a name."""

import importlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from kdnb.errors import InputError, check_name
from kdnb.models.names import check_foreign, identity, parse_foreign

__all__ = ["ALIASES", "MODELS", "ModelSpec", "build", "find", "identity", "known"]


class ModelSpec(NamedTuple):
    """Where a model is made: `kdnb.models.<module>.<factory>(num_classes, in_channels, **kwargs)`.

    Attributes:
        module, factory, kwargs: as above.
        description: one line.
        cub: whether it is then given the stem for CUB-200.
    """

    module: str
    factory: str
    kwargs: dict
    description: str
    cub: bool = False


def _cifar_resnet(depth: int, widths: tuple) -> ModelSpec:
    return ModelSpec(
        "resnet",
        "ResNet",
        {"depth": depth, "widths": widths},
        f"CIFAR ResNet-{depth}, widths " + "-".join(map(str, widths)),
    )


def _resnet(depth: int, stem: str, title: str = "", **kwargs) -> ModelSpec:
    return ModelSpec(
        "resnet_imagenet",
        "ResNetImageNet",
        {"depth": depth, "stem": stem} | kwargs,
        f"{title or f'ResNet-{depth}'}, {stem} stem",
    )


def _wrn(depth: int, width: int) -> ModelSpec:
    return ModelSpec("wrn", "WideResNet", {"depth": depth, "width": width}, f"wide ResNet {depth}-{width}")


def _vgg(depth: int) -> ModelSpec:
    return ModelSpec("vgg", "VGG", {"depth": depth}, f"VGG-{depth} with batch normalisation")


_W, _W2, _W4 = (16, 16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256)
_DOUBLE = (128, 256, 512, 1024)

MODELS: dict[str, ModelSpec] = {
    # small nets for 16x16 images on a CPU
    "resnet8w4": _cifar_resnet(8, (4, 4, 8, 16)),
    "resnet8w8": _cifar_resnet(8, (8, 8, 16, 32)),
    "vgg8q": ModelSpec("vgg", "VGG", {"depth": 8, "widths": (16, 32, 64, 128, 128)}, "VGG-8 of a quarter width"),
    # 32x32 images
    **{f"resnet{depth}": _cifar_resnet(depth, _W) for depth in (8, 14, 20, 32, 38, 44, 56, 110, 116)},
    **{f"resnet{depth}x2": _cifar_resnet(depth, _W2) for depth in (14, 38, 110)},
    **{f"resnet{depth}x4": _cifar_resnet(depth, _W4) for depth in (8, 14, 32, 38)},
    **{f"resnet{depth}": _resnet(depth, "cifar") for depth in (18, 34, 50, 101, 152)},
    **{f"wrn_{depth}_{width}": _wrn(depth, width) for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10))},
    **{f"vgg{depth}": _vgg(depth) for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2": ModelSpec(
        "mobilenetv2", "MobileNetV2", {"width": 0.5}, "MobileNetV2 of half width for 32x32 images"
    ),
    "mobilenetv2_1_0": ModelSpec(
        "mobilenetv2", "MobileNetV2", {"width": 1.0}, "MobileNetV2 of full width for 32x32 images"
    ),
    "mobilenetv2_cmi": ModelSpec(
        "mobilenetv2", "MobileNetV2ImageNet", {}, "MobileNetV2 with torchvision's layers and names"
    ),
    "lenet5": ModelSpec("lenet", "LeNet5", {}, "LeNet-5 with ReLU and max pooling, for 32x32 images"),
    "shufflenetv1": ModelSpec("shufflenetv1", "ShuffleNetV1", {}, "ShuffleNet, 3 groups"),
    "shufflenetv2": ModelSpec("shufflenetv2", "ShuffleNetV2", {}, "ShuffleNetV2 of size 1"),
    "shufflenetv2_1_5": ModelSpec(
        "shufflenetv2", "ShuffleNetV2", {"widths": (176, 352, 704, 1024)}, "ShuffleNetV2 of size 1.5"
    ),
    # 224x224 images: stems that reduce the resolution four times
    **{f"resnet{depth}_imagenet": _resnet(depth, "imagenet") for depth in (18, 34, 50, 101, 152)},
    **{
        f"resnet{depth}x2_imagenet": _resnet(depth, "imagenet", f"ResNet-{depth} x2", widths=_DOUBLE)
        for depth in (10, 18, 34)
    },
    "resnext50_32x4d": _resnet(50, "imagenet", "ResNeXt-50 32x4d", groups=32, inner_scale=2),
    "wrn_50_2_imagenet": _resnet(50, "imagenet", "wide ResNet-50-2", inner_scale=2),
    "mobilenetv1": ModelSpec("mobilenetv1", "MobileNetV1", {}, "MobileNetV1, ImageNet stem"),
}

# networks for small images under the suffix `_cub`, with a stem for the 224x224 photographs of CUB-200 (`kdnb.models.stems`)
_CUB = "_cub"
_SMALL_STEMS = ("ResNet", "WideResNet", "VGG", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")  # and the stem "cifar"


def _for_cub(name: str) -> ModelSpec:
    spec = MODELS[name] if name in MODELS else _wrn_named(name)
    if spec.factory not in _SMALL_STEMS and spec.kwargs.get("stem") != "cifar":
        raise InputError(
            f"{name} has a stem for large images already; only networks for small images can be named {name}{_CUB}"
        )
    return spec._replace(description=f"{spec.description.removesuffix(' for 32x32 images')}, CUB-200 stem", cub=True)


def _wrn_named(name: str) -> ModelSpec:
    match = re.fullmatch(r"wrn_?(\d+)_(\d+)", name)
    return _wrn(int(match[1]), int(match[2])) if match else MODELS[check_name("model", name, MODELS)]


MODELS |= {
    f"{name}{_CUB}": _for_cub(name)
    for name in ("resnet8x4", "resnet32x4", "resnet50", "vgg8", "vgg13", "shufflenetv1", "mobilenetv2")
}

ALIASES = {  # spellings of the public repositories, lower case
    "shufflev1": "shufflenetv1",
    "shufflev2": "shufflenetv2",
    "shufflev2_1_5": "shufflenetv2_1_5",
    "mobilenetv2_imagenet": "mobilenetv2_cmi",
    "wrn_50_2": "wrn_50_2_imagenet",
    "resnet10x2": "resnet10x2_imagenet",
    "resnet18x2": "resnet18x2_imagenet",
    "resnet34x2": "resnet34x2_imagenet",
}


def find(name: str) -> ModelSpec:
    """The specification of a model.

    Case, hyphens and the spellings of the public repositories don't matter; `wrn_D_W` works for every depth 6n + 4 and width. `resnet18`
    to `resnet152` have the stem for small images; the original ones are `resnet18_imagenet` and so on. A network for small images is
    given the stem of CUB-200 by the suffix `_cub` (`kdnb.models.stems`).

    >>> find("WRN-22-4").kwargs
    {'depth': 22, 'width': 4}
    """
    key = str(name).lower().replace("-", "_")
    base = key.removesuffix(_CUB)
    base = ALIASES.get(base, base)
    if key.endswith(_CUB):
        return MODELS.get(base + _CUB) or _for_cub(base)
    return MODELS[base] if base in MODELS else _wrn_named(base)


def known(name: str) -> str:
    """The name of a model that can be built, of the zoo or foreign; paths in it become absolute.

    Raises:
        InputError: no such model, with the nearest name; nothing is built, and no code of the user's is run.
    """
    if foreign := parse_foreign(name):
        return check_foreign(foreign).text
    find(name)
    return name


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    **kwargs,
):
    """Make a classifier with fresh weights.

    Args:
        name: a name of `MODELS`, an alias, `wrn_D_W`, or one of these with `_cub`; `timm:NAME`, `torchvision:NAME` or
            `FILE.py:function` (`kdnb.models.names`).
        num_classes: K >= 2.
        in_channels: image channels, >= 1.
        mean, std: per channel, in units of the [0, 1] range; both or neither. With them the network maps its input from [-1, 1] to
            [0, 1] and standardises it; without them it takes images as they are.
        image_size: H = W in pixels, for foreign networks: some are made for one size, and layers are found by a pass on such images.
            None: 224. The zoo's take any.
        kwargs: further arguments of the model's class, over those of the table (`dropout`, `widths`, ...).
    Returns:
        A `kdnb.models.base.Classifier`: `model(x)` gives logits (B, K), `model(x, return_features=True)` gives `Features`.
    Raises:
        InputError: unknown name, `_cub` after a network for large images, num_classes < 2, in_channels < 1, only one of mean and std,
            or their length is not in_channels.
    """
    foreign = parse_foreign(name)
    spec = None if foreign else find(name)
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, got {num_classes}")
    if in_channels < 1:
        raise InputError(f"in_channels must be at least 1, got {in_channels}")
    if (mean is None) != (std is None):
        raise InputError("give both mean and std, or neither")
    if mean is not None and len(mean) != in_channels:
        raise InputError(f"mean and std need one value for each of the {in_channels} channels, got {len(mean)}")
    if foreign:
        from kdnb.models.libraries import build_foreign

        model = build_foreign(foreign, num_classes, in_channels, image_size, mean, std, **kwargs)
        model.architecture = "" if kwargs or foreign.function else foreign.text
        return model
    assert spec is not None
    module = importlib.import_module(f"kdnb.models.{spec.module}")
    model = getattr(module, spec.factory)(num_classes=num_classes, in_channels=in_channels, **spec.kwargs | kwargs)
    if spec.cub:
        from kdnb.models.stems import replace_stem

        replace_stem(model)
    if mean is not None and std is not None:
        from kdnb.models.base import Normalize

        model.normalize = Normalize(mean, std)
    model.architecture = "" if kwargs else name
    return model
