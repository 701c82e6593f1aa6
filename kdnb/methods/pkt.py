"""PKT: around each image the student sees the teacher's distribution of similarities."""

from torch import Tensor

from kdnb.losses import pkt_loss
from kdnb.methods.base import Method, positive, weight


class PKT(Method):
    """Probabilistic knowledge transfer of the pooled features, beside the labels.

        L = ce_weight CE + feature_weight 1 / B^2 sum_ij q_ij ln(q_ij / p_ij)  [+ kd_weight KL_tau]

    Args:
        feature_weight: 30000.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Passalis, Tefas, ECCV 2018; weight of RepDistiller.
    """

    def __init__(
        self,
        feature_weight: float = 30000.0,
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
        loss = pkt_loss(student.pooled, teacher.pooled)
        return self.base_terms(student, teacher, labels) | {"feature": self.feature_weight * loss}
