"""AT: the student looks where the teacher looks."""

import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses import at_loss
from kdnb.methods.base import Method, later_channels, positive, weight


class AT(Method):
    """Attention transfer beside the labels.

        L = ce_weight CE + feature_weight sum_l mean (n(mean_c |F^s_l|^p) - n(mean_c |F^t_l|^p))^2  [+ kd_weight KL_tau]

    All tapped maps but the stem's are paired in order, the larger of two pooled; where one network has more, its last ones are left out.

    Args:
        feature_weight: 1000.
        power: p >= 1; 2.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Zagoruyko, Komodakis, ICLR 2017; weight and reduction of RepDistiller.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 1000.0,
        power: float = 2.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.power = positive("power", power)
        if power < 1:
            raise InputError(f"power must be at least 1, or gradients at 0 are infinite; got {power}")
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        for shapes, role in ((shapes_s, "student"), (shapes_t, "teacher")):
            later_channels(shapes, role)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        pairs = zip(student.feats[1:], teacher.feats[1:], strict=False)
        loss = torch.stack([at_loss(feat_s, feat_t, self.power) for feat_s, feat_t in pairs]).sum()
        return self.base_terms(student, teacher, labels) | {"feature": self.feature_weight * loss}
