"""SRRL: the student's features, mapped to the teacher's space, should work with the teacher's own classifier."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.losses import feature_mse
from kdnb.methods.base import Method, constant, head_of, positive, weight


def connector(channels_s: int, channels_t: int) -> nn.Sequential:
    """1 x 1 convolution without bias, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels_s, channels_t, 1, bias=False), nn.BatchNorm2d(channels_t), nn.ReLU())


class SRRL(Method):
    """Softmax regression representation learning on the pooled features, as in SimKD's tool-box.

        L = ce_weight CE + kd_weight KL_tau + feature_weight mean (h - h^t)^2 + logit_weight mean (W^t h + b^t - z^t)^2,
        h = ReLU(BN(conv(h^s)))

    The teacher's classifier is constant. Batch norm needs at least 2 images in a batch.

    Args:
        feature_weight, logit_weight: 1 and 1.
        ce_weight, kd_weight, temperature: 1, 1 and 4.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, ICLR 2021; arithmetic of DefangChen/SimKD. The authors' own differs: `SRRLOfficial`.
    """

    def __init__(
        self,
        feature_weight: float = 1.0,
        logit_weight: float = 1.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.logit_weight = weight("logit_weight", logit_weight)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        self._head = (head_of(teacher, "teacher"),)  # in a tuple: the teacher's, not ours to train or save
        self.connector = connector(shapes_s.pooled[0], shapes_t.pooled[0])

    def compare(self, student, teacher) -> tuple[Tensor, Tensor]:
        """The student's mapped features, pooled, and what they are compared with: two (B, D_t) tensors."""
        return self.connector(student.pooled[:, :, None, None]).flatten(1), teacher.pooled

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        mapped, target = self.compare(student, teacher)
        (head,) = self._head
        logits = F.linear(mapped, *constant(head))
        return self.base_terms(student, teacher, labels) | {
            "feature": self.feature_weight * feature_mse(mapped, target),
            "logit": self.logit_weight * feature_mse(logits, teacher.logits),
        }


class SRRLOfficial(SRRL):
    """SRRL as its authors released it (ImageNet): the connector sees the whole map, its channel means are compared, and there is no KL.

        h = mean_xy ReLU(BN(conv(F^s)))

    Batch norm takes its statistics over space as well, so the two variants can't stand in for one another.

    Args: as `SRRL`, with kd_weight 0.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 1.0,
        logit_weight: float = 1.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__(feature_weight, logit_weight, ce_weight, kd_weight, temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        self._head = (head_of(teacher, "teacher"),)
        self.connector = connector(shapes_s.final_map[0], shapes_t.final_map[0])
        nn.init.normal_(self.connector[0].weight, std=math.sqrt(2 / shapes_t.final_map[0]))

    def compare(self, student, teacher) -> tuple[Tensor, Tensor]:
        return self.connector(student.final_map).mean((2, 3)), teacher.final_map.mean((2, 3))
