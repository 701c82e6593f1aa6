"""Plain cross-entropy and Hinton's soft-target loss."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_classes, check_labels, check_logits, check_temperature, upcast


def ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the true labels, batch mean.

        L = - mean_b log softmax(z_b)_{y_b}

    Args:
        logits: (B, K) float.
        labels: (B,) int64 in [0, K).
    Returns:
        Scalar, nats, in float32 at least.
    Raises:
        InputError: fewer than 2 classes, or labels of another shape or dtype.
    """
    check_classes(logits)
    check_labels(labels, logits.shape[:1])
    return F.cross_entropy(upcast(logits), labels)


def kd_per_sample(logits_s: Tensor, logits_t: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Hinton's soft-target loss of every row: `kd_loss` before its mean.

    Args:
        logits_s, logits_t: (..., K) float, classes last; the teacher's are treated as constants.
        temperature: tau > 0; where it is a tensor of one element, the gradient reaches it, through the softmax of the teacher too.
    Returns:
        (...) tensor, nats, tau^2 included.
    Raises:
        InputError: shapes differ, K < 2, or temperature not in (0, inf).
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    log_s = F.log_softmax(upcast(logits_s) / temperature, dim=-1)
    log_t = F.log_softmax(upcast(logits_t.detach()) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)


def kd_loss(logits_s: Tensor, logits_t: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Hinton's soft-target loss.

        L = tau^2 mean_b sum_k p^t_bk (log p^t_bk - log p^s_bk),   p = softmax(z / tau)

    Args:
        logits_s: (B, K) float, student logits; gradients flow here only.
        logits_t: (B, K) float, teacher logits; treated as constants.
        temperature: tau > 0, dimensionless; 4 is the CIFAR-100 setting of the RepDistiller and mdistiller tables.
    Returns:
        Scalar, nats, in float32 at least. Zero exactly when both softmaxes agree.
    Raises:
        InputError: shapes differ, K < 2, or temperature not in (0, inf).

    Source: Hinton, Vinyals, Dean, NIPS workshop 2014 (arXiv 2015), section 2. tau^2 keeps the gradient's size independent of tau.
    The mean is over the batch and the sum over classes; dividing by B K (element mean) would weaken the term K times.

    >>> import torch
    >>> z = torch.tensor([[2.0, 0.0]])
    >>> kd_loss(z, z).item(), round(kd_loss(-z, z, temperature=1.0).item(), 4)
    (0.0, 1.5232)
    """
    return kd_per_sample(logits_s, logits_t, temperature).mean()
