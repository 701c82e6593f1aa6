"""Hinton's knowledge distillation."""

from torch import Tensor

from kdnb.losses import kd_loss
from kdnb.methods.base import Method, positive, weight


class KD(Method):
    """Soft targets beside the labels.

        L = ce_weight CE + kd_weight tau^2 KL(q || p)

    Args:
        temperature, ce_weight, kd_weight: 4, 0.1 and 0.9, the CIFAR-100 setting of mdistiller and RepDistiller. SemCKD's and SimKD's
            tables use 4, 1, 1; ImageNet 1, 0.5, 0.5.

    Source: Hinton, Vinyals, Dean, NIPS workshop 2014.
    """

    def __init__(self, temperature: float = 4.0, ce_weight: float = 0.1, kd_weight: float = 0.9):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        return self.ce_term(student, labels) | {
            "kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)
        }
