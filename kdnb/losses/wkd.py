"""WKD-L: the teacher's probability mass is carried to the student's, and alike classes are close to each other."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_labels, check_logits, check_temperature, no_autocast, upcast
from kdnb.losses.nkd import without_label

_FLOOR = 1e-8  # of costs and of the denominators; results depend on it at 1e-6


@torch.no_grad()
def class_cka_cost(class_features: Tensor) -> Tensor:
    """How unlike the classes are to a network: one minus the linear CKA of their features.

        d_ij = 1 - |X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|),   X_i: centred features of class i, Frobenius norms

    Args:
        class_features: (K, n, D) float, n samples of each class. Sample m of one class meets sample m of the other, whatever their order.
    Returns:
        (K, K) constant in [0, 1], symmetric, 0 on the diagonal. A class whose samples are all equal is like no other: 1.
    Raises:
        InputError: another number of dimensions.

    Source: Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, NeurIPS 2024; Kornblith,
    Norouzi, Lee, Hinton, ICML 2019.
    """
    if class_features.dim() != 3:
        raise InputError(f"class_features must be (K, n, D), got shape {tuple(class_features.shape)}")
    centred = upcast(class_features)
    centred = centred - centred.mean(1, keepdim=True)
    with no_autocast(centred):  # a class at a time: (K, D, D) products are what there is room for
        products = torch.stack([torch.linalg.matrix_norm(centred.mT @ one).square() for one in centred])
    own = products.diagonal().sqrt()
    norms = own.unsqueeze(1) * own
    cost = torch.where(norms > 0, 1 - products / norms, 1.0).clamp(0, 1)
    return cost.fill_diagonal_(0.0)


@torch.no_grad()
def head_cosine_cost(head_weight: Tensor) -> Tensor:
    """How unlike the classes are to a classifier: one minus the cosine of their weight vectors.

    Args:
        head_weight: (K, D) float.
    Returns:
        (K, K) constant in [0, 2], 0 on the diagonal.

    Source: released code of Lv, Yang, Li, NeurIPS 2024, where it is not cut off from the gradient.
    """
    rows = F.normalize(upcast(head_weight), dim=1)
    with no_autocast(rows):
        return (1 - rows @ rows.T).fill_diagonal_(0.0)


def sharpen(cost: Tensor, sharpness: float = 1.0) -> Tensor:
    """c = 1 - exp(-s d): costs from distances, of the same shape; the larger s, the sooner all unlike classes are equally far."""
    return -torch.expm1(-sharpness * cost)


def floored(cost: Tensor) -> Tensor:
    """D = max(c, 0) + 1e-8: what transport pays."""
    return upcast(cost).clamp(min=0) + _FLOOR


def _log_product(log_x: Tensor, kernel: Tensor) -> Tensor:
    """log(x M + 1e-8), rows of x given by their logarithms."""
    shift = log_x.detach().amax(-1, keepdim=True)
    with no_autocast(log_x):
        product = (log_x - shift).exp() @ kernel
    product = product.clamp(min=torch.finfo(product.dtype).tiny).log() + shift
    return torch.logaddexp(product, torch.full_like(product, math.log(_FLOOR)))


def sinkhorn_potentials(
    log_p: Tensor, log_q: Tensor, cost: Tensor, regularization: float = 0.05, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """Entropy-regularised transport of one distribution to another, as logarithms of the two scalings of the plan.

        M = exp(-D / lambda),   u = 1 / n;   repeat:  v = q / (M^T u + 1e-8),   u = p / (M v + 1e-8);   T = diag(u) M diag(v)

    The kernel is shared by the batch: there is no (B, K, K). The gradient flows through all iterations.

    Args:
        log_p, log_q: (B, K) float, log-probabilities; -inf takes a class out of the transport. n is the number of classes of q that stay.
        cost: (K, K) float, D; rows go with p. Not negative.
        regularization: lambda > 0, in units of the cost.
        iterations: >= 1.
    Returns:
        log u and log v, (B, K). The marginal p of the plan is met, q only in the limit of many iterations.
    Raises:
        InputError: lambda <= 0 or iterations < 1.

    Source: Cuturi, NeurIPS 2013, with the guards of the released code of Lv, Yang, Li.
    """
    if not regularization > 0 or iterations < 1:
        raise InputError(
            f"transport needs regularization > 0 and iterations >= 1, got {regularization} and {iterations}"
        )
    kernel = (-cost / regularization).exp()
    stays = log_q > -torch.inf
    log_u = torch.zeros_like(log_p).masked_fill(~stays, -torch.inf) - stays.sum(-1, keepdim=True).to(log_p.dtype).log()
    for _ in range(iterations):
        log_v = log_q - _log_product(log_u, kernel)
        log_u = log_p - _log_product(log_v, kernel.T)
    return log_u, log_v


def transport_per_sample(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    cost: Tensor,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """What it costs to carry the teacher's probabilities to the student's, among the classes other than the label.

        L_b = <T_b, D>,   D = max(c, 0) + 1e-8 without the label's row and column,   T_b the plan between p^_b and q^_b

    with p^ and q^ the softmax of student and teacher at tau over the classes other than the label, T as in `sinkhorn_potentials`.

    Args:
        logits_s: (B, K) float, student logits; gradients flow here only.
        logits_t: (B, K) float, teacher logits; treated as constants.
        labels: (B,) int64.
        cost: (K, K) float, c, sharpened already; rows go with the student.
        temperature: tau > 0; no tau^2.
        regularization, iterations: of `sinkhorn_potentials`.
    Returns:
        (B,) tensor, units of the cost, in float32 at least. Not 0 at agreement: the regularised plan moves mass between near classes.
    Raises:
        InputError: shapes that do not fit, K < 2, labels of another shape or dtype, or a number out of range.

    Source: Lv, Yang, Li, NeurIPS 2024. Deviations: logarithms throughout, and no copy of the cost for each image.
    """
    check_logits(logits_s, logits_t)
    check_labels(labels, logits_s.shape[:1])
    check_temperature(temperature)
    if cost.shape != (logits_s.shape[1],) * 2:
        raise InputError(f"cost must be (K, K) for {logits_s.shape[1]} classes, got shape {tuple(cost.shape)}")
    log_p, log_q = (
        without_label(F.log_softmax(upcast(logits) / temperature, dim=-1), labels)
        for logits in (logits_s, logits_t.detach())
    )
    cost = floored(cost).to(log_p.dtype)
    log_u, log_v = sinkhorn_potentials(log_p, log_q, cost, regularization, iterations)
    with no_autocast(cost):
        return ((log_u.exp() @ (cost * (-cost / regularization).exp())) * log_v.exp()).sum(-1)
