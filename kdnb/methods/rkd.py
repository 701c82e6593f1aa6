"""RKD: the student keeps the teacher's distances and angles between images."""

from torch import Tensor

from kdnb.losses import rkd_losses
from kdnb.methods.base import Method, positive, weight


class RKD(Method):
    """Relational distillation of the pooled features, beside the labels.

        L = ce_weight CE + distance_weight L_D + angle_weight L_A  [+ kd_weight KL_tau]

    Args:
        distance_weight, angle_weight: 25 and 50.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Memory is B^2 D. Source: Park, Kim, Lu, Cho, CVPR 2019; weights of RepDistiller.
    """

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.distance_weight = weight("distance_weight", distance_weight)
        self.angle_weight = weight("angle_weight", angle_weight)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        distance, angle = rkd_losses(student.pooled, teacher.pooled)
        terms = self.base_terms(student, teacher, labels)
        return terms | {"distance": self.distance_weight * distance, "angle": self.angle_weight * angle}
