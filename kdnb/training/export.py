"""A trained student for others: weights under the network's own names, a card that says what they are, and ONNX where it is asked for."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import nn

import kdnb
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.methods.base import Method
from kdnb.models import known
from kdnb.models.base import Normalize
from kdnb.models.names import identity, parse_foreign
from kdnb.storage.checkpoints import state_hash
from kdnb.storage.files import atomic_write
from kdnb.storage.header import read_header
from kdnb.training.importers import load_classifier
from kdnb.training.onnx_export import ONNX, OnnxFile, write_onnx

WEIGHTS, CARD, ADAPTERS = "student.safetensors", "README.md", "adapters.safetensors"


class Student(NamedTuple):
    """What a saved student's file says about itself, in the metadata of its header.

    Attributes:
        network: the name that `kdnb.models.build` takes, empty for a module of the caller's.
        num_classes, channels, image_size: what it was built for; pixels.
        mean, std: by channel, of the [0, 1] range.
        classes: their names.
        own_head: whether its method predicts through layers of its own, which lie beside the file.
    """

    network: str
    num_classes: int
    channels: int
    image_size: int
    mean: list[float]
    std: list[float]
    classes: list[str]
    own_head: bool


def save_student(
    folder: Path,
    student: nn.Module,
    method: nn.Module,
    data: Dataset,
    name: str | None,
    facts: Mapping[str, Any],
    onnx: bool = False,
) -> Path:
    """Write FOLDER/student.safetensors, a plain state dict, and FOLDER/README.md, its card.

        net = build("resnet8x4", num_classes=4)
        net.load_state_dict(load_file("student.safetensors"))

    Args:
        student: trained; of a wrapped network the plain one's weights are written, without normalisation.
        method: that trained it. One that predicts through a layer of its own (SimKD) gets a file of its weights beside them.
        name: what `kdnb.models.build` makes the network of; None: the caller's own module.
        facts: further lines of the card, by title: recipe, results, hashes. `licence` is the licence; "unknown" without.
        onnx: also write FOLDER/student.onnx, compared with torch (`kdnb.training.onnx_export`).
    Returns:
        The path of the weights.
    Raises:
        InputError: with `onnx`, a method with a head of its own, or as `write_onnx`.
    """
    folder, net = Path(folder), getattr(student, "plain", student)
    own_head = type(method).predict is not Method.predict
    spec, foreign = data.spec, parse_foreign(name) if name else None
    about = Student(
        foreign.title if foreign else name or "",
        data.num_classes,
        data.channels,
        data.image_size,
        list(spec.mean),
        list(spec.std),
        list(spec.class_names),
        own_head,
    )
    content = _file(net.state_dict(), about)
    atomic_write(folder / WEIGHTS, content)
    if own_head:
        atomic_write(folder / ADAPTERS, save(_owned(method.state_dict()), {"format": "pt"}))
    lines = {
        "network": identity(name) if name else type(net).__name__,
        "classes": ", ".join(spec.class_names) or str(data.num_classes),
        "data": data.name,
        "images": f"{data.channels}x{data.image_size}x{data.image_size}, standardised with {_normalization(about)}",
        **{title: value for title, value in facts.items() if title != "licence"},
        "hashes of the data": ", ".join(f"{part} {data.hashes[part]}" for part in ("private", "public", "test")),
        "hash of the weights": state_hash(net.state_dict()),
        "sha256 of the file": hashlib.sha256(content).hexdigest(),
        "made by": f"kdnb {kdnb.__version__}, torch {torch.__version__}",
    }
    atomic_write(folder / CARD, _card(lines, str(facts.get("licence", "unknown")), name, about).encode())
    if onnx:
        _write_beside(folder, net, about)
    return folder / WEIGHTS


def export_student(folder: Path, network: str = "") -> OnnxFile:
    """FOLDER/student.onnx from FOLDER/student.safetensors, and a section on it in the card.

    Args:
        folder: that `save_student` wrote, as `checkpoints` of a run is.
        network: what `kdnb.models.build` makes the network of, where the file can't know: FILE.py:function of your own code.
    Raises:
        InputError: no such file or one of another origin, a method with a head of its own, or as `load_classifier` and `write_onnx`.
    """
    about = read_student(folder)
    _check_head(about)
    name = network or about.network
    if not name:
        raise InputError("the student was a module without a name; give --network FILE.py:function that makes it")
    size = about.image_size
    net = load_classifier(folder / WEIGHTS, known(name), about.num_classes, about.channels, image_size=size).model
    return _write_beside(folder, net.plain, about)


def read_student(folder: Path) -> Student:
    """What FOLDER/student.safetensors says about itself.

    Raises:
        InputError: no such file, a damaged one, or one that `save_student` did not write.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError(f"{Path(folder).name} holds no {WEIGHTS}; `inv distil` and Result.save write one")
    try:
        return Student(**json.loads(read_header(path)["__metadata__"]["kdnb"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{WEIGHTS} in {Path(folder).name} does not say what it is; save the student once more"
        ) from None


def _check_head(about: Student) -> None:
    if about.own_head:
        raise InputError(
            "the method predicts through layers of its own, which are no part of the student; it can't be exported as ONNX"
        )


def _write_beside(folder: Path, net: nn.Module, about: Student) -> OnnxFile:
    _check_head(about)
    net = copy.deepcopy(net)
    if isinstance(getattr(net, "normalize", None), Normalize):
        net.normalize = nn.Identity()  # as the weights: standardised images come in
    size = about.image_size
    made = write_onnx(folder / ONNX, net, (about.channels, size, size), about._asdict())
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    text = card.split(_ONNX_TITLE)[0].rstrip() + _ONNX_TITLE + _onnx_section(about, made)
    atomic_write(folder / CARD, text.encode())
    return made


def _file(state: Mapping[str, torch.Tensor], about: Student) -> bytes:
    """A safetensors file, the same bytes for the same student: the format's own writer puts metadata in any order."""
    plain = save(_owned(state))
    end = 8 + int.from_bytes(plain[:8], "little")
    metadata = {"__metadata__": {"format": "pt", "kdnb": json.dumps(about._asdict())}}
    header = json.dumps(metadata | json.loads(plain[8:end])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + plain[end:]


def _owned(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor with memory of its own, as the format asks for."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _normalization(about: Student) -> str:
    return f"mean {about.mean} and std {about.std} of the [0, 1] range"


def _card(lines: Mapping[str, Any], licence: str, name: str | None, about: Student) -> str:
    rows = "\n".join(f"| {title} | {str(value).replace('|', '/')} |" for title, value in lines.items())
    note = (
        "\n\nThe method predicts through layers of its own (adapters.safetensors); the student's own head was not trained."
        if about.own_head
        else ""
    )
    return f"""---
license: {licence}
library_name: pytorch
tags: [image-classification, knowledge-distillation]
---
# A distilled {about.network or lines["network"]}

| | |
|---|---|
{rows}

```python
from safetensors.torch import load_file
net = {_construct(name, about)}
net.load_state_dict(load_file("{WEIGHTS}"))
```

The images that enter `net` are standardised as said above.{note}

The licence is for whoever publishes this file to fill in: those of the data and of the teacher's weights may bind it.
"""


_ONNX_TITLE = "\n\n## ONNX\n"


def _onnx_section(about: Student, made: OnnxFile) -> str:
    shape = f"{about.channels}, {about.image_size}, {about.image_size}"
    return f"""
`{ONNX}` takes `images`, float32 of (any number, {shape}), standardised as above, and gives `logits`. Compared with torch on random images:
{made.describe()}.

```python
import onnxruntime
session = onnxruntime.InferenceSession("{ONNX}")
(logits,) = session.run(["logits"], {{"images": images}})
```
"""


def _construct(name: str | None, about: Student) -> str:
    """The line of plain Python that makes the network with fresh weights."""
    foreign = parse_foreign(name) if name else None
    count, channels = about.num_classes, about.channels
    if name is None:
        return "...  # the network that was given to kdnb"
    if foreign is None:
        return f'kdnb.models.build("{name}", num_classes={count}, in_channels={channels})'
    if foreign.function:
        return f"{foreign.entry}(...)  # of {foreign.function.path.name}"
    if foreign.library == "timm":
        return f'timm.create_model("{foreign.entry}", num_classes={count}, in_chans={channels})'
    return f'torchvision.models.get_model("{foreign.entry}", num_classes={count})'
