"""Refined logit distillation (RLD): a teacher that errs is followed only where it does not contradict the label."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_labels, check_logits, check_temperature, upcast
from kdnb.losses.dkd import at, binary_kl, one_hot, restricted_kl, without_classes
from kdnb.losses.sdd import check_regions, region_rows, sdd_weights


def rld_left_out(logits_t: Tensor, labels: Tensor) -> Tensor:
    """The classes that RLD takes out of the comparison: the label and all that the teacher ranks at or above it.

    Args:
        logits_t: (..., K) float.
        labels: (...) int64.
    Returns:
        (..., K) bool; a whole row where the label is the teacher's last choice.
    """
    return logits_t >= at(logits_t, labels).unsqueeze(-1)


def rld_per_sample(
    logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float = 4.0, top_temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """SCD and MCD of every row.

        SCD = tau_a^2 KL([Q_t*, 1 - Q_t*] || [P_y, 1 - P_y])  at tau_a,   t* = argmax_k z^t_k
        MCD = tau^2 KL(q^ || p^)                              at tau

    SCD asks the student to be as sure of the label as the teacher is of its own answer, whatever that is. In MCD p^ and q^ are student
    and teacher restricted to the classes that the teacher ranks below the label (ties are left out); where none is below, MCD = 0.

    Args:
        logits_s, logits_t: (..., K) float, classes last; the teacher's are treated as constants.
        labels: (...) int64.
        temperature: tau > 0, of MCD.
        top_temperature: tau_a > 0, of SCD.
    Returns:
        Two (...) tensors, SCD and MCD, nats, in float32 at least.
    Raises:
        InputError: shapes differ, K < 2, labels of another shape or dtype, or a temperature not in (0, inf).

    Source: Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025. Released code takes the logarithm of a
    probability (infinite where the student gives the label none) and fills with -1e9, which float16 cannot hold; values agree.
    """
    check_logits(logits_s, logits_t)
    check_labels(labels, logits_s.shape[:-1])
    check_temperature(temperature)
    check_temperature(top_temperature)
    logits_s, logits_t = upcast(logits_s), upcast(logits_t.detach())
    num_classes, top = logits_s.shape[-1], logits_t.argmax(-1)

    log_s, log_t = (F.log_softmax(logits / top_temperature, dim=-1) for logits in (logits_s, logits_t))
    rest_s, rest_t = (
        without_classes(log_p, one_hot(index, num_classes))[0] for log_p, index in ((log_s, labels), (log_t, top))
    )
    scd = binary_kl(at(log_t, top), rest_t, at(log_s, labels), rest_s)

    left_out = rld_left_out(logits_t, labels)
    nothing_stays = left_out.all(-1)
    left_out = left_out & ~nothing_stays.unsqueeze(-1)
    (_, others_s), (_, others_t) = (
        without_classes(F.log_softmax(logits / temperature, dim=-1), left_out) for logits in (logits_s, logits_t)
    )
    mcd = restricted_kl(others_t, others_s, left_out).masked_fill(nothing_stays, 0.0)
    return top_temperature**2 * scd, temperature**2 * mcd


def rld_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    top_temperature: float = 1.0,
) -> Tensor:
    """Refined logit distillation: L = mean_b (alpha SCD_b + beta MCD_b), see `rld_per_sample`; a scalar, nats."""
    scd, mcd = rld_per_sample(logits_s, logits_t, labels, temperature, top_temperature)
    return (alpha * scd + beta * mcd).mean()


def sdd_rld_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    top_temperature: float = 1.0,
    complementary_weight: float = 2.0,
    standardize_logits: bool = False,
) -> Tensor:
    """RLD in image regions, each with its own ranking of the classes, weighted as in SDD.

        L = 1 / (B M) sum_b sum_m w_bm (alpha SCD_bm + beta MCD_bm)

    Args:
        logits_s, logits_t: (B, K, M) region logits, region 0 the whole image; the teacher's are treated as constants.
        labels: (B,) int64.
        alpha, beta, temperature, top_temperature: as `rld_loss`.
        complementary_weight: w where the teacher is right for one of image and region and wrong for the other; else w = 1.
        standardize_logits: z-score every region's row first (LSKD).
    Returns:
        Scalar, nats. With M = 1 it is `rld_loss`.
    Raises:
        InputError: shapes that do not fit, K < 2, or a temperature not in (0, inf).

    Source: iversonshao/DSKD, released code.
    """
    check_regions(logits_s, logits_t, labels)
    rows_s, rows_t = (region_rows(logits, standardize_logits) for logits in (logits_s, logits_t.detach()))
    labels_of_rows = labels.unsqueeze(1).expand(-1, logits_s.shape[2])
    scd, mcd = rld_per_sample(rows_s, rows_t, labels_of_rows, temperature, top_temperature)
    return (sdd_weights(logits_t, labels, complementary_weight) * (alpha * scd + beta * mcd)).mean()
