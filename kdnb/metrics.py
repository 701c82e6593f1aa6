"""How good are images and how honest are predictions: Frechet distance, calibration, confidence, separability, balance.

Everything is a pure function of tensors, computed over the whole set at once. Values are tensors on the input's device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.datafree import batch_norm_terms


def frechet_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Frechet distance between Gaussians fitted to two sets of features (FID, when the features are Inception's).

        d = ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)

    Args:
        features_a, features_b: (N_a, D) and (N_b, D) float, N >= 2; computed in float64 whatever the input.
    Returns:
        Scalar float64 >= 0; zero (to rounding) for equal sets.
    Raises:
        InputError: not two matrices of one width with at least two rows each.

    Source: Dowson and Landau 1982; Heusel et al., NeurIPS 2017. Covariances are unbiased (N - 1). With X the centred rows divided by
    sqrt(N - 1), S = X'X, the trace of the root is the sum of singular values of R_a R_b', R the triangular factor of X: no root of
    a rounded eigenvalue is taken, so equal sets give 1e-15 where an eigen-decomposition gives 1e-8.
    """
    mean_a, root_a = _mean_and_root(features_a, features_b)
    mean_b, root_b = _mean_and_root(features_b, features_a)
    cross = torch.linalg.svdvals(root_a @ root_b.mT).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2.0 * cross
    return distance.clamp_min(0.0)


def frechet_distance_released(features_a: Tensor, features_b: Tensor) -> Tensor:
    """The Frechet distance as released with Fast-AD: an element-wise root where a matrix root is due.

        d = ||mu_a - mu_b||^2 + tr(S_a + S_b) - 2 sum_i sqrt((S_a S_b)_ii)

    Not a distance: equal sets give values below zero, and it is NaN where a diagonal entry of the product is negative. Only for
    comparison with published tables. Arguments and errors as in `frechet_distance`.
    """
    mean_a, root_a = _mean_and_root(features_a, features_b)
    mean_b, root_b = _mean_and_root(features_b, features_a)
    covariance_a, covariance_b = root_a.mT @ root_a, root_b.mT @ root_b
    diagonal = torch.einsum("ij,ji->i", covariance_a, covariance_b)
    return (
        (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2.0 * diagonal.sqrt().sum()
    )


def _mean_and_root(features: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and triangular R with R'R = unbiased covariance, in float64."""
    if features.dim() != 2 or other.dim() != 2 or features.shape[1] != other.shape[1] or features.shape[0] < 2:
        raise InputError(
            f"Frechet distance needs (N, D) features of one width, N >= 2, got {tuple(features.shape)} and {tuple(other.shape)}"
        )
    features = features.detach().double()
    mean = features.mean(dim=0)
    centred = (features - mean) / (features.shape[0] - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin.

    Attributes:
        edges: (bins + 1,) of the confidence.
        count: (bins,) predictions in each bin.
        confidence, accuracy: (bins,) means over the bin; 0 where it is empty.
    """

    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Reliability table: predictions sorted into equal-width, right-closed confidence bins (lo, hi].

    Args:
        logits: (N, K) float. labels: (N,) int64. bins: >= 1; 15.
    Returns:
        `Reliability`.
    Raises:
        InputError: shapes do not fit, bins < 1.

    Source: Guo et al., ICML 2017.
    """
    _check(logits, labels)
    if bins < 1:
        raise InputError(f"bins must be >= 1, got {bins}")
    confidences, predictions = F.softmax(logits, dim=1).max(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=logits.dtype, device=logits.device)
    member = F.one_hot(torch.bucketize(confidences.detach(), edges[1:-1]), bins).to(logits.dtype)  # (N, bins)
    count = member.sum(dim=0)
    members = count.clamp_min(1)
    correct = (predictions == labels).to(logits.dtype)
    return Reliability(edges, count, confidences @ member / members, correct @ member / members)


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error: sum_b n_b / N |acc_b - conf_b|. Arguments as in `reliability`; scalar in [0, 1]."""
    table = reliability(logits, labels, bins)
    return (table.count * (table.accuracy - table.confidence).abs()).sum() / table.count.sum()


def mce(logits: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Maximum calibration error: max_b |acc_b - conf_b| over non-empty bins. Arguments as in `reliability`; scalar in [0, 1]."""
    table = reliability(logits, labels, bins)
    return (table.accuracy - table.confidence).abs().max()


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-class Brier score: 1/N sum_n sum_k (p_nk - [k = y_n])^2; scalar in [0, 2]. Source: Brier 1950."""
    _check(logits, labels)
    return (F.softmax(logits, dim=1) - F.one_hot(labels, logits.shape[1])).square().sum(dim=1).mean()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels, nats."""
    _check(logits, labels)
    return F.cross_entropy(logits, labels)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of predictions that equal the labels, in [0, 1]."""
    _check(logits, labels)
    return (logits.argmax(dim=1) == labels).to(logits.dtype).mean()


def entropy(logits: Tensor, normalized: bool = False) -> Tensor:
    """Entropy of each prediction, -sum_k p_k ln p_k: (N,) nats in [0, ln K], or divided by ln K."""
    log_probs = F.log_softmax(logits, dim=1)
    values = -(log_probs.exp() * log_probs).sum(dim=1)
    return values / math.log(logits.shape[1]) if normalized else values


def confidence(logits: Tensor) -> Tensor:
    """Largest probability of each prediction, (N,)."""
    return F.softmax(logits, dim=1).amax(dim=1)


def margin(logits: Tensor) -> Tensor:
    """Distance between the two largest probabilities, p_(1) - p_(2): (N,) in [0, 1]."""
    top = F.softmax(logits, dim=1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def temperature_scale(logits: Tensor, labels: Tensor, low: float = 0.01, high: float = 100.0) -> Tensor:
    """The temperature that calibrates best on a held-out split: tau* = argmin NLL(z / tau).

    Args:
        logits: (N, K) float. labels: (N,) int64. low, high: search interval of tau.
    Returns:
        Scalar float64, tau*; the nearer end of the interval where the optimum lies outside (as for separable data).
    Raises:
        InputError: shapes do not fit, not 0 < low < high.

    Source: Guo et al., ICML 2017. NLL is convex in 1 / tau, so its slope changes sign once: 60 halvings of ln tau, no step size.
    """
    _check(logits, labels)
    if not 0 < low < high:
        raise InputError(f"temperature interval needs 0 < low < high, got {low} and {high}")
    logits = logits.detach().double()
    wanted = logits.gather(1, labels[:, None]).mean()
    ends = torch.tensor([math.log(low), math.log(high)], dtype=torch.float64, device=logits.device)
    for _ in range(60):
        middle = ends.mean()
        expected = (F.softmax(logits / middle.exp(), dim=1) * logits).sum(dim=1).mean()
        too_sharp = expected > wanted  # the slope of NLL in 1 / tau is positive: tau must rise
        ends = torch.stack([torch.where(too_sharp, middle, ends[0]), torch.where(too_sharp, ends[1], middle)])
    return ends.mean().exp()


def auroc(scores_positive: Tensor, scores_negative: Tensor) -> Tensor:
    """Probability that a positive scores above a negative, ties counting half (area under the ROC curve).

    Args:
        scores_positive, scores_negative: (N_p,) and (N_n,) float, e.g. confidences on real and on synthetic images.
    Returns:
        Scalar float64 in [0, 1]; 0.5 = not separable.
    Raises:
        InputError: one of them is empty.
    """
    if min(scores_positive.numel(), scores_negative.numel()) == 0:
        raise InputError("AUROC needs at least one positive and one negative score")
    ordered = scores_negative.detach().sort().values
    below = torch.searchsorted(ordered, scores_positive.detach()).double()
    not_above = torch.searchsorted(ordered, scores_positive.detach(), right=True).double()
    return 0.5 * (below + not_above).mean() / ordered.numel()


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) counts of a prediction for a true class: rows true, columns predicted.

    Args:
        predictions, labels: (N,) int64 in 0..K-1.
    """
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def class_imbalance(labels: Tensor, num_classes: int) -> Tensor:
    """How far a label histogram is from uniform: KL(p || u) = ln K + sum_k p_k ln p_k, scalar float64 in [0, ln K], nats."""
    share = torch.bincount(labels, minlength=num_classes).double() / max(labels.numel(), 1)
    return math.log(num_classes) + torch.special.xlogy(share, share).sum()


def batch_norm_distance(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_variances: Sequence[Tensor],
) -> Tensor:
    """`losses.datafree.batch_norm_terms` without gradients: (L,) distances of a batch from each layer's running statistics."""
    return batch_norm_terms(means, variances, running_means, running_variances).detach()


def behaviour(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Tensor]:
    """One row of a table of teacher behaviour: means of all measures above over one source of images (real, random, synthetic, ...).

    Args:
        logits: (N, K) float, the teacher's. labels: (N,) int64, true or requested classes.
    Returns:
        Scalars `accuracy, confidence, entropy, margin, nll, brier, ece, mce, imbalance` (of the predicted classes).
    """
    return {
        "accuracy": accuracy(logits, labels),
        "confidence": confidence(logits).mean(),
        "entropy": entropy(logits).mean(),
        "margin": margin(logits).mean(),
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": ece(logits, labels, bins),
        "mce": mce(logits, labels, bins),
        "imbalance": class_imbalance(logits.argmax(dim=1), logits.shape[1]),
    }


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or logits.shape[0] == 0 or logits.shape[1] < 2:
        raise InputError(
            f"need (N, K) logits with K >= 2 and (N,) labels, got shapes {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
