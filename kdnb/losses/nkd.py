"""Normalised distillation (NKD), its teacher-free form, and universal self-distillation (USKD)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_classes, check_labels, check_logits, check_temperature, upcast
from kdnb.losses.dkd import at, one_hot, without_classes

_EPS = 1e-6  # of the released ranking


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(upcast(logits), dim=-1)


def target_cross_entropy(logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the label, weighted by the teacher's probability of it.

        L = - mean_b Q_by log P_by,   P, Q = softmax(z)

    Args:
        logits_s, logits_t: (B, K) float; the teacher's are treated as constants.
        labels: (B,) int64.
    Returns:
        Scalar, nats, in float32 at least; not 0 at agreement.
    Raises:
        InputError: shapes differ, K < 2, or labels of another shape or dtype.
    """
    check_logits(logits_s, logits_t)
    check_labels(labels, logits_s.shape[:1])
    return -(at(_log_softmax(logits_t.detach()), labels).exp() * at(_log_softmax(logits_s), labels)).mean()


def nkd_parts(logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float = 3.0) -> tuple[Tensor, Tensor]:
    """The target and the non-target part of NKD.

        target = - mean_b Q_by log P_by                             at temperature 1
        non-target = - tau^2 mean_b sum_{k != y} q^_bk log p^_bk    at tau

    with p^, q^ the softmax over the classes other than the label. Both are cross-entropies, not divergences: at agreement they are the
    teacher's entropies, not 0.

    Args:
        logits_s: (B, K) float, student logits; gradients flow here only.
        logits_t: (B, K) float, teacher logits; treated as constants.
        labels: (B,) int64.
        temperature: tau > 0.
    Returns:
        Two scalars, nats, in float32 at least.
    Raises:
        InputError: shapes differ, K < 2, labels of another shape or dtype, or temperature not in (0, inf).

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023.
    """
    target = target_cross_entropy(logits_s, logits_t, labels)
    check_temperature(temperature)
    log_p, log_q = (
        without_label(F.log_softmax(upcast(logits) / temperature, dim=-1), labels)
        for logits in (logits_s, logits_t.detach())
    )
    return target, temperature**2 * non_target_cross_entropy(log_p, log_q.exp(), labels)


def without_label(log_p: Tensor, labels: Tensor) -> Tensor:
    """(B, K) log-probabilities over the classes other than the label, where -inf stands."""
    label = one_hot(labels, log_p.shape[-1])
    return without_classes(log_p, label)[1].masked_fill(label, -torch.inf)


def non_target_cross_entropy(log_p: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """- mean_b sum_{k != y} q_bk log p_bk of (B, K) log-probabilities and probabilities; what stands at the label counts nothing."""
    label = one_hot(labels, log_p.shape[-1])
    return -(q * log_p.masked_fill(label, 0.0)).sum(-1).mean()


@torch.no_grad()
def self_weights(logits_s: Tensor, labels: Tensor, power: int = 1) -> Tensor:
    """What stands for the teacher's probability of the label where there is no teacher: the student's own, moved to mean 1.

        w_b = P_by^n + 1 - mean_b P_by^n

    Args:
        logits_s: (B, K) float.
        labels: (B,) int64.
        power: n, 1 in tf-NKD and 2 in USKD.
    Returns:
        (B,) tensor, constant, in (0, 2). It depends on the batch.
    Raises:
        InputError: K < 2, or labels of another shape or dtype.
    """
    check_classes(logits_s)
    check_labels(labels, logits_s.shape[:1])
    certainty = at(_log_softmax(logits_s), labels).exp() ** power
    return certainty + 1 - certainty.mean()


def self_target_cross_entropy(logits_s: Tensor, labels: Tensor, power: int = 1) -> Tensor:
    """The target part without a teacher: L = - mean_b w_b log P_by, with `self_weights` w.

    Arguments and errors as `self_weights`; the gradient flows through log P only. Returns a scalar, nats.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, first arXiv version (tf-NKD, power 1); ICCV 2023 (USKD, power 2).
    """
    return -(self_weights(logits_s, labels, power) * at(_log_softmax(logits_s), labels)).mean()


def _zipf_labels(score: Tensor, labels: Tensor) -> Tensor:
    """1 / rank of every class by its score, without the label, rows summing to 1. The label takes a rank before it is left out."""
    rank = score.argsort(stable=True, dim=-1, descending=True).argsort(-1) + 1
    soft = (1.0 / rank.to(score.dtype)).masked_fill(one_hot(labels, score.shape[-1]), 0.0)
    return soft / soft.sum(-1, keepdim=True)


@torch.no_grad()
def uskd_soft_labels(logits_s: Tensor, logits_weak: Tensor, labels: Tensor) -> Tensor:
    """Soft labels of the classes beside the target, from the order in which student and weak head rank them.

        s_bk = 1 / rank_bk / sum_{j != y} 1 / rank_bj,   ranked by  W_bk / (1 - W_by) + P_bk / (1 - P_by)

    Args:
        logits_s, logits_weak: (B, K) float, of the student and of its weak head; P and W are their softmaxes.
        labels: (B,) int64.
    Returns:
        (B, K) constant, 0 at the label, rows sum to 1. The label is ranked with the others: where it comes first, they begin at 1/2.
    Raises:
        InputError: shapes differ, K < 2, or labels of another shape or dtype.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023. The released code ranks by `uskd_soft_labels_released`.
    """
    check_logits(logits_weak, logits_s)
    check_labels(labels, logits_s.shape[:1])
    label = one_hot(labels, logits_s.shape[-1])
    ratios = (without_classes(_log_softmax(logits), label)[1].exp() for logits in (logits_weak, logits_s))
    return _zipf_labels(sum(ratios), labels)


@torch.no_grad()
def uskd_soft_labels_released(logits_s: Tensor, logits_weak: Tensor, labels: Tensor) -> Tensor:
    """The same in released arithmetic: the student's logarithms stand where its probabilities should.

    Ranked by  W_bk / (1 - W_by + 1e-6) + log P_bk / (1 - log P_by + 1e-6). Arguments, result and errors as `uskd_soft_labels`.

    Source: released code of Yang et al., ICCV 2023, where a variable is overwritten by its logarithm.
    """
    check_logits(logits_weak, logits_s)
    check_labels(labels, logits_s.shape[:1])
    weak, log_p = _log_softmax(logits_weak).exp(), _log_softmax(logits_s)
    ratios = (values / (1 - at(values, labels).unsqueeze(-1) + _EPS) for values in (weak, log_p))
    return _zipf_labels(sum(ratios), labels)


def uskd_non_target(logits_s: Tensor, soft_labels: Tensor, labels: Tensor) -> Tensor:
    """The non-target part of USKD, at temperature 1.

        L = - mean_b sum_{k != y} s_bk log p^_bk,   p^ the student's softmax over the classes other than the label

    Args:
        logits_s: (B, K) float.
        soft_labels: (B, K) of `uskd_soft_labels`.
        labels: (B,) int64.
    Returns:
        Scalar, nats, in float32 at least.
    """
    return non_target_cross_entropy(without_label(_log_softmax(logits_s), labels), soft_labels, labels)
