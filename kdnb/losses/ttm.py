"""Transformed teacher matching (TTM): a temperature for the teacher only, the student at 1."""

import torch
from torch import Tensor

from kdnb.losses.checks import upcast
from kdnb.losses.kd import kd_per_sample


def ttm_per_sample(logits_s: Tensor, logits_t: Tensor, exponent: float = 0.1) -> Tensor:
    """The distance of every row from the power-transformed teacher.

        l_b = KL(q_b || softmax(z^s_b)),   q_k = Q_k^gamma / sum_j Q_j^gamma = softmax(gamma z^t)_k,   Q = softmax(z^t)

    Args:
        logits_s, logits_t: (B, K) float; the teacher's are treated as constants.
        exponent: gamma > 0, the inverse of the teacher's temperature. No power of it multiplies the loss.
    Returns:
        (B,) tensor, nats, in float32 at least.
    Raises:
        InputError: shapes differ or K < 2.

    Source: Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.
    """
    return kd_per_sample(logits_s, exponent * upcast(logits_t), 1.0)


@torch.no_grad()
def teacher_doubt(logits_t: Tensor, exponent: float = 0.2) -> Tensor:
    """The weight of a sample in WTTM: how far its teacher is from certainty.

        U_b = sum_k Q_bk^gamma,   ln U = LSE(gamma z^t) - gamma LSE(z^t)

    Args:
        logits_t: (B, K) float.
        exponent: gamma > 0.
    Returns:
        (B,) tensor, constant; for gamma < 1 from 1 (a certain teacher) to K^(1 - gamma) (a uniform one).
    """
    logits_t = upcast(logits_t)
    return ((exponent * logits_t).logsumexp(-1) - exponent * logits_t.logsumexp(-1)).exp()


def ttm_loss(logits_s: Tensor, logits_t: Tensor, exponent: float = 0.1) -> Tensor:
    """Transformed teacher matching: the batch mean of `ttm_per_sample`; zero where softmax(z^s) = softmax(gamma z^t)."""
    return ttm_per_sample(logits_s, logits_t, exponent).mean()


def wttm_loss(logits_s: Tensor, logits_t: Tensor, exponent: float = 0.2) -> Tensor:
    """Weighted transformed teacher matching: L = mean_b U_b l_b, with `teacher_doubt` U and the rows l of `ttm_per_sample`."""
    return (teacher_doubt(logits_t, exponent) * ttm_per_sample(logits_s, logits_t, exponent)).mean()
