"""Transformed teacher matching, plain and weighted."""

from torch import Tensor

from kdnb.losses import ttm_loss, wttm_loss
from kdnb.methods.base import Method, positive, weight


class TTM(Method):
    """A temperature for the teacher only (`kdnb.losses.ttm_per_sample`).

        L = ce_weight CE + kd_weight mean_b KL(softmax(gamma z^t_b) || softmax(z^s_b))

    Args:
        exponent, kd_weight: gamma = 0.1 and 45, the released values of VGG13 to VGG8; those of other pairs are not released.
        ce_weight: 1.

    Source: Zheng, Yang, ICLR 2024.
    """

    def __init__(self, exponent: float = 0.1, ce_weight: float = 1.0, kd_weight: float = 45.0):
        super().__init__()
        self.exponent = positive("exponent", exponent)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)

    def loss(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        return ttm_loss(logits_s, logits_t, self.exponent)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        return self.ce_term(student, labels) | {"kd": self.kd_weight * self.loss(student.logits, teacher.logits)}


class WTTM(TTM):
    """TTM in which samples that the teacher is unsure of weigh more (`kdnb.losses.teacher_doubt`).

        L = ce_weight CE + kd_weight mean_b U_b KL(softmax(gamma z^t_b) || softmax(z^s_b)),   U_b = sum_k softmax(z^t_b)_k^gamma

    Args:
        exponent, kd_weight: gamma = 0.2 and 4, the released values of VGG13 to VGG8, where CRD at 0.8 goes with them.
        ce_weight: 1.

    Source: Zheng, Yang, ICLR 2024.
    """

    def __init__(self, exponent: float = 0.2, ce_weight: float = 1.0, kd_weight: float = 4.0):
        super().__init__(exponent, ce_weight, kd_weight)

    def loss(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        return wttm_loss(logits_s, logits_t, self.exponent)
