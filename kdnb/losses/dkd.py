"""Decoupled knowledge distillation: target-class and non-target-class parts of the soft-target loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_labels, check_logits, check_temperature, upcast


def without_classes(log_p: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of a distribution without some of its classes: its mass and the distribution that the others form.

        log sum_{k in S} p_k,   log (p_k / sum_{j in S} p_j),   S: the classes that stay

    A log-sum-exp, not log(1 - sum of the others): where nothing representable is left, value and gradient stay exact.

    Args:
        log_p: (..., K) float, log-probabilities.
        left_out: (..., K) bool; at least one class of every row stays.
    Returns:
        (...) logarithm of the mass, and (..., K) log-probabilities; what stands at classes left out means nothing.
    """
    log_mass = log_p.masked_fill(left_out, -torch.inf).logsumexp(-1)
    return log_mass, log_p - log_mass.unsqueeze(-1)


def at(values: Tensor, labels: Tensor) -> Tensor:
    """(..., K) values at one class a row: (...)."""
    return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(..., K) bool, True at the label."""
    return torch.arange(num_classes, device=labels.device) == labels.unsqueeze(-1)


def binary_kl(log_q: Tensor, log_rest_q: Tensor, log_p: Tensor, log_rest_p: Tensor) -> Tensor:
    """KL([q, 1 - q] || [p, 1 - p]) from the four logarithms, all of one shape."""
    return log_q.exp() * (log_q - log_p) + log_rest_q.exp() * (log_rest_q - log_rest_p)


def restricted_kl(log_q: Tensor, log_p: Tensor, left_out: Tensor) -> Tensor:
    """(...) KL over the classes that stay, of log-probabilities (..., K) as `without_classes` gives them."""
    return (log_q.masked_fill(left_out, -torch.inf).exp() * (log_q - log_p)).sum(-1)


def dkd_per_sample(
    logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float | Tensor = 4.0
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
    target = one_hot(labels, logits_s.shape[-1])
    log_s, log_t = (F.log_softmax(upcast(logits) / temperature, dim=-1) for logits in (logits_s, logits_t.detach()))
    rest_s, others_s = without_classes(log_s, target)
    rest_t, others_t = without_classes(log_t, target)
    tckd = binary_kl(at(log_t, labels), rest_t, at(log_s, labels), rest_s)
    nckd = restricted_kl(others_t, others_s, target)
    return temperature**2 * tckd, temperature**2 * nckd


def dkd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor = 4.0,
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
