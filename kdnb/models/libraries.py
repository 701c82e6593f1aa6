"""Build networks of timm, torchvision and the user's own files, with fresh weights; nothing is downloaded."""

import importlib
import warnings

from torch import nn

from kdnb import usercode
from kdnb.errors import InputError
from kdnb.models.foreign import FeatureTap
from kdnb.models.names import ForeignName, check_foreign
from kdnb.models.taps import wrap

STANDARD_SIZE = 224  # of images, where the caller gives none: what these networks were designed for


def build_foreign(
    name: ForeignName,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    mean=None,
    std=None,
    **kwargs,
) -> FeatureTap:
    """A wrapped network; arguments as `kdnb.models.build`."""
    size = image_size or STANDARD_SIZE
    model = build_plain(name, num_classes, in_channels, size, **kwargs)
    try:
        tap = wrap(model, (in_channels, size, size), **name.taps, mean=mean, std=std)
    except InputError as error:
        raise InputError(f"{_short(name)}: {error}") from error
    given = _num_outputs(tap, (in_channels, size, size))
    if given != num_classes:
        raise InputError(f"{_short(name)} gives {given} classes, {num_classes} were asked for")
    return tap


def build_plain(name: ForeignName, num_classes: int, in_channels: int, image_size: int, **kwargs) -> nn.Module:
    """The network as its library or its author makes it, unwrapped.

    Raises:
        InputError: as `check_foreign`; the library can't make it with such classes, channels or image size; the user's code failed or
            returned something else.
    """
    check_foreign(name)
    if name.function:
        model = usercode.call(
            name.function, num_classes=num_classes, in_channels=in_channels, image_size=image_size, **kwargs
        )
        if not isinstance(model, nn.Module):
            raise InputError(f"{_short(name)} must return an nn.Module, it returned {type(model).__name__}")
        return model
    make = _timm if name.library == "timm" else _torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow initialisers and names that move
            return make(name.entry, num_classes, in_channels, image_size, **kwargs)
    except InputError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{_short(name)} can't be made for {num_classes} classes and images of {in_channels}x{image_size}x{image_size}: "
            f"{reason}"
        ) from error


def _timm(entry: str, num_classes: int, in_channels: int, image_size: int, **kwargs) -> nn.Module:
    timm = importlib.import_module("timm")
    config = timm.get_pretrained_cfg(entry)
    if config is not None and config.fixed_input_size:
        kwargs = {"img_size": image_size} | kwargs
    return timm.create_model(entry, pretrained=False, num_classes=num_classes, in_chans=in_channels, **kwargs)


def _torchvision(entry: str, num_classes: int, in_channels: int, image_size: int, **kwargs) -> nn.Module:
    zoo = importlib.import_module("torchvision.models")
    if entry.startswith("vit_"):
        kwargs = {"image_size": image_size} | kwargs
    elif entry.startswith("maxvit"):
        kwargs = {"input_size": (image_size, image_size)} | kwargs
    elif entry in ("googlenet", "inception_v3"):  # auxiliary heads give tuples in training
        kwargs = {"aux_logits": False, "init_weights": True} | kwargs
    model = zoo.get_model(entry, weights=None, num_classes=num_classes, **kwargs)
    return model if in_channels == 3 else _with_channels(model, in_channels)


def _with_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """torchvision's networks take colours only: their first convolution is made anew for another number of channels."""
    name, first = next((name, one) for name, one in model.named_modules() if isinstance(one, nn.Conv2d))
    made = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        first.dilation,
        bias=first.bias is not None,
        padding_mode=first.padding_mode,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, made)
    return model


def _num_outputs(tap: FeatureTap, image_shape: tuple[int, int, int]) -> int:
    if tap.head is not None:
        return tap.head.out_features
    from kdnb.models.base import feature_shapes

    return feature_shapes(tap, image_shape).logits[0]


def _short(name: ForeignName) -> str:
    return f"{name.function.path.name}:{name.entry}" if name.function else f"{name.library}:{name.entry}"
