"""Single bits of a quantised network: set, undo, draw at random, count."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from kdnb.attacks.quantization import Quantization, bit_weights
from kdnb.errors import InputError


class Flip(NamedTuple):
    """One flipped bit.

    Attributes:
        layer: its name.
        index: of the weight in the flattened layer.
        bit: 0 is the least significant.
        before, after: the integer weight.
    """

    layer: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    bit: int
    before: int
    after: int


def apply_flips(quantization: Quantization, flips: Sequence[Flip]) -> None:
    """Write a recorded trail into a network.

    Raises:
        InputError: an integer isn't the recorded one, or the layer is unknown.
    """
    for flip in flips:
        layer = quantization.index.get(flip.layer)
        found = (
            None if layer is None or flip.index >= layer.integers.numel() else int(layer.integers.view(-1)[flip.index])
        )
        if found != flip.before:
            raise InputError(
                f"{flip.layer}[{flip.index}] is {found}, the trail says {flip.before}: not the network it was recorded on"
            )
        _set(quantization, flip, flip.after)


def undo_flips(quantization: Quantization, flips: Sequence[Flip]) -> None:
    """Take recorded flips back, last first."""
    for flip in reversed(flips):
        _set(quantization, flip, flip.before)


def _set(quantization: Quantization, flip: Flip, value: int) -> None:
    device = quantization.index[flip.layer].integers.device
    quantization.write(flip.layer, torch.tensor([flip.index], device=device), torch.tensor([value], device=device))


def random_flips(quantization: Quantization, count: int, rng: torch.Generator | None = None) -> tuple[Flip, ...]:
    """The control: flip `count` bits at random, each in a uniform layer, a uniform weight of it and a uniform bit.

    Args:
        quantization: changed in place; `undo_flips` takes it back. count: >= 0. rng: CPU generator.
    Returns:
        The flips. The layer is uniform, not proportional to its size, as in the released control; small layers are hit more often.
    """
    weights, flips = bit_weights(quantization.bits).tolist(), []
    for _ in range(count):
        layer = quantization.layers[int(torch.randint(len(quantization.layers), (), generator=rng))]
        index = int(torch.randint(layer.integers.numel(), (), generator=rng))
        bit = int(torch.randint(quantization.bits, (), generator=rng))
        before = int(layer.integers.view(-1)[index])
        flips.append(Flip(layer.name, index, bit, before, before ^ weights[bit]))
        _set(quantization, flips[-1], flips[-1].after)
    return tuple(flips)


def hamming(steps: Iterable[Sequence[Flip]]) -> int:
    """Number of distinct bits that were flipped an odd number of times."""
    counts = Counter((flip.layer, flip.index, flip.bit) for flips in steps for flip in flips)
    return sum(count % 2 for count in counts.values())


def flips_to_chance(
    flips: Sequence[int], accuracies: Sequence[float], num_classes: int, factor: float = 1.1
) -> int | None:
    """Headline of an attack: the first number of flips at which accuracy is at most `factor` / K.

    Args:
        flips, accuracies: one entry a step, accuracy as a fraction in [0, 1]. num_classes: K. factor: 1.1 (11 % for ten classes).
    Returns:
        Number of flips, or None if chance was not reached.
    """
    for count, accuracy in zip(flips, accuracies, strict=True):
        if accuracy <= factor / num_classes:
            return count
    return None
