"""Run a network again after one of its layers has changed, without recomputing what comes before that layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class PrefixReuse:
    """Records what every module returned in one forward pass, and plays it back up to a chosen layer.

        reuse = PrefixReuse(model)
        with reuse.recording():
            logits = model(x)
        with reuse.from_layer("layer2.0.conv1"):
            changed = model(x)          # modules that had finished before that layer began return their recorded output

    The second pass equals a full one bit for bit: the same operations run on the same numbers from the layer on. The outermost finished
    module answers for all within it, so before the layer only a handful of copies are made. What is computed outside of modules (an
    addition, a pooling call) is computed again.

    Args:
        model: any module without randomness in its present mode whose control flow doesn't depend on weights. Modules that return
            anything but a single tensor are run again (their children need not be).
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._modules = dict(model.named_modules())
        self._clock = 0
        self._calls: dict[str, list[tuple[int, int, Tensor | None]]] = {}  # name -> (begin, end, output) of each call

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forward passes in this block replace the recording; the last one counts."""
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(self._opener(name)))
            handles.append(module.register_forward_hook(self._closer(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _opener(self, name: str):
        def open_call(module: nn.Module, args: tuple) -> None:
            if module is self.model:
                self._clock, self._calls = 0, {}
            self._clock += 1
            self._calls.setdefault(name, []).append((self._clock, 0, None))

        return open_call

    def _closer(self, name: str):
        def close_call(module: nn.Module, args: tuple, output) -> None:
            self._clock += 1
            begin = self._calls[name][-1][0]
            # A copy, for a following in-place ReLU or addition would write into the recorded tensor.
            kept = output.detach().clone() if isinstance(output, Tensor) else None
            self._calls[name][-1] = (begin, self._clock, kept)

        return close_call

    @contextmanager
    def from_layer(self, name: str) -> Iterator[None]:
        """Forward passes in this block (on the recorded input) recompute only from the first call of module `name` on."""
        start = self._calls[name][0][0]
        replaced = []
        for other, calls in self._calls.items():
            _, end, output = calls[0]
            # A module called twice runs again: when its surroundings are played back, nobody counts which call is due.
            if len(calls) == 1 and end < start and output is not None:
                module = self._modules[other]
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = _player(output)
        try:
            yield
        finally:
            for module, own in replaced:
                del module.forward  # the instance attribute; the class's method comes back
                if own is not None:
                    module.forward = own

    def clear(self) -> None:
        """Let go of the recorded activations."""
        self._calls = {}


def _player(output: Tensor):
    def play(*args, **kwargs) -> Tensor:
        return output.clone()  # what follows may write into it

    return play


def forward_from(reuse: PrefixReuse, name: str, x: Tensor) -> Tensor:
    """Output of the model on the recorded input `x`, recomputed from module `name` on, without gradients."""
    with torch.inference_mode(), reuse.from_layer(name):
        return reuse.model(x)
