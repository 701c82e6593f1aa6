"""Universal self-distillation: a weak head on an earlier stage stands in for the teacher."""

from torch import Tensor, nn

from kdnb.losses import (
    lsr,
    self_target_cross_entropy,
    uskd_non_target,
    uskd_soft_labels,
    uskd_soft_labels_released,
)
from kdnb.methods.base import Method, later_channels, weight


class USKD(Method):
    """The student's own certainty of the label, and Zipf labels in the order that student and weak head give the other classes.

        L = ce_weight CE + alpha target + beta non-target + mu CE(weak head, labels smoothed by 0.1)

    with target of `kdnb.losses.self_target_cross_entropy` (power 2), non-target of `kdnb.losses.uskd_non_target`. The weak head is a linear
    layer on the pooled map of the last stage but one; its gradient enters the student.

    Args:
        alpha, beta, mu: 0.1 each on CIFAR-100; 1, 0.1 and 0.005 on ImageNet.
        ce_weight: 1.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023. The released code ranks classes otherwise, see `USKDReleased`.
    """

    needs_teacher = False
    needs_labels = True
    soft_labels = staticmethod(uskd_soft_labels)

    def __init__(self, alpha: float = 0.1, beta: float = 0.1, mu: float = 0.1, ce_weight: float = 1.0):
        super().__init__()
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)
        self.mu = weight("mu", mu)
        self.ce_weight = weight("ce_weight", ce_weight)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        later_channels(shapes_s, "student")  # the stem and the last stage at least
        self.weak_head = nn.Linear(shapes_s.feats[-2][0], shapes_s.logits[0])

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        weak = self.weak_head(student.feats[-2].mean((2, 3)))
        soft = self.soft_labels(student.logits, weak, labels)
        return self.ce_term(student, labels) | {
            "target": self.alpha * self_target_cross_entropy(student.logits, labels, power=2),
            "non_target": self.beta * uskd_non_target(student.logits, soft, labels),
            "weak": self.mu * lsr(weak, labels),
        }


class USKDReleased(USKD):
    """As released: the student's log-probabilities stand where the ranking wants its probabilities. Arguments as `USKD`."""

    soft_labels = staticmethod(uskd_soft_labels_released)
