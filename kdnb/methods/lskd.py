"""Logit standardisation (LSKD) before soft targets or DKD."""

from torch import Tensor

from kdnb.losses import dkd_per_sample, kd_loss, standardize
from kdnb.methods.base import warm_up, weight
from kdnb.methods.dkd import DKD
from kdnb.methods.kd import KD


class LSKD(KD):
    """Soft targets of z-scored logits (`kdnb.losses.standardize`): the student need not copy the scale of the teacher's logits.

        L = ce_weight CE + kd_weight tau^2 KL(softmax(Z(z^t) / tau) || softmax(Z(z^s) / tau))

    Args:
        temperature, ce_weight, kd_weight: 2, 0.1 and 9. Published pairs differ: 3, 9 for VGG13 to VGG8; 4, 12 for ResNet110 to ResNet20.

    Source: Sun, Ren, Li, Wang, Cao, CVPR 2024. Its repository also changed the defaults of plain KD to temperature 2 and weight 9.
    """

    def __init__(self, temperature: float = 2.0, ce_weight: float = 0.1, kd_weight: float = 9.0):
        super().__init__(temperature, ce_weight, kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = kd_loss(standardize(student.logits), standardize(teacher.logits.detach()), self.temperature)
        return self.ce_term(student, labels) | {"kd": self.kd_weight * loss}


class DKDLSKD(DKD):
    """DKD of z-scored logits; the weight of standardisation multiplies both of DKD's.

        L = ce_weight CE + min(epoch / warmup, 1) kd_weight (alpha TCKD + beta NCKD)

    Args:
        kd_weight, temperature: 9 and 2. Published pairs use weights 9 to 18, temperature 2 or 3 and often beta 2.
        alpha, beta, ce_weight, warmup: as `DKD`.

    Source: Sun, Ren, Li, Wang, Cao, CVPR 2024.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 2.0,
        kd_weight: float = 9.0,
        ce_weight: float = 1.0,
        warmup: int = 20,
    ):
        super().__init__(alpha, beta, temperature, ce_weight, warmup)
        self.kd_weight = weight("kd_weight", kd_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        tckd, nckd = dkd_per_sample(
            standardize(student.logits), standardize(teacher.logits.detach()), labels, self.temperature
        )
        ramp = warm_up(epoch, self.warmup) * self.kd_weight
        terms = {"tckd": ramp * self.alpha * tckd.mean(), "nckd": ramp * self.beta * nckd.mean()}
        return self.ce_term(student, labels) | terms
