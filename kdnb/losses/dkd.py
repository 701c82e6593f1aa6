"""Decoupled knowledge distillation: target-class and non-target-class parts of the soft-target loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_labels, check_logits, check_temperature, upcast


def _split(logits: Tensor, labels: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y (...), log sum_{k != y} p_k (...) and log of the softmax over the non-target classes (..., K), whatever stands at y."""
    log_p = F.log_softmax(upcast(logits) / temperature, dim=-1)
    # log-sum-exp, not log(1 - p_y): a student that is sure of the target keeps a finite loss and an exact gradient
    log_rest = log_p.masked_fill(target, -torch.inf).logsumexp(-1)
    log_target = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return log_target, log_rest, log_p - log_rest.unsqueeze(-1)


def dkd_per_sample(
    logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of every row; see `dkd_loss` for the equations.

    Args:
        logits_s, logits_t: (..., K) float, classes last; the teacher's are treated as constants.
        labels: (...) int64, one class id a row.
        temperature: tau > 0.
    Returns:
        Two (...) tensors, TCKD and NCKD, nats, tau^2 included.
    Raises:
        InputError: shapes differ, K < 2, labels of another shape or dtype, or temperature not in (0, inf).
    """
    check_logits(logits_s, logits_t)
    check_labels(labels, logits_s.shape[:-1])
    check_temperature(temperature)
    target = torch.arange(logits_s.shape[-1], device=labels.device) == labels.unsqueeze(-1)  # (..., K)
    target_s, rest_s, others_s = _split(logits_s, labels, target, temperature)
    target_t, rest_t, others_t = _split(logits_t.detach(), labels, target, temperature)
    tckd = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    nckd = (others_t.masked_fill(target, -torch.inf).exp() * (others_t - others_s)).sum(-1)
    return temperature**2 * tckd, temperature**2 * nckd


def dkd_loss(
    logits_s: Tensor, logits_t: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Decoupled knowledge distillation.

        L = alpha TCKD + beta NCKD
        TCKD = tau^2 mean_b KL([q_y, 1 - q_y] || [p_y, 1 - p_y])
        NCKD = tau^2 mean_b KL(q^ || p^)

    with p, q the softmax of student and teacher at tau and p^, q^ the same restricted to the classes k != y. Plain soft targets are
    TCKD + (1 - q_y) NCKD: a teacher that is sure of the target silences NCKD there, and does not here.

    Args:
        logits_s: (B, K) float, student logits; gradients flow here only.
        logits_t: (B, K) float, teacher logits; treated as constants.
        labels: (B,) int64, the true class.
        alpha, beta: weights of the two parts. Published beta depends on the pair: 2, 6 or 8 on CIFAR-100.
        temperature: tau > 0.
    Returns:
        Scalar, nats, in float32 at least.
    Raises:
        InputError: shapes differ, K < 2, labels of another shape or dtype, or temperature not in (0, inf).

    Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022, equations 5-7. Released code takes the logarithm of
    a summed probability, which is -inf for a saturated student, and restricts by subtracting 1000 from the target logit; values agree.
    """
    tckd, nckd = dkd_per_sample(logits_s, logits_t, labels, temperature)
    return (alpha * tckd + beta * nckd).mean()
