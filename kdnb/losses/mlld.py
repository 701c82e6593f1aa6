"""Multi-level logit distillation (MLLD): agreement in samples, in batch relations and in class relations, at several temperatures."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_logits, check_temperature, no_autocast, upcast
from kdnb.losses.standardization import standardize

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)


def _stack(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """(B, K) -> (S, B, K) log-probabilities, one slice a temperature."""
    logits = upcast(logits)
    scale = logits.new_tensor(temperatures).view(-1, 1, 1)
    return F.log_softmax(logits / scale, dim=-1)


def kd_rows(logits_s: Tensor, logits_t: Tensor, temperatures: Sequence[float]) -> Tensor:
    """(S, B) soft-target loss of every temperature and sample, tau^2 included: `kd_per_sample` for all temperatures at once."""
    log_s, log_t = _stack(logits_s, temperatures), _stack(logits_t.detach(), temperatures)
    rows = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    return rows * rows.new_tensor(temperatures).square().unsqueeze(1)


def _gram_difference(p: Tensor, q: Tensor) -> Tensor:
    """Row sums of (Q Q^T - P P^T)^2 over the last two dimensions: (S, N, D) -> (S, N)."""
    with no_autocast(p):  # a difference of nearly equal products; half precision would leave only rounding
        return (q @ q.mT - p @ p.mT).square().sum(-1)


def batch_relation_rows(logits_s: Tensor, logits_t: Tensor, temperatures: Sequence[float]) -> Tensor:
    """How differently two networks relate the samples of a batch.

        r_b = sum_b' ((Q Q^T)_bb' - (P P^T)_bb')^2,   P, Q = softmax(z / tau) of student and teacher

    Args:
        logits_s, logits_t: (B, K); the teacher's are treated as constants.
        temperatures: S values > 0. No tau^2 factor.
    Returns:
        (S, B); its mean over samples is ||Q Q^T - P P^T||_F^2 / B.
    """
    return _gram_difference(_stack(logits_s, temperatures).exp(), _stack(logits_t.detach(), temperatures).exp())


def class_relation_rows(logits_s: Tensor, logits_t: Tensor, temperatures: Sequence[float]) -> Tensor:
    """How differently two networks relate the classes over a batch: as `batch_relation_rows` with P^T P (K x K) in place of P P^T.

    Returns:
        (S, K); its mean over classes is ||Q^T Q - P^T P||_F^2 / K.
    """
    return _gram_difference(_stack(logits_s, temperatures).exp().mT, _stack(logits_t.detach(), temperatures).exp().mT)


def confidence_masks(logits_t: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples and classes the teacher is least sure of.

    Args:
        logits_t: (B, K) teacher logits of the weak view.
    Returns:
        (B,) bool, samples whose largest probability is at most the batch median; (K,) bool, classes whose summed probability is.
    """
    p = F.softmax(upcast(logits_t.detach()), dim=-1)
    confidence, mass = p.max(dim=1).values, p.sum(0)
    # the lower of the middle two of an even count, as torch gives it, selects the same as the value midway between them
    return confidence <= confidence.median(), mass <= mass.median()


def _check(weak_s, strong_s, weak_t, strong_t, temperatures) -> None:
    check_logits(weak_s, weak_t)
    check_logits(strong_s, strong_t)
    check_logits(weak_s, strong_s)
    for temperature in temperatures:
        check_temperature(temperature)


def mlld_loss(
    weak_s: Tensor,
    strong_s: Tensor,
    weak_t: Tensor,
    strong_t: Tensor,
    temperatures: Sequence[float] = TEMPERATURES,
    standardize_logits: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-level logit distillation with masks that select and with both views in every term.

        KD    = sum_tau mean_b m_b KD_tau,b(weak)    + sum_tau mean_b KD_tau,b(strong)
        Batch = sum_tau mean_b m_b r_tau,b(weak)     + sum_tau mean_b r_tau,b(strong)
        Class = sum_tau mean_k c_k r'_tau,k(weak)    + sum_tau mean_k r'_tau,k(strong)

    KD_tau,b is the soft-target loss of a sample; r, r' are the rows of `batch_relation_rows` and `class_relation_rows`; m, c the
    `confidence_masks` of the weakly augmented view.

    Args:
        weak_s, strong_s: (B, K) student logits of the weakly and strongly augmented view.
        weak_t, strong_t: (B, K) teacher logits of the same views, treated as constants.
        temperatures: all tau, the base temperature first.
        standardize_logits: z-score the logits in the KD term (LSKD); relations and masks keep the raw logits.
    Returns:
        (KD, Class, Batch), three scalars without weights.
    Raises:
        InputError: shapes differ, K < 2, or a temperature not in (0, inf).

    Source: Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023, section 3. The masks and the strong view are in released code only,
    which multiplies a mask with an already averaged loss and leaves most strong terms out: `mlld_loss_released`. This is what they were for.
    """
    _check(weak_s, strong_s, weak_t, strong_t, temperatures)
    samples, classes = confidence_masks(weak_t)
    z = standardize if standardize_logits else upcast
    parts = (
        (
            kd_rows(z(weak_s), z(weak_t.detach()), temperatures),
            kd_rows(z(strong_s), z(strong_t.detach()), temperatures),
            samples,
        ),
        (
            class_relation_rows(weak_s, weak_t, temperatures),
            class_relation_rows(strong_s, strong_t, temperatures),
            classes,
        ),
        (
            batch_relation_rows(weak_s, weak_t, temperatures),
            batch_relation_rows(strong_s, strong_t, temperatures),
            samples,
        ),
    )
    kd, of_classes, of_batch = ((weak * mask + strong).mean(-1).sum() for weak, strong, mask in parts)
    return kd, of_classes, of_batch


def mlld_loss_released(
    weak_s: Tensor,
    strong_s: Tensor,
    weak_t: Tensor,
    strong_t: Tensor,
    temperatures: Sequence[float] = TEMPERATURES,
    standardize_logits: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-level logit distillation in the arithmetic of its released code, which the published tables come from.

        KD    = f_m sum_tau KD_tau(weak) + sum_{first three} KD_tau(strong) + sum_{other} KD_tau(weak)
        Class = f_c sum_tau mean_k r'_tau,k(weak),   Batch = f_m sum_tau mean_b r_tau,b(weak)

    f_m, f_c are the fractions of selected samples and classes (about one half): the masks multiply averages, so they only rescale;
    temperatures 2 and 6 of the "strong" sum see the weak view; strong relations are not used at all.
    Arguments, returns and errors as `mlld_loss`. Source: Jin-Ying/Multi-Level-Logit-Distillation; with `standardize_logits`,
    sunshangquan/logit-standardization-KD.
    """
    _check(weak_s, strong_s, weak_t, strong_t, temperatures)
    samples, classes = (mask.to(upcast(weak_s).dtype).mean() for mask in confidence_masks(weak_t))
    z = standardize if standardize_logits else upcast
    weak = kd_rows(z(weak_s), z(weak_t.detach()), temperatures).mean(1)
    strong = kd_rows(z(strong_s), z(strong_t.detach()), temperatures[:3]).mean(1)
    kd = samples * weak.sum() + strong.sum() + weak[3:].sum()
    of_classes = classes * class_relation_rows(weak_s, weak_t, temperatures).mean(1).sum()
    of_batch = samples * batch_relation_rows(weak_s, weak_t, temperatures).mean(1).sum()
    return kd, of_classes, of_batch
