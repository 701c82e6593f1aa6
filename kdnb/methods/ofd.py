"""OFD: maps before their ReLU, compared only above a margin, below which the student's value does not matter."""

import math

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses import ofd_loss, ofd_margin
from kdnb.losses.features import pool_to
from kdnb.methods.base import Method, positive, weight


def connector(channels_s: int, channels_t: int, kernel: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, and batch norm; W ~ N(0, 2 / (k^2 C_t))."""
    convolution = nn.Conv2d(channels_s, channels_t, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (kernel**2 * channels_t)))
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_t))


class OFD(Method):
    """The overhaul of feature distillation, beside the labels.

        L = ce_weight CE + feature_weight sum_{l=1..n} 2^(l-n) L_l(conv_l(F^s_l), F^t_l)  [+ kd_weight KL_tau]

    F are the maps of the n stages before their last ReLU, L_l is `ofd_loss`; a teacher map larger than the student's is pooled. Margins come
    from the batch norm that ends the teacher's residual branch; what the shortcut adds is not counted. The teacher is in eval mode.

    Args:
        feature_weight: 0.001.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019. Released code has the teacher in training mode: `OFDReleased`.
    """

    needs_features = True
    needs_preactivations = ("student", "teacher")

    def __init__(
        self,
        feature_weight: float = 1e-3,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        norms, stages_s, stages_t = teacher.tap_norms(), shapes_s.feats[1:], shapes_t.feats[1:]
        if len(stages_s) != len(stages_t):
            raise InputError(f"OFD pairs stages: the student has {len(stages_s)} stages, the teacher {len(stages_t)}")
        pairs = zip(stages_s, stages_t, strict=True)
        self.connectors = nn.ModuleList(connector(shape_s[0], shape_t[0]) for shape_s, shape_t in pairs)
        for index, norm in enumerate(norms):
            self.register_buffer(f"margin{index}", ofd_margin(norm.bias, norm.weight))

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        losses, last = [], len(self.connectors) - 1
        pairs = zip(self.connectors, student.preactivations[1:], teacher.preactivations[1:], strict=True)
        for index, (connect, feat_s, feat_t) in enumerate(pairs):
            feat_t = pool_to(feat_t, feat_s.shape[2:])
            losses.append(ofd_loss(connect(feat_s), feat_t, getattr(self, f"margin{index}")) / 2 ** (last - index))
        loss = self.feature_weight * torch.stack(losses).sum()
        return self.base_terms(student, teacher, labels) | {"feature": loss}


class OFDReleased(OFD):
    """OFD with the teacher's batch norms on the statistics of the batch at hand, as its authors and mdistiller run it.

    There the running statistics of the teacher move as well; here it is left as it was given.
    """

    batch_statistics = True
