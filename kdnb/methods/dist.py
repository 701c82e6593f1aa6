"""DIST: a relaxed match, correlation in place of equality."""

from torch import Tensor

from kdnb.losses import dist_parts
from kdnb.methods.base import Method, positive, weight


class DIST(Method):
    """Probabilities correlated with the teacher's, over classes and over the samples of the batch (`kdnb.losses.dist_parts`).

        L = ce_weight CE + kd_weight (beta inter + gamma intra)

    Args:
        temperature, kd_weight: 4 and 2 on CIFAR-100 (tau^2 is inside: an effective weight of 32); temperature 1 on ImageNet.
        beta, gamma, ce_weight: 1.

    Source: Huang, You, Wang, Qian, Xu, NeurIPS 2022. The intra-class part depends on the batch size.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 2.0,
        beta: float = 1.0,
        gamma: float = 1.0,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.beta = weight("beta", beta)
        self.gamma = weight("gamma", gamma)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        inter, intra = dist_parts(student.logits, teacher.logits, self.temperature)
        terms = {"inter": self.kd_weight * self.beta * inter, "intra": self.kd_weight * self.gamma * intra}
        return self.ce_term(student, labels) | terms
