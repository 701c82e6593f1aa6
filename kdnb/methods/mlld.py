"""Multi-level logit distillation (MLLD), plain and with standardised logits, sound and as released."""

from collections.abc import Sequence

from torch import Tensor

from kdnb.losses import ce_loss, mlld_loss, mlld_loss_released
from kdnb.methods.base import Method, positive, weight


class MLLD(Method):
    """Agreement in samples, class relations and batch relations, at five temperatures and on two views (`kdnb.losses.mlld_loss`).

        L = ce_weight [CE(weak) + CE(strong)] + kd_weight (KD + Class + Batch)

    Args:
        temperature: base temperature, 4 (ImageNet 1).
        ce_weight, kd_weight: 0.1 and 0.9 (ImageNet 0.5 and 0.5).
        extra_temperatures: further temperatures of all terms.

    Features come as pairs (weak, strong) of an image's two augmented views.
    Source: Jin, Wang, Lin, CVPR 2023. Published numbers come from the arithmetic of `MLLDReleased`.
    """

    views = 2
    standardize_logits = False
    _loss = staticmethod(mlld_loss)

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        extra_temperatures: Sequence[float] = (3.0, 5.0, 2.0, 6.0),
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.extra_temperatures = [positive("extra_temperatures", value) for value in extra_temperatures]

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        logits_s, logits_t = [view.logits for view in student], [view.logits for view in teacher]
        temperatures = [self.temperature, *self.extra_temperatures]
        (weak_s, strong_s), (weak_t, strong_t) = logits_s, logits_t
        kd, of_classes, of_batch = self._loss(weak_s, strong_s, weak_t, strong_t, temperatures, self.standardize_logits)
        terms = {"ce": self.ce_weight * sum(ce_loss(logits, labels) for logits in logits_s)} if self.ce_weight else {}
        return terms | {
            "kd": self.kd_weight * kd,
            "class": self.kd_weight * of_classes,
            "batch": self.kd_weight * of_batch,
        }


class MLLDReleased(MLLD):
    """MLLD in the arithmetic of its released code (`kdnb.losses.mlld_loss_released`): the one behind the published numbers."""

    _loss = staticmethod(mlld_loss_released)


class MLLDLSKD(MLLD):
    """MLLD with z-scored logits in its KD term; kd_weight also multiplies the relations, which keep raw logits.

    Args: as `MLLD`, with temperature 2 and kd_weight 9 (published pairs: 9 or 6).

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024.
    """

    standardize_logits = True

    def __init__(
        self,
        temperature: float = 2.0,
        ce_weight: float = 0.1,
        kd_weight: float = 9.0,
        extra_temperatures: Sequence[float] = (3.0, 5.0, 2.0, 6.0),
    ):
        super().__init__(temperature, ce_weight, kd_weight, extra_temperatures)


class MLLDLSKDReleased(MLLDLSKD):
    """`MLLDLSKD` in the arithmetic of the released code: the one behind the published numbers."""

    _loss = staticmethod(mlld_loss_released)
