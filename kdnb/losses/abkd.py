"""ABKD: the alpha-beta divergence between teacher and student, with the forward and the reverse KL as its corners."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_logits, check_temperature, upcast


def _divergence(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """(...) alpha-beta divergence of log-probabilities (..., K), p first; at the limits of its formula by continuity."""
    total = alpha + beta
    if alpha == 0 and beta == 0:
        summands = (log_q - log_p).square() / 2
    elif total == 0:
        difference = alpha * (log_p - log_q)
        summands = (torch.expm1(difference) - difference) / alpha**2
    elif beta == 0:
        summands = (alpha * log_p).exp() * (alpha * (log_p - log_q))
        summands = (summands - (alpha * log_p).exp() + (alpha * log_q).exp()) / alpha**2
    elif alpha == 0:
        return _divergence(log_q, log_p, beta, alpha)
    else:
        mixed = (alpha * log_p + beta * log_q).exp()
        own = (alpha * (total * log_p).exp() + beta * (total * log_q).exp()) / total
        summands = (own - mixed) / (alpha * beta)
    return summands.sum(-1)


def ab_per_sample(
    logits_s: Tensor, logits_t: Tensor, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0
) -> Tensor:
    """The alpha-beta divergence of every row.

        D = - 1 / (alpha beta) sum_k [ p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta) - beta / (alpha + beta) q^(alpha + beta) ]

    with p the teacher's and q the student's softmax at tau; no tau^2. (1, 0) is KL(p || q), (0, 1) is KL(q || p). Where alpha, beta or
    their sum is 0 the formula has a limit, and the limit is meant:

        beta = 0:       1 / alpha^2 sum [ p^alpha ln(p^alpha / q^alpha) - p^alpha + q^alpha ];   alpha = 0: the same of (q, p, beta)
        beta = -alpha:  1 / alpha^2 sum [ ln(q^alpha / p^alpha) + p^alpha / q^alpha - 1 ];       both 0: 1/2 sum (ln q - ln p)^2

    Args:
        logits_s, logits_t: (..., K) float, classes last; the teacher's are treated as constants.
        alpha: how much weight goes to the classes where teacher and student differ most.
        beta: how much goes to those the student is sure of. Negative powers of tiny probabilities overflow.
        temperature: tau > 0.
    Returns:
        (...) tensor in float32 at least; 0 at agreement.
    Raises:
        InputError: shapes differ, K < 2, or temperature not in (0, inf).

    Source: Wang et al., ABKD, ICML 2025. Released code scales the limits otherwise (`ab_per_sample_released`), and
    takes powers and logarithms of probabilities that have underflown; here both come from log-probabilities.
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    log_p, log_q = (F.log_softmax(upcast(logits) / temperature, dim=-1) for logits in (logits_t.detach(), logits_s))
    return _divergence(log_p, log_q, alpha, beta)


def ab_per_sample_released(
    logits_s: Tensor, logits_t: Tensor, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0
) -> Tensor:
    """The same in released arithmetic: the limits are divided by alpha or beta once, not by its square.

    It differs from `ab_per_sample` only where alpha = 0, beta = 0 or alpha = -beta, and there not at 1: a step on the way to the limit.
    Arguments, result and errors as `ab_per_sample`.

    Source: released code of Wang et al., ICML 2025.
    """
    at_a_limit = 0 in (alpha, beta, alpha + beta)
    scale = (alpha or beta or 1.0) if at_a_limit else 1.0
    return scale * ab_per_sample(logits_s, logits_t, alpha, beta, temperature)
