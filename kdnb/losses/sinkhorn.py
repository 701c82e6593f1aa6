"""Balanced soft assignment of samples to prototypes."""

import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import upcast


@torch.no_grad()
def sinkhorn(logits: Tensor, epsilon: float = 0.05, num_iters: int = 3) -> Tensor:
    """Sinkhorn-Knopp: the transport plan between samples and classes of equal mass, as targets for the samples.

        Q = exp(z / eps);  repeat n times: every class's mass to 1/K, then every sample's to 1/B;  return B Q

    Computed as alternating log-sum-exp in log space, so small eps or large logits cannot overflow; the constants 1/K and 1/B cancel
    in the last step, which leaves rows that sum to 1.

    Args:
        logits: (..., B, K) float; every leading entry (view, head) is balanced on its own.
        epsilon: entropy weight > 0, in units of the logits (cosines).
        num_iters: n >= 1.
    Returns:
        (..., B, K), constant, rows sum to 1; columns to B/K in the limit of many iterations.
    Raises:
        InputError: eps <= 0 or n < 1.

    Source: Cuturi, NeurIPS 2013; as used by Gu, Zhang, Xu, He, ICCV 2023 (eps 0.05, n 3). Deviations: the released code
    works with exponentials, one view and head at a time, and ignores its configured values.
    """
    if not epsilon > 0 or num_iters < 1:
        raise InputError(
            f"sinkhorn needs epsilon > 0 and num_iters >= 1, got epsilon = {epsilon}, num_iters = {num_iters}"
        )
    log_q = upcast(logits) / epsilon
    for _ in range(num_iters):
        log_q = log_q - log_q.logsumexp(-2, keepdim=True)
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    return log_q.exp()
