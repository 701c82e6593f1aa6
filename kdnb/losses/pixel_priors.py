"""What DeepInversion asks of pixels beside total variation (`kdnb.losses.datafree`): small norms, the valid range, disagreement with the student."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.datafree import js_divergence, js_divergence_released


def l2_prior(images: Tensor) -> Tensor:
    """Mean Euclidean norm of an image: 1/B sum_b ||x_b||.

    Args:
        images: (B, ...) float; in normalised units for the published weight 1e-5 (ImageNet).
    Returns:
        Scalar >= 0; grows with the root of the number of pixels, not with B.

    Source: Yin et al., CVPR 2020 (DeepInversion), the ImageNet script.
    """
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()


def l2_prior_batch(images: Tensor) -> Tensor:
    """One Euclidean norm over the whole batch, ||x||, as the CIFAR script of DeepInversion has it (weight 0 there); grows with sqrt(B)."""
    return torch.linalg.vector_norm(images)


def adaptive_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 3.0) -> Tensor:
    """Adaptive DeepInversion: images on which teacher and student differ, 1 - JS(p^s, p^t).

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both. temperature: tau > 0; 3.
    Returns:
        Scalar in [1 - ln 2, 1], nats.
    Raises:
        InputError: shapes differ, K < 2 or temperature <= 0.

    Source: Yin et al., CVPR 2020, eq. 8.
    """
    return 1.0 - js_divergence(logits_s, logits_t, temperature)


def adaptive_loss_released(logits_s: Tensor, logits_t: Tensor, temperature: float = 3.0) -> Tensor:
    """The released form, 1 - clamp(JS', 0, 1) with JS' of `js_divergence_released`; its gradient vanishes where JS' exceeds 1."""
    return 1.0 - js_divergence_released(logits_s, logits_t, temperature).clamp(0.0, 1.0)


def pixel_bounds(mean: Sequence[float], std: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Black and white in normalised units, per channel: (-mean / std, (1 - mean) / std), each (1, C, 1, 1) as `like`.

    Args:
        mean, std: one float a channel, in units of the [0, 1] range.
    Raises:
        InputError: lengths differ or a std is not positive.
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise InputError(f"mean and a positive std are needed for every channel, got {tuple(mean)} and {tuple(std)}")
    m, s = (torch.tensor(tuple(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    return (-m / s).to(like), ((1.0 - m) / s).to(like)


def clip_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised pixels cut to what an image can show, see `pixel_bounds`; (B, C, H, W) in and out."""
    return torch.clamp(x, *pixel_bounds(mean, std, x))
