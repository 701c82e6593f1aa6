"""Overhaul of feature distillation: maps are compared before their ReLU, and only where the difference can matter after it."""

import math

import torch
from torch import Tensor

from kdnb.losses.checks import upcast
from kdnb.losses.features import _same_shape


def ofd_margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """What a negative number of each channel is expected to be, for x ~ N(beta, gamma^2) as a batch norm makes it.

        m = E[x | x < 0] = beta - |gamma| phi(beta / |gamma|) / Phi(-beta / |gamma|),   -3 |gamma| where Phi <= 0.001

    Args:
        mean, deviation: (C,) bias beta and weight gamma of the batch norm; constants.
    Returns:
        (C,), never positive. At gamma = 0, where released code divides by zero, the number is beta itself: m = min(beta, 0).

    Source: Heo, Kim, Yun, Park, Kwak, Choi, A Comprehensive Overhaul of Feature Distillation, ICCV 2019; the threshold is
    released code's.
    """
    beta, gamma = mean.detach().double(), deviation.detach().double().abs()
    ratio = beta / torch.where(gamma > 0, gamma, 1.0)
    below = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = torch.where(below > 1e-3, beta - gamma * density / below.clamp(min=1e-3), -3 * gamma)
    return torch.where(gamma > 0, margin, beta.clamp(max=0.0)).to(mean.dtype)


def ofd_loss(feat_s: Tensor, feat_t: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance of pre-activations: where the teacher's unit is off the student's need only be off too.

        L = 1/B sum_{b,c,xy} (F^s - t)^2 [F^s > t or t > 0],   t = max(F^t, m_c)

    Args:
        feat_s: (B, C, H, W) the student's pre-activations, in the teacher's channels; gradients flow here only.
        feat_t: (B, C, H, W) the teacher's pre-activations, treated as constants.
        margin: (C,) m, from `ofd_margin`.
    Returns:
        Scalar in float32 at least: a sum over channels and places, so it grows with the map.
    Raises:
        InputError: shapes differ.

    Source: Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019.
    """
    _same_shape(feat_s, feat_t)
    feat_s = upcast(feat_s)
    target = torch.maximum(upcast(feat_t.detach()), margin.to(feat_s)[:, None, None])
    matters = (feat_s > target) | (target > 0)
    return ((feat_s - target).square() * matters).sum((1, 2, 3)).mean()
