"""Refined logit distillation, on the logits as they are or standardised."""

from torch import Tensor

from kdnb.losses import rld_per_sample, standardize
from kdnb.methods.base import positive, warm_up, weight
from kdnb.methods.dkd import DKD


class RLD(DKD):
    """The teacher's confidence, and its order of the classes it ranks below the label (`kdnb.losses.rld_per_sample`).

        L = ce_weight CE + min(epoch / warmup, 1) (alpha SCD + beta MCD)

    Args:
        alpha, beta, temperature, top_temperature: 1, 8, 4 and 1 on CIFAR-100, the same for every pair in released code. ImageNet:
            temperature 1, warmup 1, beta 0.5 (ResNet34 to 18) or 2 (ResNet50 to MobileNetV1).
        ce_weight, warmup: as `kdnb.methods.dkd.DKD`.

    Source: Sun et al., ICCV 2025.
    """

    standardize_logits = False
    kd_weight = 1.0

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        top_temperature: float = 1.0,
        ce_weight: float = 1.0,
        warmup: int = 20,
    ):
        super().__init__(alpha, beta, temperature, ce_weight, warmup)
        self.top_temperature = positive("top_temperature", top_temperature)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        logits = (student.logits, teacher.logits.detach())
        if self.standardize_logits:
            logits = tuple(map(standardize, logits))
        scd, mcd = rld_per_sample(*logits, labels, self.temperature, self.top_temperature)
        ramp = warm_up(epoch, self.warmup) * self.kd_weight
        terms = {"scd": ramp * self.alpha * scd.mean(), "mcd": ramp * self.beta * mcd.mean()}
        return self.ce_term(student, labels) | terms


class RLDLSKD(RLD):
    """RLD of z-scored logits; the weight of standardisation multiplies both of RLD's.

        L = ce_weight CE + min(epoch / warmup, 1) kd_weight (alpha SCD + beta MCD)

    Args:
        kd_weight, temperature, top_temperature: 9, 2 and 2. Beside the logits the switch of the released code changes all three: compare
            with `rld` at these values too.
        alpha, beta, ce_weight, warmup: as `RLD`.

    Source: Sun et al., ICCV 2025, released code.
    """

    standardize_logits = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 2.0,
        top_temperature: float = 2.0,
        kd_weight: float = 9.0,
        ce_weight: float = 1.0,
        warmup: int = 20,
    ):
        super().__init__(alpha, beta, temperature, top_temperature, ce_weight, warmup)
        self.kd_weight = weight("kd_weight", kd_weight)
