"""Stored soft labels as a method: what a teacher said of each crop stands in place of the teacher."""

from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.soft_labels import soft_cross_entropy
from kdnb.methods.base import Method, positive


class StoredLabels(Method):
    """Cross-entropy with the distributions that a `ReplaySplit` gives in place of labels; crops without one do not count.

        L = - mean_b sum_k q_bk log softmax(z_b / tau)_k

    Args:
        temperature: tau of the student; 1, and no tau^2.

    Source: Shen and Xing, ECCV 2022 (FKD).
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        if not labels.is_floating_point():
            raise InputError(
                "StoredLabels trains on distributions (B, K), as a ReplaySplit gives them, not on class ids"
            )
        return {"soft": soft_cross_entropy(student.logits, labels, self.temperature, keep=labels.sum(1) > 0.5)}
