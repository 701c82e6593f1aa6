"""Teacher-free distillation from the student's own architecture, trained before on the labels alone."""

from torch import Tensor

from kdnb.losses import kd_loss
from kdnb.methods.base import positive
from kdnb.methods.kd import KD


class TfKDSelf(KD):
    """Soft targets from an earlier self.

        L = (1 - alpha) CE + alpha tau^2 KL(q || p)

    Args:
        temperature, ce_weight, kd_weight: 6, 1 - alpha and alpha = 0.95, the values for ResNet18 on CIFAR-100. MobileNetV2 and
            ShuffleNetV2 use 0.95 and 20, GoogLeNet 0.4 and 20.

    The teacher is a network of the student's architecture; which one is given is up to the caller.

    Source: Yuan, Tay, Li, Wang, Feng, CVPR 2020. Its code divides the KL by K, see `TfKDSelfReleased`.
    """

    def __init__(self, temperature: float = 6.0, ce_weight: float = 0.05, kd_weight: float = 0.95):
        super().__init__(temperature, ce_weight, kd_weight)


class TfKDSelfReleased(TfKDSelf):
    """The same in released arithmetic: the KL is averaged over classes as well and multiplied by mu.

        L = (1 - alpha) CE + alpha mu / K  tau^2 KL(q || p)

    Args:
        multiplier: mu; 50 for ResNet18 and GoogLeNet, 1 for MobileNetV2 and ShuffleNetV2 (and for the code's normal KD).
        temperature, ce_weight, kd_weight: as `TfKDSelf`.
    """

    def __init__(
        self, temperature: float = 6.0, ce_weight: float = 0.05, kd_weight: float = 0.95, multiplier: float = 50.0
    ):
        super().__init__(temperature, ce_weight, kd_weight)
        self.multiplier = positive("multiplier", multiplier)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        scale = self.kd_weight * self.multiplier / student.logits.shape[-1]
        return self.ce_term(student, labels) | {"kd": scale * kd_loss(student.logits, teacher.logits, self.temperature)}
