"""DIST: probabilities need only correlate with the teacher's, over the classes of a sample and over the samples of a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.checks import check_logits, check_temperature, upcast


def pearson(a: Tensor, b: Tensor, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Pearson's correlation along one dimension.

        rho(a, b) = <a - mean a, b - mean b> / (|a - mean a| |b - mean b| + eps)

    Args:
        a, b: float tensors of one shape.
        dim: along which to correlate.
        eps: guard of constant vectors, which correlate with nothing: 0, with a gradient as large as |b - mean b| / eps.
    Returns:
        Tensor without `dim`, in [-1, 1].
    """
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return (a * b).sum(dim) / (torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim) + eps)


def dist_parts(
    logits_s: Tensor, logits_t: Tensor, temperature: float = 4.0, eps: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """The inter-class and the intra-class part of DIST.

        inter = tau^2 (1 - mean_b rho(P_b., Q_b.)),   intra = tau^2 (1 - mean_k rho(P_.k, Q_.k)),   P, Q = softmax(z / tau)

    with P of the student and Q of the teacher, rho as in `pearson`.

    Args:
        logits_s: (B, K) float, student logits; gradients flow here only.
        logits_t: (B, K) float, teacher logits; treated as constants.
        temperature: tau > 0; 4 on CIFAR-100, 1 on ImageNet.
        eps: of `pearson`.
    Returns:
        Two scalars in [0, 2 tau^2], in float32 at least. A batch of one image has no correlation over samples: intra = tau^2.
    Raises:
        InputError: shapes differ, K < 2, or temperature not in (0, inf).

    Source: Huang, You, Wang, Qian, Xu, Knowledge Distillation from a Stronger Teacher, NeurIPS 2022. A class that is
    nearly certain or nearly impossible for the whole batch has a column of norm about eps or less, and its correlation shrinks to 0.
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    p, q = (F.softmax(upcast(logits) / temperature, dim=1) for logits in (logits_s, logits_t.detach()))
    inter, intra = (1 - pearson(p, q, dim, eps).mean() for dim in (1, 0))
    return temperature**2 * inter, temperature**2 * intra
