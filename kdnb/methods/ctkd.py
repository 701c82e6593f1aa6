"""Curriculum temperature: the temperature is trained to raise the student's loss, more strongly as training goes on."""

import torch
from torch import Tensor, nn

from kdnb.losses import curriculum_temperature, kd_loss, reversal, standardize
from kdnb.methods.base import Method, count, positive, weight


class CTKD(Method):
    """Soft targets at a temperature that climbs the loss which the student descends (`kdnb.losses.curriculum_temperature`).

        L = ce_weight CE + kd_weight T^2 KL(softmax(z^t / T) || softmax(z^s / T)),   T = t_0 + t_1 sigmoid(theta)

    theta starts at 1 and is trained with the student; its gradient is multiplied by lambda, which falls from 0 to -1 in `reversal_epochs`.

    Args:
        ce_weight, kd_weight: 0.1 and 0.9; 1 and 1 on ImageNet.
        start, span: t_0 = 1 and t_1 = 20: T starts at 15.6 and stays between 1 and 21.
        reversal_epochs: 10; 5 on ImageNet.

    Source: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, AAAI 2023, the global temperature. Weight decay reaches theta, as in released code.
    """

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        start: float = 1.0,
        span: float = 20.0,
        reversal_epochs: int = 10,
    ):
        super().__init__()
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.start = positive("start", start)
        self.span = positive("span", span)
        self.reversal_epochs = count("reversal_epochs", reversal_epochs)
        self.theta = nn.Parameter(torch.ones(1))

    def logits(self, student, teacher) -> tuple[Tensor, Tensor]:
        return student.logits, teacher.logits

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        factor = reversal(epoch, self.reversal_epochs)
        temperature = curriculum_temperature(self.theta, factor, self.start, self.span)
        return self.ce_term(student, labels) | {
            "kd": self.kd_weight * kd_loss(*self.logits(student, teacher), temperature)
        }


class CTKDLSKD(CTKD):
    """The same of z-scored logits.

    Args: as `CTKD`, with kd_weight 9.

    Source: Sun, Ren, Li, Wang, Cao, CVPR 2024, released code.
    """

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 9.0,
        start: float = 1.0,
        span: float = 20.0,
        reversal_epochs: int = 10,
    ):
        super().__init__(ce_weight, kd_weight, start, span, reversal_epochs)

    def logits(self, student, teacher) -> tuple[Tensor, Tensor]:
        return standardize(student.logits), standardize(teacher.logits.detach())
