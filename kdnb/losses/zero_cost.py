"""DisWOT: how well an untrained student would fit a teacher, from one batch and no training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError

_EPSILON = 1e-12  # floor of every norm, as torch.nn.functional.normalize


def classifier_gradient(logits: Tensor, pooled: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the batch-mean cross-entropy with respect to the weight of a final linear layer, in closed form.

        g = 1/B (softmax(z) - onehot(y))^T h

    Args:
        logits: (B, K) float, z = h W^T + b.
        pooled: (B, D) float, the layer's input h.
        labels: (B,) int64 class ids.
    Returns:
        (K, D), no graph. Nothing accumulates between candidates, unlike the `.grad` of the released search.
    """
    error = F.softmax(logits.detach(), dim=1) - F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return error.T @ pooled.detach() / labels.shape[0]


def relation_score(map_s: Tensor, map_t: Tensor) -> Tensor:
    """Agreement on which samples of the batch are alike.

        S_r = - || G_t - G_s ||_F^2 / B^2,   G = rownorm_2(F F^T),  F the map before pooling, flattened per sample

    Args:
        map_s, map_t: (B, ...) float; other dimensions may differ between the two.
    Returns:
        Scalar <= 0, dimensionless; 0 when the similarities agree.
    Raises:
        InputError: batch sizes differ.

    Source: Dong, Li, Wei, CVPR 2023 (DisWOT), relation similarity. One released script takes the last feature instead of this map.
    """
    if map_s.shape[0] != map_t.shape[0]:
        raise InputError(
            f"student and teacher must see the same batch, got {map_s.shape[0]} and {map_t.shape[0]} samples"
        )
    gram_s, gram_t = (F.normalize(x @ x.T, dim=1, eps=_EPSILON) for x in (map_s.flatten(1), map_t.flatten(1)))
    return -(gram_t - gram_s).square().mean()


def _rank_one(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (a, u) of rownorm_2(g g^T) = a u^T for each row g: u = g / |g|, and a = sign(g) but where a row's norm is below the floor."""
    norm = gradient.norm(dim=1, keepdim=True)
    scale = gradient.abs() * norm  # the norms of the rows of g g^T
    return gradient * norm / scale.clamp_min(_EPSILON), gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def semantic_score(gradient_s: Tensor, gradient_t: Tensor) -> Tensor:
    """Agreement on which features speak for which class.

        S_s = - 1/(K D) sum_k || E^s_k - E^t_k ||_F^2,   E_k = rownorm_2(g_k g_k^T)  (D, D)

    E_k is sign(g_k) (g_k / |g_k|)^T, of rank one, so with a = sign(g), u = g / |g|

        || E^s - E^t ||^2 = |a_s|^2 |u_s|^2 + |a_t|^2 |u_t|^2 - 2 (a_s . a_t)(u_s . u_t)

    which costs O(K D) in place of O(K D^2).

    Args:
        gradient_s, gradient_t: (K, D) classifier gradients, see `classifier_gradient`.
    Returns:
        Scalar <= 0, dimensionless.
    Raises:
        InputError: shapes differ (the measure needs the same feature width in both networks).

    Source: Dong, Li, Wei, CVPR 2023 (DisWOT), semantic similarity.
    """
    if gradient_s.shape != gradient_t.shape:
        raise InputError(
            f"both classifiers must have the same classes and feature width, got {tuple(gradient_s.shape)} "
            f"and {tuple(gradient_t.shape)}"
        )
    (a_s, u_s), (a_t, u_t) = _rank_one(gradient_s), _rank_one(gradient_t)
    squares = a_s.square().sum(1) * u_s.square().sum(1) + a_t.square().sum(1) * u_t.square().sum(1)
    cross = (a_s * a_t).sum(1) * (u_s * u_t).sum(1)
    return -(squares - 2 * cross).sum() / gradient_s.numel()


def diswot_score(map_s: Tensor, map_t: Tensor, gradient_s: Tensor, gradient_t: Tensor) -> Tensor:
    """S = S_r + S_s, both measures together; higher is better. Arguments and errors as in `relation_score` and `semantic_score`.

    Source: Dong, Li, Wei, CVPR 2023. The released search scripts rank by only one of the two.
    """
    return relation_score(map_s, map_t) + semantic_score(gradient_s, gradient_t)
