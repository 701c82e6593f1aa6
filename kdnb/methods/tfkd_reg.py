"""Teacher-free distillation from a virtual teacher: a distribution written by hand."""

from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.teacher_free import virtual_teacher_kl, virtual_teacher_kl_released
from kdnb.methods.base import Method, positive, weight


class TfKDReg(Method):
    """A virtual teacher that gives the label 0.99, treated as a real one.

        L = (1 - alpha) CE + alpha KL_tau(log u || z^s),   u_y = a,  u_k = (1 - a) / (K - 1)

    Args:
        temperature, ce_weight, kd_weight: 20, 1 - alpha and alpha = 0.1, the values for ResNet18 on CIFAR-100.
        correct_prob: a in (0, 1); 0.99.

    Source: Yuan, Tay, Li, Wang, Feng, CVPR 2020. The published numbers were made with `TfKDRegReleased`.
    """

    needs_teacher = False
    needs_labels = True  # the virtual teacher knows them

    def __init__(
        self, temperature: float = 20.0, ce_weight: float = 0.9, kd_weight: float = 0.1, correct_prob: float = 0.99
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        if not 0 < correct_prob < 1:
            raise InputError(f"correct_prob must lie in (0, 1), got {correct_prob}")
        self.correct_prob = float(correct_prob)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = virtual_teacher_kl(student.logits, labels, self.temperature, self.correct_prob)
        return self.ce_term(student, labels) | {"kd": self.kd_weight * loss}


class TfKDRegReleased(TfKDReg):
    """The same in released arithmetic: softmax of probabilities, an untempered student, a mean over classes and a multiplier.

        L = (1 - alpha) CE + alpha mu 1/(BK) sum q log (q / softmax(z^s)),   q = softmax(u / tau)

    Args:
        multiplier: mu; 100 for ResNet18, 50 for GoogLeNet, 1 for MobileNetV2 and ShuffleNetV2.
        temperature, ce_weight, kd_weight, correct_prob: as `TfKDReg`.
    """

    def __init__(
        self,
        temperature: float = 20.0,
        ce_weight: float = 0.9,
        kd_weight: float = 0.1,
        correct_prob: float = 0.99,
        multiplier: float = 100.0,
    ):
        super().__init__(temperature, ce_weight, kd_weight, correct_prob)
        self.multiplier = positive("multiplier", multiplier)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        loss = virtual_teacher_kl_released(student.logits, labels, self.temperature, self.correct_prob)
        return self.ce_term(student, labels) | {"kd": self.kd_weight * self.multiplier * loss}
