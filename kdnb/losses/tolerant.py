"""Tolerant teacher: the patriarch is trained to leave probability on secondary classes, and its generations pass that on."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_classes, upcast


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
