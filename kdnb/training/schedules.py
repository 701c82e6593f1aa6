"""Learning rates as functions of the step: there is no scheduler whose state could be lost."""

import math
from collections.abc import Sequence


def cosine(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1, along half a cosine.

    >>> cosine(1.0, 0.0, 0.0), cosine(1.0, 0.0, 0.5), cosine(1.0, 0.0, 1.0)
    (1.0, 0.5, 0.0)
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def cosine_to_zero(step: int, steps: int) -> float:
    """Factor 1 at step 0, 0 at step `steps`, half a cosine between."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def warm_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor at zero-based `step`: a linear rise over the share `warmup` of all steps, then a cosine to zero.

    >>> [round(warm_cosine(step, 12, warmup=0.25), 3) for step in (0, 1, 2, 3, 7, 11)]
    [0.333, 0.667, 1.0, 0.976, 0.5, 0.024]
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return cosine_to_zero(step + 1 - rise, steps + 1 - rise)


def multistep(lr: float, gamma: float, milestones: Sequence[int], epoch: int) -> float:
    """`lr`, multiplied by `gamma` at each milestone that is reached: epochs (zero-based) from which on the rate is lower.

    >>> [multistep(1.0, 0.5, (2, 3), epoch) for epoch in range(5)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    return lr * gamma ** sum(epoch >= milestone for milestone in milestones)


def one_cycle(lr: float, step: int, steps: int) -> float:
    """A cosine up from lr/25 over the first quarter of all steps, then a cosine down to lr/250,000."""
    start, end = lr / 25, lr / 25 / 1e4
    rise = max(0.25 * steps - 1, 0.0)
    if step < rise:
        return cosine(start, lr, step / rise)
    return cosine(lr, end, (step - rise) / max(steps - 1 - rise, 1e-9))
