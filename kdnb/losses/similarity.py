"""Losses between the relations of the images in a batch: distances and angles (RKD), similarities (PKT, SP)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import no_autocast, upcast
from kdnb.losses.features import batch_similarity, unit_length


def _same_batch(pooled_s: Tensor, pooled_t: Tensor) -> None:
    if pooled_s.shape[0] != pooled_t.shape[0]:
        raise InputError(
            f"student and teacher must see one batch, got {pooled_s.shape[0]} and {pooled_t.shape[0]} feature vectors"
        )


def relative_distances(differences: Tensor, eps: float = 1e-12, squared: bool = False) -> Tensor:
    """Distances between the images of a batch over their mean: (B, B, D) differences -> (B, B), zeros on the diagonal.

    Squares are taken of differences, never as ||a||^2 + ||b||^2 - 2 ab, which cancels; those below eps count as eps, so twins are a
    positive distance of sqrt(eps) apart. One image alone has no distances and gives 0.
    """
    square = differences.square().sum(-1).clamp(min=eps)
    others = ~torch.eye(len(square), dtype=torch.bool, device=square.device)
    distance = (square if squared else square.sqrt()) * others
    return distance * (others.sum() / distance.sum().clamp(min=torch.finfo(distance.dtype).tiny))


def rkd_losses(pooled_s: Tensor, pooled_t: Tensor, eps: float = 1e-12, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Relational distillation: the student keeps the distances and the angles that the teacher sees among the images of a batch.

        L_D = mean_ij h(psi_D(s_i, s_j) - psi_D(t_i, t_j)),            psi_D(a, b) = ||a - b|| / mean of all positive ||a - b||
        L_A = mean_ijk h(psi_A(s_i, s_j, s_k) - psi_A(t_i, t_j, t_k)),   psi_A = cos of the angle between s_j - s_i and s_k - s_i

    h is the Huber loss with threshold 1.

    Args:
        pooled_s: (B, D_s) student features; gradients flow here only.
        pooled_t: (B, D_t) teacher features, treated as constants.
        eps: least squared distance of two images.
        squared: compare squared distances (an option of released code).
    Returns:
        L_D and L_A, unweighted scalars; both 0 for one image. Memory is B^2 D.
    Raises:
        InputError: batches differ.

    Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019. Means run over all B^2 and B^3 entries, the
    empty ones included, as in RepDistiller.
    """
    _same_batch(pooled_s, pooled_t)
    distances, angles = [], []
    for pooled in (pooled_s, pooled_t.detach()):
        rows = upcast(pooled)
        differences = rows[None] - rows[:, None]  # (B, B, D), from i to j
        distances.append(relative_distances(differences, eps, squared))
        directions = unit_length(differences)
        with no_autocast(directions):
            angles.append(directions @ directions.mT)
    return F.smooth_l1_loss(*distances), F.smooth_l1_loss(*angles)


def similarity_rows(pooled: Tensor, eps: float = 1e-7) -> Tensor:
    """Each image's similarities to the batch as a distribution: (B, D) -> (B, B), rows of (cos + 1) / 2 that sum to 1."""
    rows = upcast(pooled)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / torch.where(
        norm > 0, norm + eps, 1.0
    )  # zeros stay zeros; dividing them by eps would blow up the gradient
    with no_autocast(rows):
        similarity = (rows @ rows.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def pkt_loss(pooled_s: Tensor, pooled_t: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic transfer: the distribution of similarities around each image should be the teacher's.

        L = 1 / B^2 sum_ij q_ij ln((q_ij + eps) / (p_ij + eps)),   p, q = rows of (cos + 1) / 2, each over its sum

    Args:
        pooled_s: (B, D_s) student features; gradients flow here only.
        pooled_t: (B, D_t) teacher features, treated as constants.
        eps: 1e-7, beside probabilities and norms.
    Returns:
        Scalar, nats over B. A feature vector of zeros has cosine 0 with all others.
    Raises:
        InputError: batches differ.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, with the cosine
    kernel; the mean in place of the sum is that of released code.
    """
    _same_batch(pooled_s, pooled_t)
    p, q = similarity_rows(pooled_s, eps), similarity_rows(pooled_t.detach(), eps)
    return (q * ((q + eps) / (p + eps)).log()).mean()


def sp_loss(feat_s: Tensor, feat_t: Tensor) -> Tensor:
    """Similarity-preserving distillation: images that excite the teacher alike should excite the student alike.

        L = 1 / B^2 ||r(G^s) - r(G^t)||_F^2,   G = Q Q^T with the flattened maps as rows of Q,   r: rows at unit length

    Args:
        feat_s: (B, ...) student map; gradients flow here only.
        feat_t: (B, ...) teacher map of any shape, treated as constant.
    Returns:
        Scalar.
    Raises:
        InputError: batches differ.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019. Released code returns one number in a vector.
    """
    _same_batch(feat_s, feat_t)
    rows_s, rows_t = (unit_length(batch_similarity(feat)) for feat in (feat_s, feat_t.detach()))
    return (rows_s - rows_t).square().mean()
