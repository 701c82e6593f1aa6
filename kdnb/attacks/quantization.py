"""Weights as N-bit integers: what a memory attack sees, and what its flips do to the float weights that the network computes with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError, check_name

STEP_FITS = ("max", "least_squares")


def half_levels(bits: int) -> int:
    """Largest integer of the symmetric range, (2^N - 2) / 2: 127 for 8 bits. Only a flip can make -2^(N-1)."""
    return 2 ** (bits - 1) - 1


def bit_weights(bits: int, device: torch.device | str = "cpu") -> Tensor:
    """Values of the bits of a two's complement number, least significant first: (1, 2, ..., 2^(N-2), -2^(N-1)), int64.

    They are also the masks that flip them in a sign-extended integer: q' = q XOR w_i.
    """
    weights = 2 ** torch.arange(bits, device=device)
    weights[-1] = -weights[-1]
    return weights


def read_bits(integers: Tensor, bits: int) -> Tensor:
    """Two's complement bits, least significant first: (...) integers -> (bits, ...) of 0 and 1, int64."""
    shifts = torch.arange(bits, device=integers.device).view(-1, *[1] * integers.dim())
    return (integers.long() >> shifts) & 1


def fit_step(weight: Tensor, bits: int = 8, fit: str = "max") -> Tensor:
    """The size of one integer step.

        max:            D = max |w| / h,   h = 2^(N-1) - 1
        least_squares:  D = sum q w / sum q^2 for q = round(w / D), alternated, from the best of 20 clipping points

    Args:
        weight: any shape, float. bits: N in [2, 16]. fit: "max" (as good at 8 bits) or "least_squares" (pays at 4 bits and fewer).
    Returns:
        Scalar of the weight's dtype, > 0 (1 for an all-zero weight).

    Source: He, Rakin et al., CVPR 2020 (max). AEAHL-RG's released code fits D by 300 steps of SGD on the same squared error.
    """
    half = half_levels(bits)
    largest = weight.detach().abs().amax()
    step = torch.where(largest > 0, largest / half, torch.ones_like(largest))
    if fit == "max":
        return step

    def error(candidate: Tensor) -> Tensor:
        return (candidate * (weight / candidate).round().clamp(-half, half) - weight).square().sum()

    candidates = [step * ratio for ratio in torch.linspace(0.05, 1.0, 20).tolist()]
    step = torch.stack(candidates)[torch.stack([error(candidate) for candidate in candidates]).argmin()]
    for _ in range(20):
        integers = (weight / step).round().clamp(-half, half)
        square = integers.square().sum()
        step = torch.where(square > 0, (integers * weight).sum() / square, step)
    return step


class Layer(NamedTuple):
    """A quantised layer.

    Attributes:
        name: of the module in the network.
        module: its float weight is kept at integers * step.
        integers: of the weight's shape, int8 up to 8 bits.
        step: scalar > 0.
    """

    name: str
    module: nn.Module
    integers: Tensor
    step: Tensor


class Quantization:
    """Replaces the weights of a model by N-bit integers times a step, in place, and keeps both in agreement.

        q = round(clip(w, -h D, h D) / D)  (half to even),   weight in the forward pass = q D

    Args:
        model: its Conv2d and Linear weights are changed; biases, batch norms and all else stay exactly as they are.
        bits: N in [2, 16], 8; integers are stored as int8 up to 8 bits, else int16.
        names: module names to quantise, in this order; default all Conv2d and Linear, in module order.
        fit: see `fit_step`.
    Raises:
        InputError: bits outside [2, 16], unknown fit or module name, nothing to quantise.

    `restore` gives the float weights back. Source: Rakin, He, Fan, ICCV 2019. In AEAHL-RG's released conversion the biases are lost.
    """

    def __init__(self, model: nn.Module, bits: int = 8, names: Sequence[str] | None = None, fit: str = "max"):
        if not 2 <= bits <= 16:
            raise InputError(f"bits must be in [2, 16], got {bits}")
        check_name("step fit", fit, STEP_FITS)
        found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        chosen = list(found) if names is None else [check_name("quantisable layer", name, found) for name in names]
        if not chosen:
            raise InputError("the model has no Conv2d or Linear layer to quantise")
        self.model, self.bits = model, bits
        self._originals: dict[str, Tensor] = {}
        self.layers = [self._quantize(name, found[name], fit) for name in chosen]
        self.index = {layer.name: layer for layer in self.layers}

    @torch.no_grad()
    def _quantize(self, name: str, module: nn.Module, fit: str) -> Layer:
        weight, half = module.weight, half_levels(self.bits)
        step = fit_step(weight, self.bits, fit)
        integers = (
            (weight.clamp(-half * step, half * step) / step)
            .round()
            .to(torch.int8 if self.bits <= 8 else torch.int16)
            .contiguous()
        )
        self._originals[name] = weight.detach().clone()
        weight.copy_(integers * step)
        return Layer(name, module, integers, step)

    @torch.no_grad()
    def write(self, name: str, positions: Tensor, values: Tensor) -> Tensor:
        """Set integers of one layer, and the float weights with them; returns the values that were there.

        Args:
            name: layer. positions: (n,) int64 into the flattened weight. values: (n,) integers.
        """
        layer = self.index[name]
        flat = layer.integers.view(-1)
        before = flat[positions]
        flat[positions] = values.to(flat.dtype)
        places = torch.unravel_index(positions, layer.integers.shape)  # the float weight may be channels-last
        layer.module.weight.index_put_(places, values.to(layer.step.dtype) * layer.step)
        return before

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original float weights back, bit for bit; the handle is of no use afterwards."""
        for layer in self.layers:
            layer.module.weight.copy_(self._originals[layer.name])
