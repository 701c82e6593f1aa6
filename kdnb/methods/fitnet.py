"""FitNet: the student imitates one intermediate map of the teacher."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import feature_mse
from kdnb.losses.features import pool_to
from kdnb.methods.base import Method, count, positive, weight


class HintRegressor(nn.Module):
    """Convolution, batch norm and ReLU from a student map to the shape of the teacher's map.

    Sizes choose the convolution: half as large, 4 x 4 transposed with stride 2; twice as large, 3 x 3 with stride 2; otherwise larger or
    equal, one without padding whose kernel spans the difference. A student map smaller in another ratio gets a 3 x 3 convolution, and
    the teacher's map is pooled (as in SimKD's tool-box; RepDistiller and mdistiller refuse such a pair).

    Args:
        shape_s, shape_t: (C, H, W) of the two maps.
    """

    def __init__(self, shape_s: tuple[int, int, int], shape_t: tuple[int, int, int]):
        super().__init__()
        (c_s, h_s, w_s), (c_t, h_t, w_t) = shape_s, shape_t
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            self.conv = nn.Conv2d(c_s, c_t, 3, padding=1)
        self.bn = nn.BatchNorm2d(c_t)

    def forward(self, feat_s: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(feat_s)))


class FitNet(Method):
    """Hint training beside the labels.

        L = ce_weight CE + feature_weight mean (r(F^s_h) - F^t_h)^2  [+ kd_weight KL_tau]

    Args:
        feature_weight: 100.
        hint: index h of the tapped map, 2 in mdistiller and RepDistiller, 1 in SimKD's tool-box.
        ce_weight, kd_weight, temperature: 1, 0 and 4; SemCKD's and SimKD's tables add KD with weight 1.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015; trained in one stage as in all later comparisons.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 100.0,
        hint: int = 2,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.hint = count("hint", hint)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        taps = min(len(shapes_s.feats), len(shapes_t.feats))
        if self.hint >= taps:
            raise InputError(f"hint must be below {taps}, the number of maps that both networks have, got {self.hint}")
        self.regressor = HintRegressor(shapes_s.feats[self.hint], shapes_t.feats[self.hint])

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        regressed = self.regressor(student.feats[self.hint])
        feat_t = pool_to(teacher.feats[self.hint].detach(), regressed.shape[2:])
        terms = self.base_terms(student, teacher, labels)
        return terms | {"feature": self.feature_weight * feature_mse(regressed, feat_t)}
