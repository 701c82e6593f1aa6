"""Closed forms against which bounds can be checked: probabilistic PCA, importance-weighted bounds, Gaussian mutual information.

Everything is in nats. PPCA:  z ~ N(0, I_q),  x = W z + mu + N(0, sigma^2 I_D),  M = W^T W + sigma^2 I_q.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError

_LOG_2PI = math.log(2 * math.pi)


class PPCA(NamedTuple):
    """Parameters of probabilistic PCA, x = W z + mean + noise.

    Attributes:
        weight: W, (D, q).
        mean: (D,).
        variance: sigma^2 > 0 of the noise, scalar tensor.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def capacitance(self) -> Tensor:
        """M = W^T W + sigma^2 I (q, q)."""
        return self.weight.T @ self.weight + self.variance * torch.eye(self.weight.shape[1]).to(self.weight)


def ppca_fit(x: Tensor, num_latents: int) -> PPCA:
    """Maximum-likelihood PPCA, the optimum a linear VAE has to reach.

        sigma^2 = 1/(D-q) sum_{j>q} lambda_j,   W = U_q (L_q - sigma^2 I)^{1/2}

    Args:
        x: (N, D) float data.
        num_latents: q, 1 <= q < D.
    Returns:
        `PPCA`; W is unique up to a rotation R of the latents (here R = I).
    Raises:
        InputError: q outside [1, D).

    Source: Tipping and Bishop, JRSS B 1999, eqs. 7 and 8.
    """
    if not 1 <= num_latents < x.shape[1]:
        raise InputError(f"num_latents must lie in [1, D = {x.shape[1]}), got {num_latents}")
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / x.shape[0])  # ascending
    variance = values[:-num_latents].mean()
    scale = (values[-num_latents:] - variance).clamp_min(0).sqrt()
    return PPCA((vectors[:, -num_latents:] * scale).flip(1), mean, variance)


def ppca_log_evidence(x: Tensor, model: PPCA) -> Tensor:
    """ln p(x) without ever building the D x D covariance.

        ln p(x) = -1/2 [ D ln 2 pi + ln |C| + (x-mu)^T C^{-1} (x-mu) ],
        ln |C| = (D-q) ln sigma^2 + ln |M|,   C^{-1} = (I - W M^{-1} W^T) / sigma^2

    Args:
        x: (N, D) float.
        model: `PPCA`.
    Returns:
        (N,) nats.

    Source: Tipping and Bishop, JRSS B 1999.
    """
    width, num_latents = model.weight.shape
    centred = x - model.mean
    factor = torch.linalg.cholesky(model.capacitance())
    projected = torch.linalg.solve_triangular(factor, (centred @ model.weight).T, upper=False)  # (q, N)
    distance = (centred.square().sum(1) - projected.square().sum(0)) / model.variance
    log_det = (width - num_latents) * model.variance.log() + 2 * factor.diagonal().log().sum()
    return -0.5 * (width * _LOG_2PI + log_det + distance)


def ppca_posterior(x: Tensor, model: PPCA) -> tuple[Tensor, Tensor]:
    """The exact posterior N(M^{-1} W^T (x - mu), sigma^2 M^{-1}): mean (N, q) and the covariance (q, q) all x share."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(model.capacitance()))
    return (x - model.mean) @ model.weight @ inverse, model.variance * inverse


def gaussian_kl(
    mean: Tensor, covariance: Tensor, mean_p: Tensor | None = None, covariance_p: Tensor | None = None
) -> Tensor:
    """KL( N(m, V) || N(m_p, S) ); without the second pair against the standard normal.

        1/2 [ tr(S^{-1} V) + (m - m_p)^T S^{-1} (m - m_p) - q + ln |S| - ln |V| ]

    Args:
        mean, mean_p: (..., q) float.
        covariance, covariance_p: (..., q, q), positive definite; a diagonal one is `variance.diag_embed()`.
    Returns:
        (...) nats.
    """
    if mean_p is None or covariance_p is None:
        trace, distance, log_det_p = covariance.diagonal(dim1=-2, dim2=-1).sum(-1), mean.square().sum(-1), 0.0
    else:
        factor = torch.linalg.cholesky(covariance_p)
        whitened = torch.linalg.solve_triangular(factor, (mean - mean_p)[..., None], upper=False)
        trace = torch.cholesky_solve(covariance, factor).diagonal(dim1=-2, dim2=-1).sum(-1)
        distance, log_det_p = whitened.square().sum((-2, -1)), torch.logdet(covariance_p)
    return 0.5 * (trace + distance - mean.shape[-1] + log_det_p - torch.logdet(covariance))


def diagonal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(m, diag e^l) || N(0, I) ) of a VAE's encoder, dimension by dimension: one that stays near 0 has collapsed.

        1/2 (m^2 + e^l - 1 - l)

    Args:
        mean, log_variance: (..., q) float.
    Returns:
        (..., q) nats; their sum is the KL.
    """
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def ppca_reconstruction(x: Tensor, model: PPCA, mean: Tensor, covariance: Tensor) -> Tensor:
    """Expected log-likelihood under q(z|x) = N(m, V).

        E_q ln p(x|z) = -D/2 ln(2 pi sigma^2) - [ |x - mu - W m|^2 + tr(W^T W V) ] / (2 sigma^2)

    Args:
        x: (N, D) float.
        model: `PPCA`.
        mean: (N, q) float.
        covariance: (N, q, q) or (q, q), positive definite.
    Returns:
        (N,) nats.
    """
    residual = (x - model.mean - mean @ model.weight.T).square().sum(1)
    spread = ((model.weight.T @ model.weight) * covariance).sum((-2, -1))
    return -0.5 * (x.shape[1] * (_LOG_2PI + model.variance.log()) + (residual + spread) / model.variance)


def ppca_elbo(x: Tensor, model: PPCA, mean: Tensor, covariance: Tensor) -> Tensor:
    """ELBO = E_q ln p(x|z) - KL(q || p(z)), (N,) nats; ln p(x) - ELBO = KL(q || posterior). Arguments as `ppca_reconstruction`."""
    return ppca_reconstruction(x, model, mean, covariance) - gaussian_kl(mean, covariance)


def ppca_gap(x: Tensor, model: PPCA, mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(q || p(z|x)), (N,) nats: what the ELBO lacks. Arguments as `ppca_reconstruction`."""
    return gaussian_kl(mean, covariance, *ppca_posterior(x, model))


def mean_field_optimum(model: PPCA) -> tuple[Tensor, Tensor]:
    """Best diagonal variance of q, and the gap that no diagonal q can close.

        v_i = 1 / Lambda_ii,   gap = 1/2 ( sum_i ln Lambda_ii - ln |Lambda| ),   Lambda = M / sigma^2

    Returns:
        ((q,) variance, scalar nats); the gap is zero exactly when W^T W is diagonal.
    """
    precision = model.capacitance() / model.variance
    return 1 / precision.diagonal(), 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))


def ppca_log_weights(x: Tensor, model: PPCA, mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """ln w = ln p(x, z) - ln q(z|x) at z = m + L noise, L L^T = V.

    Args:
        x, model, mean, covariance: as `ppca_reconstruction`.
        noise: (S, N, q) standard normal.
    Returns:
        (S, N) nats. Constant, equal to ln p(x), when q is the posterior.
    """
    factor = torch.linalg.cholesky(covariance)
    z = mean + (factor @ noise[..., None])[..., 0]
    residual = (x - model.mean - z @ model.weight.T).square().sum(-1)
    log_likelihood = -0.5 * (x.shape[1] * (_LOG_2PI + model.variance.log()) + residual / model.variance)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    # (2 pi)^{-q/2} stands in p(z) and in q(z|x), and cancels
    return log_likelihood + 0.5 * ((noise.square() - z.square()).sum(-1) + log_det)


def iwae_bound(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Importance-weighted bound ln (1/S sum_s w_s), by log-sum-exp over `dim`; S = 1 gives single-sample ELBO estimates.

    Its expectation rises with S and stays below ln p(x); single estimates fluctuate.

    Source: Burda, Grosse, Salakhutdinov, ICLR 2016, eq. 8.
    """
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def correlated_pairs_information(rho: Tensor, num_pairs: int) -> Tensor:
    """I = -d/2 ln(1 - rho^2) of d independent pairs of standard normals with correlation rho in (-1, 1)."""
    return -0.5 * num_pairs * torch.log1p(-torch.as_tensor(rho).square())


def correlated_pairs_bound(rho: Tensor, slope: Tensor, variance: Tensor, num_pairs: int) -> Tensor:
    """The bound VID maximises, for those pairs and q(t|s) = N(m s, v), in closed form.

        H(t) + E ln q(t|s) = d/2 ln(2 pi e) - d/2 [ ln(2 pi v) + (1 - 2 m rho + m^2) / v ]

    At most the mutual information, reached at m = rho, v = 1 - rho^2.

    Source: Barber and Agakov, NeurIPS 2003; Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019 (VID).
    """
    rho, slope, variance = (torch.as_tensor(value) for value in (rho, slope, variance))
    return 0.5 * num_pairs * (1 - variance.log() - (1 - 2 * slope * rho + slope.square()) / variance)


def info_nce(scores: Tensor) -> Tensor:
    """Contrastive lower bound on mutual information, never above ln N: a contrast to the variational one.

        I_NCE = ln N + mean_i [ f(t_i, s_i) - ln sum_j exp f(t_i, s_j) ]

    Args:
        scores: (N, N) float, f(t_i, s_j); true pairs on the diagonal.
    Returns:
        Scalar <= ln N, nats.

    Source: van den Oord, Li, Vinyals, 2018; Poole et al., ICML 2019.
    """
    return math.log(scores.shape[0]) + F.log_softmax(scores, dim=1).diagonal().mean()
