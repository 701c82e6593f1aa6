"""The student alone: the baseline of every table."""

from torch import Tensor

from kdnb.methods.base import Method, positive


class CE(Method):
    """Cross-entropy with the labels: L = ce_weight CE. A teacher is neither needed nor looked at."""

    needs_teacher = False

    def __init__(self, ce_weight: float = 1.0):
        super().__init__()
        self.ce_weight = positive("ce_weight", ce_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        return self.ce_term(student, labels)
