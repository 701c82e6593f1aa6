"""Tolerant teacher: the patriarch is trained to leave probability on secondary classes, and its generations pass that on."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_classes, upcast
from kdnb.losses.kd import ce_loss, kd_loss


def top_score_difference(logits: Tensor, num_top: int = 5) -> Tensor:
    """How far the primary class stands above the mean of the next ones.

        TSD = mean_b [ f_(1) - 1/(N-1) sum_{k=2..N} f_(k) ],   f = softmax(z) sorted descending

    Args:
        logits: (B, K) float.
        num_top: N, counting the primary class, 2 <= N <= K.
    Returns:
        Scalar in [0, 1].
    Raises:
        InputError: N outside [2, K].

    Source: Yang, Xie, Qiao, Yuille, AAAI 2019 (formula from a public summary; no author code). A third-party port divides by N.
    """
    check_classes(logits)
    if not 2 <= num_top <= logits.shape[1]:
        raise InputError(f"num_top must lie in [2, K = {logits.shape[1]}], got {num_top}")
    top = F.softmax(upcast(logits), dim=1).topk(num_top, dim=1).values
    return (top[:, 0] - top[:, 1:].mean(1)).mean()


def patriarch_loss(logits: Tensor, labels: Tensor, ce_weight: float = 0.6, num_top: int = 5) -> Tensor:
    """Generation 0: cross-entropy with the top score difference held small.

        L = eta CE(z, y) + (1 - eta) TSD

    Args:
        logits: (B, K) float.
        labels: (B,) int64 class ids.
        ce_weight: eta in [0, 1].
        num_top: N of `top_score_difference`.
    Returns:
        Scalar.
    Raises:
        InputError: eta outside [0, 1] or N outside [2, K].

    Source: Yang et al., AAAI 2019. eta and N could not be read from the paper; the defaults are assumptions.
    """
    if not 0 <= ce_weight <= 1:
        raise InputError(f"ce_weight must lie in [0, 1], got {ce_weight}")
    return ce_weight * ce_loss(logits, labels) + (1 - ce_weight) * top_score_difference(logits, num_top)


def generation_loss(logits_s: Tensor, logits_t: Tensor, labels: Tensor, ce_weight: float = 0.6) -> Tensor:
    """Generation m >= 1, taught by generation m - 1 of the same architecture, at temperature 1.

        L = lambda CE(z^s, y) + (1 - lambda) KL(softmax z^t || softmax z^s)

    Args:
        logits_s: (B, K) float, gradients flow here.
        logits_t: (B, K) float, treated as constants.
        labels: (B,) int64 class ids.
        ce_weight: lambda in [0, 1].
    Returns:
        Scalar, nats.
    Raises:
        InputError: lambda outside [0, 1] or shapes differ.

    Source: Yang et al., AAAI 2019. lambda could not be read from the paper; the default is an assumption.
    """
    if not 0 <= ce_weight <= 1:
        raise InputError(f"ce_weight must lie in [0, 1], got {ce_weight}")
    return ce_weight * ce_loss(logits_s, labels) + (1 - ce_weight) * kd_loss(logits_s, logits_t, temperature=1.0)
