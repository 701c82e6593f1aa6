"""How good are images and how honest are predictions: Frechet distance, calibration, confidence, separability, balance.

Everything is a pure function of tensors, computed over the whole set at once. Values are tensors on the input's device.
"""

import torch
from torch import Tensor

from kdnb.errors import InputError


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
    return (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2.0 * diagonal.sqrt().sum()


def _mean_and_root(features: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and triangular R with R'R = unbiased covariance, in float64."""
    if features.dim() != 2 or other.dim() != 2 or features.shape[1] != other.shape[1] or features.shape[0] < 2:
        raise InputError(f"Frechet distance needs (N, D) features of one width, N >= 2, got {tuple(features.shape)} and {tuple(other.shape)}")
    features = features.detach().double()
    mean = features.mean(dim=0)
    centred = (features - mean) / (features.shape[0] - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R
