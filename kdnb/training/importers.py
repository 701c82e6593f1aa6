"""Published checkpoints as weights of our own networks: read without running anything in them, compared before they are used.

Known forms (the networks have the same names inside, so no key is translated):
    mdistiller, RepDistiller, SDD, SimKD   {"model": weights, "epoch": ..., "optimizer": ...}
    mdistiller's run files                 {"model": {"module.student.*", "module.teacher.*", ...}, ...}
    CMI, Fast-Datafree, timm               {"state_dict": weights, ...}
    Fast-AD                                {"model_state_dict": weights, "optimizer_state_dict": ..., "epoch": ...}
    torchvision, timm                      weights
    kdnb                                   state files (`kdnb.storage.checkpoints`), plain safetensors
"""

import difflib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models import MODELS, build
from kdnb.models.names import parse_foreign
from kdnb.storage.checkpoints import parse_state, state_hash

_MAX_FILE = 2 * 2**30  # bytes; ResNet-152 with its optimiser has half a gigabyte
_MAX_PICKLE = 64 * 2**20  # bytes of the structure inside; the tensors are beside it
_MAX_ENTRIES = 100_000
_WRAPPERS = ("model", "state_dict", "model_state_dict", "student")  # where a file keeps the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
PARTS = ("student", "teacher")
_COUNTER = ".num_batches_tracked"


class Imported(NamedTuple):
    """A classifier with imported weights.

    Attributes:
        model: in eval mode.
        hash: identity of the weights (`kdnb.storage.checkpoints.state_hash`).
    """

    model: nn.Module
    hash: str


def load_classifier(
    path: Path,
    model: str,
    num_classes: int,
    in_channels: int = 3,
    mean=None,
    std=None,
    part: str | None = None,
    image_size: int | None = None,
) -> Imported:
    """A classifier with the weights of a checkpoint; what the checkpoint lacks is never left at random.

        teacher = load_classifier("ckpt_epoch_240.pth", "resnet32x4", **load("cifar100").normalization).model

    Args:
        path: the file.
        model: as for `kdnb.models.build`, foreign names too.
        num_classes, in_channels, mean, std, image_size: as for `kdnb.models.build`. Published networks were trained on standardised images: give the
            mean and std of their data set.
        part: "student" or "teacher" of a run file that holds both; None: the student there, and no other choice elsewhere.
    Raises:
        InputError: as `import_checkpoint`.
    """
    state, digest = import_checkpoint(path, model, num_classes, in_channels, part, image_size)
    net = build(model, num_classes, in_channels, mean, std, image_size)
    net.plain.load_state_dict(state)
    return Imported(net.eval(), digest)


def import_checkpoint(
    path: Path,
    model: str,
    num_classes: int,
    in_channels: int = 3,
    part: str | None = None,
    image_size: int | None = None,
) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint after comparison with the network they are for: names, shapes, kinds, class count, finite values.

    Returns:
        (state dict on the CPU in the network's own dtypes, first 16 hex digits of its hash).
    Raises:
        InputError: the file is missing, damaged, too large or of another kind; it holds anything but weights and plain values; or the
            weights are of another network or for another number of classes.
    """
    weights = read_weights(path, part)
    name = Path(path).name
    expected, head = _blueprint(model, num_classes, in_channels, image_size)
    try:
        state = match_weights(weights, expected, f"{head}.weight", f"checkpoint {name}", model)
    except InputError as error:
        raise InputError(f"{error}{_suggest(weights, model, num_classes, in_channels)}") from None
    return state, state_hash(state)


def _blueprint(
    model: str, num_classes: int, in_channels: int, image_size: int | None = None
) -> tuple[dict[str, Tensor], str]:
    """The state dict that the plain network would have, and the name of its head."""
    if parse_foreign(model):  # not every one can be made without memory, and its layers are found by running it
        net = build(model, num_classes, in_channels, image_size=image_size)
        return net.plain.state_dict(), net.head_name.removeprefix("model.")
    with torch.device("meta"):  # names and shapes without memory
        net = build(model, num_classes, in_channels)
    return net.state_dict(), net.head_name


# --- from bytes to weights -----------------------------------------------------------------------------------------------------


def read_weights(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint of any known form, names as in the plain network; nothing in the file is run.

    Old torch files (before 1.6) and plain safetensors carry no check sum: a changed weight inside them can't be noticed, only hashed.

    Raises:
        InputError: see `import_checkpoint`.
    """
    path = Path(path)
    if part is not None and part not in PARTS:
        raise InputError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    content = _parse(_read(path), path.name)
    if isinstance(content, Mapping) and not _is_weights(content):
        inner = [content[key] for key in _WRAPPERS if _is_weights(content.get(key))]
        if not inner:
            raise InputError(f"checkpoint {path.name} holds no weights; its entries are {_first(content)}")
        content = inner[0]
    if not isinstance(content, Mapping):
        raise InputError(f"checkpoint {path.name} holds a {type(content).__name__}, not a table of weights")
    return _select(dict(content), part, path.name)


def _is_weights(content) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"checkpoint {path.name} does not exist or is no file")
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise InputError(f"checkpoint {path.name} has {size} bytes; at most {_MAX_FILE} are read")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path.name} can't be read: {error.strerror}") from error


def _parse(data: bytes, name: str):
    """Content of a file, its form told by the first bytes."""
    if data[:4] == b"PK\3\4":
        _check_archive(data, name)
        return _parse_torch(data, name)
    if data[:1] == b"\x80":  # a pickle: torch before 1.6
        return _parse_torch(data, name)
    if data[8:9] == b"{":
        try:
            own = b'"kdnb-state-1"' in data[: 8 + int.from_bytes(data[:8], "little")]
            return parse_state(data, name) if own else load_safetensors(data)
        except InputError:
            raise
        except (SafetensorError, ValueError, KeyError, RecursionError) as error:
            raise InputError(f"checkpoint {name} is a damaged safetensors file: {error}") from error
    raise InputError(
        f"checkpoint {name} is neither a torch nor a safetensors file (a page saved in its place, or a file cut short?)"
    )


def _check_archive(data: bytes, name: str) -> None:
    """The directory of a zip file before torch sees it: sizes add up, nothing is compressed, every check sum holds."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            structure = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
            if (
                packed
                or len(entries) > _MAX_ENTRIES
                or structure > _MAX_PICKLE
                or sum(entry.file_size for entry in entries) > len(data)
            ):
                raise InputError(f"checkpoint {name} is a zip file that torch did not write")
            damaged = archive.testzip()
    except InputError:
        raise
    except Exception as error:  # a damaged directory may raise nearly anything
        raise InputError(f"checkpoint {name} is truncated or damaged: {error}") from error
    if damaged:
        raise InputError(f"checkpoint {name} is damaged: the check sum of its entry {damaged} does not hold")


def _parse_torch(data: bytes, name: str):
    """torch.load with weights only: tensors, numbers, text and containers; everything else is refused unseen."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise InputError(f"checkpoint {name} is damaged or no torch file") from error
        raise InputError(
            f"checkpoint {name} carries a pickled {found[1]} besides its weights, and unpickling could run code; it is not loaded. "
            "Use a file that holds weights only (RepDistiller: the one of the best epoch)"
        ) from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"checkpoint {name} is damaged or no torch file: {reason}") from error


def _select(weights: dict[str, Tensor], part: str | None, name: str) -> dict[str, Tensor]:
    """Names without wrappers' prefixes; of a run file with student and teacher, one of them."""
    weights = _unwrap(weights)
    found = [one for one in PARTS if any(key.startswith(f"{one}.") for key in weights)]
    if not found:
        if part is not None:
            raise InputError(f"checkpoint {name} holds one network and no {part}; leave part out")
        return weights
    part = part or "student"
    if part not in found:
        raise InputError(f"checkpoint {name} holds no {part}, only a {found[0]}")
    return _unwrap(
        {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
    )


def _unwrap(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            return _unwrap({key.removeprefix(prefix): value for key, value in weights.items()})
    return weights


# --- comparison ----------------------------------------------------------------------------------------------------------------


def match_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str, source: str, model: str
) -> dict[str, Tensor]:
    """Weights in the order, shapes and dtypes of `expected`, the state dict of the network that shall take them.

    The counters of batch normalisation, which old files lack and evaluation ignores, may be missing; they start at 0 then.

    Args:
        head: name of the weight matrix whose height is the class count.
        source, model: what the messages call the two.
    Raises:
        InputError: another class count (with both), missing or unexpected names (the first few, with the nearest), another shape,
            another kind of numbers, or values that are not finite.
    """
    if head in weights and weights[head].dim() == 2 and weights[head].shape[0] != expected[head].shape[0]:
        raise InputError(f"the {source} has {weights[head].shape[0]} classes, {expected[head].shape[0]} were asked for")
    missing = [name for name in expected if name not in weights and not name.endswith(_COUNTER)]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        raise InputError(
            f"the {source} is not of {model}: it lacks {_first(missing)}, and has in excess {_first(unexpected)}"
            + _nearest(missing, unexpected)
        )
    state = {}
    for name, wanted in expected.items():
        given = weights[name] if name in weights else torch.zeros((), dtype=wanted.dtype)
        if given.shape != wanted.shape:
            raise InputError(
                f"the {source} is not of {model}: {name} has shape {tuple(given.shape)}, {tuple(wanted.shape)} is needed"
            )
        if (
            given.layout != torch.strided
            or given.device.type != "cpu"
            or given.is_quantized
            or _kind(given) != _kind(wanted)
        ):
            raise InputError(
                f"the {source}: {name} is not a plain tensor of {'floats' if wanted.is_floating_point() else 'integers'}"
            )
        state[name] = given.detach().to(wanted.dtype, copy=True).contiguous()
        if not state[name].isfinite().all():
            raise InputError(f"the {source}: {name} holds values that are not finite")
    return state


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex() or tensor.dtype == torch.bool


def _first(names, count: int = 4) -> str:
    names = [str(name) for name in names]
    return (", ".join(names[:count]) or "nothing") + (f" and {len(names) - count} more" if len(names) > count else "")


def _nearest(missing: list[str], unexpected: list[str]) -> str:
    for name in missing[:10]:
        near = difflib.get_close_matches(name, unexpected, n=1, cutoff=0.8)
        if near:
            return f" ({near[0]} may be its {name})"
    return ""


def _suggest(weights: Mapping[str, Tensor], model: str, num_classes: int, in_channels: int) -> str:
    """The network of a similar name that the weights do fit, as the end of a message: resnet18 and resnet18_imagenet are often confused."""
    model = model.lower().replace("-", "_")
    related = [name for name in MODELS if name.startswith(model) or model.startswith(name)]
    for other in dict.fromkeys(related + difflib.get_close_matches(model, MODELS, n=6, cutoff=0.5)):
        expected, _ = _blueprint(other, num_classes, in_channels)
        if expected.keys() == weights.keys() and all(
            weights[name].shape == wanted.shape for name, wanted in expected.items()
        ):
            return f"; it fits {other}"
    return ""
