"""Variational information distillation (VID): the student's maps should tell as much as they can about the teacher's."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.losses import vid_loss
from kdnb.losses.checks import upcast
from kdnb.losses.features import pool_to_smaller
from kdnb.methods.base import Method, later_channels, positive, weight


class VIDRegressor(nn.Module):
    """The Gaussian q(t | s) of one layer: three 1 x 1 convolutions give the mean, one number a channel the variance.

        v = softplus(rho) + eps,   rho_0 = log(exp(v_0 - eps) - 1)

    Args:
        channels_s, channels_mid, channels_t: of the student's map, between the convolutions (usually channels_t), of the teacher's map.
        initial_variance, eps: v_0 = 5 and 1e-5.
    """

    def __init__(
        self, channels_s: int, channels_mid: int, channels_t: int, initial_variance: float = 5.0, eps: float = 1e-5
    ):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(channels_s, channels_mid, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_mid, channels_mid, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_mid, channels_t, 1, bias=False),
        )
        self.eps = eps
        self.log_scale = nn.Parameter(torch.full((channels_t,), math.log(math.expm1(initial_variance - eps))))

    def forward(self, feat_s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C_t, H, W) and variance (C_t,); softplus, since log(1 + exp(rho)) overflows for rho > 88."""
        return self.regressor(feat_s), F.softplus(upcast(self.log_scale)) + self.eps


class VID(Method):
    """Information distillation beside the labels.

        L = ce_weight CE + feature_weight sum_l mean 1/2 [(F^t_l - mu_l(F^s_l))^2 / v_l + log v_l]  [+ kd_weight KL_tau]

    All tapped maps but the stem's are paired in order, the larger of two pooled to the smaller; where one network has more, its last
    ones are left out (as RepDistiller does; mdistiller fails on a student with more).

    Args:
        feature_weight: 1.
        initial_variance: 5, of every channel at the start.
        ce_weight, kd_weight, temperature: 1, 0 and 4; SemCKD's and SimKD's tables add KD with weight 1.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 1.0,
        initial_variance: float = 5.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.initial_variance = positive("initial_variance", initial_variance)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        pairs = zip(later_channels(shapes_s, "student"), later_channels(shapes_t, "teacher"), strict=False)
        self.regressors = nn.ModuleList(VIDRegressor(c_s, c_t, c_t, self.initial_variance) for c_s, c_t in pairs)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        losses = []
        for regressor, feat_s, feat_t in zip(self.regressors, student.feats[1:], teacher.feats[1:], strict=False):
            feat_s, feat_t = pool_to_smaller(feat_s, feat_t.detach())
            mean, variance = regressor(feat_s)
            losses.append(vid_loss(mean, variance, feat_t))
        return self.base_terms(student, teacher, labels) | {"feature": self.feature_weight * torch.stack(losses).sum()}


class VIDReleased(VID):
    """VID as mdistiller trains it: the variances never reach the optimiser and stay at their start, which leaves a rescaled MSE."""

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        super().attach(student, teacher, shapes_s, shapes_t, batch_size)
        for regressor in self.regressors:
            regressor.log_scale.requires_grad_(False)
