"""NormKD: every sample has temperatures of its own, in proportion to the spread of its logits."""

import torch
from torch import Tensor

from kdnb.losses.checks import check_classes, check_logits, upcast
from kdnb.losses.dkd import dkd_per_sample
from kdnb.losses.kd import kd_per_sample


def spread_scaled(logits: Tensor, factor: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits at temperatures in proportion to their deviation.

        T_b = n s(z_b),   z_b / T_b,   s = sample deviation (divisor K - 1)

    Args:
        logits: (..., K) float. The gradient flows through the deviation.
        factor: n > 0.
    Returns:
        (..., K) logits, centred (softmax does not see it), and (...) temperatures, in float32 at least. Equal logits have temperature 0 and
        become zeros: their softmax is uniform, as at any temperature, and its gradient is that at temperature n.
    Raises:
        InputError: fewer than 2 classes.
    """
    check_classes(logits)
    logits = upcast(logits)
    equal = logits.amax(-1, keepdim=True) == logits.amin(-1, keepdim=True)
    apart = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)  # a stand-in with a gradient
    deviation = torch.where(equal, apart, logits).std(-1, keepdim=True)
    centred = logits - logits.mean(-1, keepdim=True)
    scaled = centred / (factor * torch.where(equal, 1.0, deviation))
    return scaled, factor * torch.where(equal, 0.0, deviation).squeeze(-1)


def normkd_per_sample(logits_s: Tensor, logits_t: Tensor, factor: float = 2.0) -> Tensor:
    """Soft targets at each sample's own temperatures.

        l_b = (T^t_b)^2 KL(softmax(z^t_b / T^t_b) || softmax(z^s_b / T^s_b)),   T = n s(z)

    Args:
        logits_s: (..., K) float, student logits; gradients flow here only, through the temperature too.
        logits_t: (..., K) float, teacher logits; treated as constants.
        factor: n > 0; 2 on CIFAR-100, 1 on ImageNet.
    Returns:
        (...) tensor, nats. A teacher with equal logits has no say: 0.
    Raises:
        InputError: shapes differ or K < 2.

    Source: Chi et al., NormKD, 2023. Released code divides by a deviation of 0 where logits are equal.
    """
    check_logits(logits_s, logits_t)
    (scaled_s, _), (scaled_t, temperature) = (spread_scaled(logits, factor) for logits in (logits_s, logits_t.detach()))
    return temperature**2 * kd_per_sample(scaled_s, scaled_t, 1.0)


def normkd_dkd_per_sample(
    logits_s: Tensor, logits_t: Tensor, labels: Tensor, factor: float = 2.0
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD (`kdnb.losses.dkd_loss`) at each sample's own temperatures, both times (T^t_b)^2.

    Args:
        labels: (...) int64; the rest as `normkd_per_sample`.
    Returns:
        Two (...) tensors, nats.
    Raises:
        InputError: shapes differ, K < 2, or labels of another shape or dtype.

    Source: as `normkd_per_sample`.
    """
    check_logits(logits_s, logits_t)
    (scaled_s, _), (scaled_t, temperature) = (spread_scaled(logits, factor) for logits in (logits_s, logits_t.detach()))
    tckd, nckd = dkd_per_sample(scaled_s, scaled_t, labels, 1.0)
    return temperature**2 * tckd, temperature**2 * nckd
