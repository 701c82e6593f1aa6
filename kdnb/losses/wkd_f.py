"""The Wasserstein distance between features taken as Gaussians, on a grid of cells."""

from itertools import product

import torch
from torch import Tensor

from kdnb.losses.checks import upcast
from kdnb.losses.features import _same_shape


def grid_moments(feature_map: Tensor, grid: int = 1, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel in each cell: (B, C, H, W) -> twice (B, C, g^2).

        s = sqrt(var + eps),   var with divisor n - 1

    Cells are those of adaptive pooling: rows floor(i H / g) to ceil((i + 1) H / g), overlapping where g doesn't divide H. A cell of one
    place has variance 0 (n - 1 = 0 gives NaN in released code).
    """
    H, W = feature_map.shape[2:]
    rows, columns = ([slice(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in (H, W))
    cells = [upcast(feature_map)[:, :, row, column].flatten(2) for row, column in product(rows, columns)]
    variances, means = zip(
        *(torch.var_mean(cell, 2, correction=min(1, cell.shape[2] - 1)) for cell in cells), strict=True
    )
    return torch.stack(means, 2), (torch.stack(variances, 2) + eps).sqrt()


def wkd_f_losses(feat_s: Tensor, feat_t: Tensor, grid: int = 1, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Squared 2-Wasserstein distance of two Gaussians with independent channels, in its two parts, averaged over cells.

        L_mean = 1/(B g^2) sum_{b,cell,c} (mu^s - mu^t)^2,   L_deviation = 1/(B g^2) sum_{b,cell,c} (s^s - s^t)^2

    Args:
        feat_s: (B, C, H, W) the student's projected map; gradients flow here only.
        feat_t: (B, C, H, W) the teacher's map, treated as constant.
        grid: g cells along each side.
        eps: beside the variance, 1e-5.
    Returns:
        L_mean and L_deviation, scalars in float32 at least: sums over channels.
    Raises:
        InputError: shapes differ.

    Source: Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, NeurIPS 2024, with
    diagonal covariances.
    """
    _same_shape(feat_s, feat_t)
    (mean_s, deviation_s), (mean_t, deviation_t) = (grid_moments(feat, grid, eps) for feat in (feat_s, feat_t.detach()))
    return tuple(
        (ours - theirs).square().sum(1).mean() for ours, theirs in ((mean_s, mean_t), (deviation_s, deviation_t))
    )
