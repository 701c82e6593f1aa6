"""Tolerant teachers in generations: a patriarch that is kept from certainty, then students of the same architecture in a row."""

from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses import kd_loss
from kdnb.losses.tolerant import top_score_difference
from kdnb.methods.base import Method, count


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"ce_weight must lie in [0, 1] (the other term gets the rest), got {value}")
    return float(value)


class TolerantPatriarch(Method):
    """Generation 0: L = eta CE + (1 - eta) TSD, the top score difference of `kdnb.losses.tolerant`.

    Args:
        ce_weight: eta in [0, 1].
        num_top: classes in the difference, the first one included, 2 <= num_top <= K.

    Source: Yang, Xie, Qiao, Yuille, AAAI 2019. The values 0.6 and 5 are assumptions: the paper's could not be read.
    """

    needs_teacher = False

    def __init__(self, ce_weight: float = 0.6, num_top: int = 5):
        super().__init__()
        self.ce_weight = _share(ce_weight)
        self.num_top = count("num_top", num_top, least=2)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        if self.num_top > shapes_s.logits[0]:
            raise InputError(f"num_top must be at most the number of classes, {shapes_s.logits[0]}, got {self.num_top}")

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        difference = (1 - self.ce_weight) * top_score_difference(student.logits, self.num_top)
        return self.ce_term(student, labels) | {"tsd": difference}


class Tolerant(Method):
    """Generation m >= 1: L = lambda CE + (1 - lambda) KL(f^{m-1} || f^m) at temperature 1; the teacher is generation m - 1.

    Args:
        ce_weight: lambda in [0, 1]; 0.6 is an assumption, as are 5 generations.

    Source: Yang, Xie, Qiao, Yuille, AAAI 2019.
    """

    def __init__(self, ce_weight: float = 0.6):
        super().__init__()
        self.ce_weight = _share(ce_weight)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        divergence = (1 - self.ce_weight) * kd_loss(student.logits, teacher.logits, temperature=1.0)
        return self.ce_term(student, labels) | {"kd": divergence}
