"""SP: images that are alike to the teacher are alike to the student."""

from torch import Tensor

from kdnb.losses import sp_loss
from kdnb.methods.base import Method, positive, weight


class SP(Method):
    """Similarity-preserving distillation of the last tapped map, beside the labels.

        L = ce_weight CE + feature_weight 1 / B^2 ||r(G^s) - r(G^t)||_F^2  [+ kd_weight KL_tau]

    Args:
        feature_weight: 3000.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Tung, Mori, ICCV 2019; weight and map of RepDistiller.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 3000.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = sp_loss(student.feats[-1], teacher.feats[-1])
        return self.base_terms(student, teacher, labels) | {"feature": self.feature_weight * loss}
