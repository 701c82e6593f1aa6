"""WKD-F: the student's last map, taken as Gaussians, should be near the teacher's in Wasserstein distance."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.losses import wkd_f_losses
from kdnb.losses.features import pool_to, pool_to_smaller
from kdnb.methods.base import Method, cosine_decay, count, positive, weight
from kdnb.methods.fitnet import HintRegressor


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with biases and nothing between them, then batch norm and ReLU.

    Args:
        channels_s, channels_t: of the two maps. hidden: channels between the convolutions, 256.
    """

    def __init__(self, channels_s: int, channels_t: int, hidden: int = 256):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_s, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, channels_t, 1)
        self.bn = nn.BatchNorm2d(channels_t)

    def forward(self, feat_s: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3(self.conv2(self.conv1(feat_s)))))


class WKDF(Method):
    """Wasserstein distance of features beside the labels, with FitNet's regressor as projector.

        L = ce_weight CE + feature_weight gamma(epoch) [mean_ratio L_mean + L_deviation]  [+ kd_weight KL_tau]

    Moments are taken of the last tapped map in each cell of a grid. gamma is 1 up to epoch `decay_start`, then half a cosine down to 0 in the
    last epoch; with an unknown number of epochs it stays 1. Wide ResNets tap the raw map, negative numbers included, that a ReLU can't reach.

    Args:
        feature_weight: 0.08 (0.3 for WRN-40-2 to ShuffleNetV1).
        mean_ratio: 4 (3).
        grid: 1 (4).
        decay_start: 150.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Lv, Yang, Li, NeurIPS 2024.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 0.08,
        mean_ratio: float = 4.0,
        grid: int = 1,
        decay_start: int = 150,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.mean_ratio = weight("mean_ratio", mean_ratio)
        self.grid = count("grid", grid, least=1)
        self.decay_start = count("decay_start", decay_start)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        self.projector = HintRegressor(shapes_s.feats[-1], shapes_t.feats[-1])

    def pair(self, feat_s: Tensor, feat_t: Tensor) -> tuple[Tensor, Tensor]:
        """The projected map and its target, of one shape."""
        projected = self.projector(feat_s)
        return projected, pool_to(feat_t, projected.shape[2:])

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        of_mean, of_deviation = wkd_f_losses(*self.pair(student.feats[-1], teacher.feats[-1].detach()), self.grid)
        share = self.feature_weight * cosine_decay(epoch, self.decay_start, self.epochs)
        terms = {"mean": share * self.mean_ratio * of_mean, "deviation": share * of_deviation}
        return self.base_terms(student, teacher, labels) | terms


class WKDFBottleneck(WKDF):
    """WKD-F with the bottleneck projector of its ImageNet runs; the larger of two maps is pooled (released code refuses such pairs).

    Args:
        feature_weight, mean_ratio, grid, decay_start: 0.02, 2, 4 and 0 (ResNet-34 to 18; 0.005 for ResNet-50 to MobileNetV1).
        ce_weight, kd_weight, temperature: as `WKDF`.
    """

    def __init__(
        self,
        feature_weight: float = 0.02,
        mean_ratio: float = 2.0,
        grid: int = 4,
        decay_start: int = 0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__(feature_weight, mean_ratio, grid, decay_start, ce_weight, kd_weight, temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        self.projector = Bottleneck(shapes_s.feats[-1][0], shapes_t.feats[-1][0])

    def pair(self, feat_s: Tensor, feat_t: Tensor) -> tuple[Tensor, Tensor]:
        feat_s, feat_t = pool_to_smaller(feat_s, feat_t)
        return self.projector(feat_s), feat_t
