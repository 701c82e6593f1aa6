"""A saved student as ONNX, for runtimes without torch: exported by torch's own tracer of programs, compared with torch, then written."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.storage.files import atomic_write

ONNX = "student.onnx"
TOLERANCE = 1e-4  # of the largest logit: single precision summed in another order stays a hundred times below it
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 5)  # the file must serve batches of any size


class OnnxFile(NamedTuple):
    """What was written.

    Attributes:
        path: of the file.
        difference: the largest between its logits and torch's.
        largest: the largest logit of that comparison, in absolute value.
    """

    path: Path
    difference: float
    largest: float

    def describe(self) -> str:
        return (
            f"logits differ from torch's by {self.difference:.1e} at most where the largest is {self.largest:.3g} "
            f"(allowed: {TOLERANCE:g} of it)"
        )


def check_packages() -> None:
    """Refuse at once where the optional packages are missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX files need {', '.join(missing)}; install the extra: uv sync --extra export")


def write_onnx(
    path: Path, net: nn.Module, image_shape: Sequence[int], facts: Mapping[str, Any] | None = None
) -> OnnxFile:
    """Export a network, run the file with onnxruntime on other images, compare, and only then write it.

        max |z_onnx - z_torch| <= 1e-4 max |z_torch|    over images drawn from N(0, 1), in batches of 1 and 5

    Args:
        path: of the file. Its input `images` is (B, C, H, W) float32 of any B, standardised as the network was trained; its output
            `logits` is (B, K).
        net: in any mode; exported in eval mode, on the CPU.
        image_shape: (C, H, W). facts: kept in the file's metadata, as JSON by name.
    Raises:
        InputError: a package is missing, the network can't be exported, or the logits differ.
    """
    check_packages()
    modes = [(module, module.training) for module in net.modules()]
    device = next(net.parameters()).device
    try:
        net.eval().cpu()
        content = _exported(net, image_shape, facts or {})
        difference, largest = _compare(content, net, image_shape)
    finally:
        net.to(device)
        for module, training in modes:
            module.training = training
    if not difference <= TOLERANCE * largest:
        raise InputError(
            f"{type(net).__name__} as ONNX gives logits that differ by {difference:.2g} from torch's, {TOLERANCE:g} of the largest "
            f"({largest:.2g}) is allowed; no file was written"
        )
    atomic_write(path, content)
    return OnnxFile(path, difference, largest)


def _exported(net: nn.Module, image_shape: Sequence[int], facts: Mapping[str, Any]) -> bytes:
    images = torch.zeros(2, *image_shape)
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            loud.setLevel(logging.ERROR)
            program = torch.onnx.export(
                net,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
            program.save(Path(folder) / ONNX, external_data=False)
            return (Path(folder) / ONNX).read_bytes()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{type(net).__name__} can't be exported as ONNX: {reason}") from error
    finally:
        loud.setLevel(level)


@torch.no_grad()
def _compare(content: bytes, net: nn.Module, image_shape: Sequence[int]) -> tuple[float, float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    for batch in _BATCHES:
        images = torch.randn(batch, *image_shape, generator=generator)
        expected = net(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        difference = max(difference, (torch.from_numpy(found) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return difference, largest
