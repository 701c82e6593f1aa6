"""Normalised knowledge distillation, with a teacher and without one."""

from torch import Tensor

from kdnb.losses import nkd_parts, self_target_cross_entropy
from kdnb.methods.base import Method, positive, weight


class NKD(Method):
    """Target and non-target classes as cross-entropies, the latter renormalised (`kdnb.losses.nkd_parts`).

        L = ce_weight CE + target + gamma non-target

    Args:
        temperature, gamma: 3 and 3.5 on CIFAR-100 (with tau^2 an effective weight of 31.5); 1 and 1.5 on ImageNet.
        ce_weight: 1.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023.
    """

    needs_labels = True

    def __init__(self, temperature: float = 3.0, gamma: float = 3.5, ce_weight: float = 1.0):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.gamma = weight("gamma", gamma)
        self.ce_weight = weight("ce_weight", ce_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        target, others = nkd_parts(student.logits, teacher.logits, labels, self.temperature)
        return self.ce_term(student, labels) | {"target": target, "non_target": self.gamma * others}


class TfNKD(Method):
    """The target part without a teacher, weighted by the student's own certainty (`kdnb.losses.self_weights`).

        L = ce_weight CE - kd_weight mean_b w_b log P_by,   w_b = P_by + 1 - mean_b P_by

    Args:
        ce_weight, kd_weight: 1.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, first version on arXiv and its released code.
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, ce_weight: float = 1.0, kd_weight: float = 1.0):
        super().__init__()
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        target = self_target_cross_entropy(student.logits, labels)
        return self.ce_term(student, labels) | {"target": self.kd_weight * target}
