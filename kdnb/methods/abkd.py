"""ABKD: the alpha-beta divergence in place of the KL."""

from torch import Tensor

from kdnb.losses import ab_per_sample, ab_per_sample_released
from kdnb.methods.base import Method, positive, weight


class ABKD(Method):
    """An alpha-beta divergence from the teacher (`kdnb.losses.ab_per_sample`).

        L = ce_weight CE + kd_weight mean_b D_(alpha, beta)(softmax(z^t_b / tau) || softmax(z^s_b / tau))

    Args:
        alpha, beta, kd_weight: 0.8, 0.3 and 32, the released example of ResNet56 to ResNet20. (1, 0) is KL without tau^2, (0, 1) its reverse.
        temperature, ce_weight: 4 and 1.

    Source: Wang et al., ICML 2025. The divergence is defined for negative numbers too; the method takes none.
    """

    divergence = staticmethod(ab_per_sample)

    def __init__(
        self,
        alpha: float = 0.8,
        beta: float = 0.3,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 32.0,
    ):
        super().__init__()
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        rows = self.divergence(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)
        return self.ce_term(student, labels) | {"kd": self.kd_weight * rows.mean()}


class ABKDReleased(ABKD):
    """As released: at alpha = 0 or beta = 0 the divergence has another scale (`ab_per_sample_released`). Arguments as `ABKD`."""

    divergence = staticmethod(ab_per_sample_released)
