"""A trained student for others: weights under the network's own names, and a card that says what they are."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import kdnb
from kdnb.data.tensors import Dataset
from kdnb.methods.base import Method
from kdnb.models.names import parse_foreign
from kdnb.storage.checkpoints import state_hash
from kdnb.storage.files import atomic_write

WEIGHTS, CARD, ADAPTERS = "student.safetensors", "README.md", "adapters.safetensors"


def save_student(
    folder: Path, student: nn.Module, method: nn.Module, data: Dataset, name: str | None, facts: Mapping[str, Any]
) -> Path:
    """Write FOLDER/student.safetensors, a plain state dict, and FOLDER/README.md, its card.

        net = build("resnet8x4", num_classes=4)
        net.load_state_dict(load_file("student.safetensors"))

    Args:
        student: trained; of a wrapped network the plain one's weights are written, without normalisation.
        method: that trained it. One that predicts through a layer of its own (SimKD) gets a file of its weights beside them.
        name: what `kdnb.models.build` makes the network of; None: the caller's own module.
        facts: further lines of the card, by title: recipe, results, hashes. `licence` is the licence; "unknown" without.
    Returns:
        The path of the weights.
    """
    folder, net = Path(folder), getattr(student, "plain", student)
    own_head = type(method).predict is not Method.predict
    known = name if name and not getattr(parse_foreign(name), "function", None) else ""
    about = {"network": known, "image_size": data.image_size, "own_head": own_head}
    content = save(_owned(net.state_dict()), {"format": "pt", "kdnb": json.dumps(about)})
    atomic_write(folder / WEIGHTS, content)
    if own_head:
        atomic_write(folder / ADAPTERS, save(_owned(method.state_dict()), {"format": "pt"}))
    lines = {
        "network": name or type(net).__name__,
        "classes": ", ".join(data.spec.class_names) or str(data.num_classes),
        "data": data.name,
        "images": f"{data.channels}x{data.image_size}x{data.image_size}, standardised with {_normalization(data)}",
        **{title: value for title, value in facts.items() if title != "licence"},
        "hashes of the data": ", ".join(f"{part} {data.hashes[part]}" for part in ("private", "public", "test")),
        "hash of the weights": state_hash(net.state_dict()),
        "sha256 of the file": hashlib.sha256(content).hexdigest(),
        "made by": f"kdnb {kdnb.__version__}, torch {torch.__version__}",
    }
    atomic_write(folder / CARD, _card(lines, str(facts.get("licence", "unknown")), name, data, own_head).encode())
    return folder / WEIGHTS


def _owned(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor with memory of its own, as the format asks for."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _normalization(data: Dataset) -> str:
    return f"mean {list(data.spec.mean)} and std {list(data.spec.std)} of the [0, 1] range"


def _card(lines: Mapping[str, Any], licence: str, name: str | None, data: Dataset, own_head: bool) -> str:
    rows = "\n".join(f"| {title} | {str(value).replace('|', '/')} |" for title, value in lines.items())
    note = (
        "\n\nThe method predicts through layers of its own (adapters.safetensors); the student's own head was not trained."
        if own_head
        else ""
    )
    return f"""---
license: {licence}
library_name: pytorch
tags: [image-classification, knowledge-distillation]
---
# A distilled {lines["network"]}

| | |
|---|---|
{rows}

```python
from safetensors.torch import load_file
net = {_construct(name, data)}
net.load_state_dict(load_file("{WEIGHTS}"))
```

The images that enter `net` are standardised as said above.{note}

The licence is for whoever publishes this file to fill in: those of the data and of the teacher's weights may bind it.
"""


def _construct(name: str | None, data: Dataset) -> str:
    """The line of plain Python that makes the network with fresh weights."""
    foreign = parse_foreign(name) if name else None
    count, channels = data.num_classes, data.channels
    if name is None:
        return "...  # the network that was given to kdnb"
    if foreign is None:
        return f'kdnb.models.build("{name}", num_classes={count}, in_channels={channels})'
    if foreign.function:
        return f"{foreign.entry}(...)  # of {foreign.function.path.name}"
    if foreign.library == "timm":
        return f'timm.create_model("{foreign.entry}", num_classes={count}, in_chans={channels})'
    return f'torchvision.models.get_model("{foreign.entry}", num_classes={count})'
