"""ReviewKD's distance between two maps, taken at several resolutions."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.features import feature_mse


def hierarchical_context_loss(feat_s: Tensor, feat_t: Tensor) -> Tensor:
    """Mean squared error of two maps and of what is left of them on coarser grids.

        L = [d(F^s, F^t) + sum_i 2^-i d(P_i F^s, P_i F^t)] / (1 + sum_i 2^-i),   d = mean of squares,
        i = 1, 2, ... over those pools P to 4 x 4, 2 x 2 and 1 x 1 that are smaller than the map

    Args:
        feat_s: (B, C, H, W) student map; gradients flow here only.
        feat_t: (B, C, H, W) teacher map, treated as constant.
    Returns:
        Scalar in float32 at least.
    Raises:
        InputError: shapes differ.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021; weights of released code.
    """
    loss, share, total = feature_mse(feat_s, feat_t), 1.0, 1.0
    for size in (4, 2, 1):
        if size < feat_s.shape[2]:
            share /= 2
            loss = loss + share * feature_mse(*(F.adaptive_avg_pool2d(feat, size) for feat in (feat_s, feat_t)))
            total += share
    return loss / total
