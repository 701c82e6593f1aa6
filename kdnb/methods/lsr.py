"""Label smoothing, the teacher-free baseline."""

from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.teacher_free import lsr, lsr_released
from kdnb.methods.base import Method, weight


class LSR(Method):
    """Cross-entropy with smoothed labels: L = ce_weight CE(q, p), q = (1 - eps) onehot(y) + eps / K.

    Args:
        smoothing: eps in [0, 1); 0.1.
        ce_weight: 1.

    Source: Szegedy et al., CVPR 2016.
    """

    needs_teacher = False
    needs_labels = True
    loss = staticmethod(lsr)

    def __init__(self, smoothing: float = 0.1, ce_weight: float = 1.0):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise InputError(f"smoothing must lie in [0, 1), got {smoothing}")
        self.smoothing = float(smoothing)
        self.ce_weight = weight("ce_weight", ce_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        return {"ce": self.ce_weight * self.loss(student.logits, labels, self.smoothing)}


class LSRReleased(LSR):
    """Label smoothing as the Tf-KD code computes it: eps is shared by the K - 1 other classes, the label keeps exactly 1 - eps."""

    loss = staticmethod(lsr_released)
