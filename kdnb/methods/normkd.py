"""NormKD: each sample's temperature follows the spread of its logits; with soft targets or with DKD."""

from torch import Tensor

from kdnb.losses import normkd_dkd_per_sample, normkd_per_sample
from kdnb.methods.base import Method, count, positive, warm_up, weight


class NormKD(Method):
    """Soft targets at each sample's own temperatures (`kdnb.losses.normkd_per_sample`).

        L = ce_weight CE + kd_weight mean_b (T^t_b)^2 KL(softmax(z^t_b / T^t_b) || softmax(z^s_b / T^s_b)),   T = n s(z)

    Args:
        factor, ce_weight, kd_weight: n = 2, 0.1 and 0.9; on ImageNet 1, 0.5 and 0.5.

    Source: Chi et al., 2023. Beside `lskd` it weighs samples by how spread the teacher's logits are.
    """

    def __init__(self, factor: float = 2.0, ce_weight: float = 0.1, kd_weight: float = 0.9):
        super().__init__()
        self.factor = positive("factor", factor)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = normkd_per_sample(student.logits, teacher.logits, self.factor).mean()
        return self.ce_term(student, labels) | {"kd": self.kd_weight * loss}


class NormKDDKD(Method):
    """DKD at each sample's own temperatures (`kdnb.losses.normkd_dkd_per_sample`).

        L = ce_weight CE + min(epoch / warmup, 1) (alpha TCKD + beta NCKD)

    Args:
        alpha, beta: 4 and 5. Published: (4, 5) for ResNet32x4 to ResNet8x4 or ShuffleNetV2, WRN40-2 to WRN16-2 or ShuffleNetV1; (7, 2) for
            ResNet56 to 20; (5, 4) for ResNet110 to 32; (2, 7) for VGG13 to VGG8, ResNet50 to MobileNetV2; (3, 6) for WRN40-2 to 40-1,
            VGG13 to MobileNetV2; (0.5, 8.5) for ResNet32x4 to ShuffleNetV1. ImageNet: (1, 1), factor 0.5 or 0.75, warmup 1.
        factor, ce_weight, warmup: n = 2, 1 and 20.

    Source: Chi et al., 2023.
    """

    needs_labels = True

    def __init__(
        self, alpha: float = 4.0, beta: float = 5.0, factor: float = 2.0, ce_weight: float = 1.0, warmup: int = 20
    ):
        super().__init__()
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)
        self.factor = positive("factor", factor)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.warmup = count("warmup", warmup)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        tckd, nckd = normkd_dkd_per_sample(student.logits, teacher.logits, labels, self.factor)
        ramp = warm_up(epoch, self.warmup)
        terms = {"tckd": ramp * self.alpha * tckd.mean(), "nckd": ramp * self.beta * nckd.mean()}
        return self.ce_term(student, labels) | terms
