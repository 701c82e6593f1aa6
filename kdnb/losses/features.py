"""Losses between feature maps; the learned adapters that bring two maps to one shape belong to the methods."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import no_autocast, upcast


def _same_shape(feat_s: Tensor, feat_t: Tensor) -> None:
    if feat_s.shape != feat_t.shape:
        raise InputError(
            f"features must have one shape, got {tuple(feat_s.shape)} of the student and {tuple(feat_t.shape)} of the teacher"
        )


def pool_to_smaller(feat_s: Tensor, feat_t: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the smaller one's size; (B, C, H, W) each, channels untouched."""
    size = (min(feat_s.shape[2], feat_t.shape[2]), min(feat_s.shape[3], feat_t.shape[3]))
    return pool_to(feat_s, size), pool_to(feat_t, size)


def pool_to(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pool of a (B, C, H, W) map, or the map itself where it has the size already."""
    return feature_map if tuple(feature_map.shape[2:]) == tuple(size) else F.adaptive_avg_pool2d(feature_map, size)


def feature_mse(feat_s: Tensor, feat_t: Tensor) -> Tensor:
    """Mean squared error of features, over all elements: FitNet's hint loss, SimKD's and SRRL's.

        L = mean (F^s - F^t)^2

    Args:
        feat_s: adapted student features, any shape; gradients flow here only.
        feat_t: teacher features of the same shape, treated as constants.
    Returns:
        Scalar in float32 at least.
    Raises:
        InputError: shapes differ.

    Source: Romero et al., FitNets, ICLR 2015, equation 3 (there a half of the squared norm).
    """
    _same_shape(feat_s, feat_t)
    return F.mse_loss(upcast(feat_s), upcast(feat_t.detach()))


def vid_loss(mean: Tensor, variance: Tensor, feat_t: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's features under a Gaussian that the student predicts: a bound on mutual information.

        L = mean 1/2 [(F^t - mu)^2 / v + log v]

    Args:
        mean: (B, C, H, W) predicted mean mu; gradients flow here.
        variance: (C,) positive variance v of each channel; gradients flow here.
        feat_t: (B, C, H, W) teacher features, treated as constants.
    Returns:
        Scalar, nats an element, without the constant 1/2 log 2 pi; it may be negative.
    Raises:
        InputError: shapes differ.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, Variational Information Distillation, CVPR 2019, equations 4-5.
    """
    _same_shape(mean, feat_t)
    variance = upcast(variance).view(1, -1, 1, 1)
    return 0.5 * ((upcast(feat_t.detach()) - upcast(mean)).square() / variance + variance.log()).mean()


def unit_length(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """x over its norm along `dim`. Zeros stay zeros with a gradient of ordinary size; division by max(norm, 1e-12) makes it 1e12 times that."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)


def batch_similarity(feature_map: Tensor) -> Tensor:
    """(B, B) inner products of the flattened maps of a batch, in float32 at least: sums of thousands of products overflow float16."""
    rows = upcast(feature_map).flatten(1)
    with no_autocast(rows):
        return rows @ rows.T


def semckd_loss(attention: Tensor, distances: Tensor) -> Tensor:
    """Semantic calibration: every student layer learns from all teacher layers, in shares that each sample sets for itself.

        L = 1 / (B S) sum_b sum_i sum_j A_bij d_bij,   sum_j A_bij = 1

    Args:
        attention: (B, S, T) shares, softmax over the T teacher layers.
        distances: (B, S, T) mean squared error of sample b between student layer i, projected, and teacher layer j.
    Returns:
        Scalar.
    Raises:
        InputError: shapes differ.

    Source: Chen, Mei, Zhang, Wang, Wang, Feng, Chen, Cross-Layer Distillation with Semantic Calibration, AAAI 2021, equation 9.
    """
    _same_shape(attention, distances)
    return (attention * distances).sum(-1).mean()
