"""Decoupled knowledge distillation."""

from torch import Tensor

from kdnb.losses import dkd_per_sample
from kdnb.methods.base import Method, count, positive, warm_up, weight


class DKD(Method):
    """Target and non-target classes weighted apart (`kdnb.losses.dkd_loss`).

        L = ce_weight CE + min(epoch / warmup, 1) (alpha TCKD + beta NCKD)

    Args:
        alpha, beta, temperature: 1, 8 and 4 on CIFAR-100. Published beta: 2 for ResNet56 to 20 and 110 to 32; 6 for VGG13 to VGG8 or
            MobileNetV2 and WRN40-2 to WRN16-2 or 40-1; else 8. ImageNet: temperature 1, warmup 1, beta 0.5 (ResNet34 to 18) or 2.
        warmup: epochs over which the distillation terms rise; cross-entropy has its full weight from the start.
        ce_weight: 1.

    Source: Zhao, Cui, Song, Qiu, Liang, CVPR 2022.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, ce_weight: float = 1.0, warmup: int = 20
    ):
        super().__init__()
        self.alpha = weight("alpha", alpha)
        self.beta = weight("beta", beta)
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.warmup = count("warmup", warmup)

    @property
    def needs_labels(self) -> bool:
        return True

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        tckd, nckd = dkd_per_sample(student.logits, teacher.logits, labels, self.temperature)
        ramp = warm_up(epoch, self.warmup)
        terms = {"tckd": ramp * self.alpha * tckd.mean(), "nckd": ramp * self.beta * nckd.mean()}
        return self.ce_term(student, labels) | terms
