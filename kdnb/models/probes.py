"""Look inside a network while it runs: batch-normalisation statistics of the inputs, and features of networks that are not ours."""

import torch
from torch import Tensor, nn

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNormProbe:
    """Statistics of the *inputs* of every BatchNorm layer, gathered in the same forward pass that gives the logits.

    A batch-norm layer's running mean and variance describe what enters it, so these are what a batch must be compared with; the
    layer's outputs are already shifted and scaled (`of="outputs"` exists to reproduce code that compares those). Hooks stay until
    `close()` (or the end of the `with` block).

        with BatchNormProbe(teacher) as probe:
            logits = teacher(x)
            loss = sum(batch_norm_terms(probe.means, probe.variances, probe.running_means, probe.running_variances))

    Attributes:
        means, variances: lists over layers of (C_l,) tensors of the latest forward, biased variance, differentiable.
        running_means, running_variances: lists over layers of (C_l,) buffers of the layers.
        recording: while False, passes leave the statistics as they are.
        inputs: the latest inputs themselves, only if `keep_inputs` (lists over layers of (B, C_l, ...)).
    """

    def __init__(self, model: nn.Module, keep_inputs: bool = False, of: str = "inputs"):
        if of not in ("inputs", "outputs"):
            raise ValueError(f'of must be "inputs" or "outputs", got {of!r}')
        self.layers = [module for module in model.modules() if isinstance(module, _BATCH_NORM)]
        self.keep_inputs = keep_inputs
        self.recording = True
        self._order = {id(layer): index for index, layer in enumerate(self.layers)}
        self._statistics: list = [None] * len(self.layers)
        self._inputs: list = [None] * len(self.layers)
        if of == "inputs":
            self._handles = [
                layer.register_forward_pre_hook(lambda layer, args: self._record(layer, args[0]))
                for layer in self.layers
            ]
        else:
            self._handles = [
                layer.register_forward_hook(lambda layer, _, output: self._record(layer, output))
                for layer in self.layers
            ]

    def _record(self, layer: nn.Module, x: Tensor) -> None:
        if not self.recording:
            return
        index = self._order[id(layer)]
        dims = [0, *range(2, x.dim())]  # every dimension but the channels
        variance, mean = torch.var_mean(x, dim=dims, unbiased=False)
        self._statistics[index] = (mean, variance)
        if self.keep_inputs:
            self._inputs[index] = x

    @property
    def means(self) -> list[Tensor]:
        return [pair[0] for pair in self._statistics]

    @property
    def variances(self) -> list[Tensor]:
        return [pair[1] for pair in self._statistics]

    @property
    def inputs(self) -> list[Tensor]:
        return self._inputs

    @property
    def running_means(self) -> list[Tensor]:
        return [layer.running_mean for layer in self.layers]

    @property
    def running_variances(self) -> list[Tensor]:
        return [layer.running_var for layer in self.layers]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "BatchNormProbe":
        return self

    def __exit__(self, *_) -> None:
        self.close()
