"""SemCKD: attention decides, for each sample, which teacher layer teaches which student layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import batch_similarity, semckd_loss
from kdnb.losses.checks import no_autocast, upcast
from kdnb.losses.features import pool_to_smaller
from kdnb.methods.base import Method, count, later_channels, positive, weight


class SimilarityEmbedding(nn.Module):
    """A layer's query or key: each sample's row of similarities to the batch, through two linear layers, to unit length.

    Args:
        batch_size: B, the length of a row; an embedding works on batches of this size only.
        width: d, length of the result; 2 d between the layers.
    """

    def __init__(self, batch_size: int, width: int):
        super().__init__()
        self.linear1 = nn.Linear(batch_size, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)

    def forward(self, feature_map: Tensor) -> Tensor:
        rows = batch_similarity(feature_map)
        with no_autocast(rows):  # similarities are sums over a whole map; half precision can't hold them
            hidden = F.relu(F.linear(rows, upcast(self.linear1.weight), upcast(self.linear1.bias)))
            # normalize divides by max(norm, 1e-12): a sample whose hidden units are all off gives zeros, not NaN
            return F.normalize(F.linear(hidden, upcast(self.linear2.weight), upcast(self.linear2.bias)), dim=1)


def projection(channels_s: int, channels_t: int) -> nn.Sequential:
    """1 x 1, 3 x 3 and 1 x 1 convolution with 2 C_t channels between; no biases, batch norm and ReLU after the first two."""
    wide = 2 * channels_t
    return nn.Sequential(
        nn.Conv2d(channels_s, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
        nn.Conv2d(wide, channels_t, 1, bias=False),
    )


class CrossLayerAttention(nn.Module):
    """Everything SemCKD learns beside the student: queries, keys, and one projection for each pair of layers.

    Args:
        channels_s, channels_t: channels of the S student and T teacher maps.
        batch_size: B.
        factor: the embeddings have B // factor numbers.
        softness: s, divides the logits of the attention.
    """

    def __init__(
        self, channels_s: list[int], channels_t: list[int], batch_size: int, factor: int = 4, softness: float = 1.0
    ):
        super().__init__()
        width = batch_size // factor
        if width < 1:
            raise InputError(
                f"SemCKD embeds similarities in batch_size // {factor} numbers; batch_size must be >= {factor}, got {batch_size}"
            )
        self.batch_size, self.softness = batch_size, softness
        self.queries = nn.ModuleList(SimilarityEmbedding(batch_size, width) for _ in channels_s)
        self.keys = nn.ModuleList(SimilarityEmbedding(batch_size, width) for _ in channels_t)
        self.projections = nn.ModuleList(
            nn.ModuleList(projection(c_s, c_t) for c_t in channels_t) for c_s in channels_s
        )

    def attention(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """(B, S, T) shares of the teacher layers, A = softmax_j(q_i . k_j / s); gradients reach the student through its queries."""
        queries = torch.stack([embed(feat) for embed, feat in zip(self.queries, feats_s, strict=True)], dim=1)
        keys = torch.stack([embed(feat) for embed, feat in zip(self.keys, feats_t, strict=True)], dim=1)
        with no_autocast(queries):
            return (queries @ keys.mT / self.softness).softmax(-1)

    def pair(self, i: int, j: int, feat_s: Tensor, feat_t: Tensor) -> tuple[Tensor, Tensor]:
        """Student layer i projected to teacher layer j, and its target; the larger map is pooled, the student's before projection."""
        feat_s, feat_t = pool_to_smaller(feat_s, feat_t)
        return self.projections[i][j](feat_s), feat_t

    def distances(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """(B, S, T) mean squared errors of each sample."""
        rows = []
        for i, feat_s in enumerate(feats_s):
            pairs = (self.pair(i, j, feat_s, feat_t) for j, feat_t in enumerate(feats_t))
            rows.append(
                torch.stack([(upcast(ours) - upcast(theirs)).square().mean((1, 2, 3)) for ours, theirs in pairs], dim=1)
            )
        return torch.stack(rows, dim=1)


class SemCKD(Method):
    """Cross-layer distillation with semantic calibration.

        L = ce_weight CE + kd_weight KL_tau + feature_weight 1 / (B S) sum_b sum_ij A_bij mean (proj_ij(F^s_i) - F^t_j)_b^2

    Taps are all maps but the stem's. The embeddings take rows of B similarities, so a batch of another size than the bound one (the last
    of an epoch) has no feature term; released code drops such batches altogether.

    Args:
        feature_weight: 400 on CIFAR-100, 50 on ImageNet.
        ce_weight, kd_weight, temperature: 1, 1 and 4.
        factor: 4, embeddings have B // factor numbers.
        softness: 1, divides the logits of the attention.

    Source: Chen, Mei, Zhang, Wang, Wang, Feng, Chen, AAAI 2021. Released code also carries an unused layer in each embedding.
    """

    needs_features = True

    def __init__(
        self,
        feature_weight: float = 400.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 4.0,
        factor: int = 4,
        softness: float = 1.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)
        self.factor = count("factor", factor, least=1)
        self.softness = positive("softness", softness)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        channels = later_channels(shapes_s, "student"), later_channels(shapes_t, "teacher")
        self.adapter = CrossLayerAttention(*channels, batch_size, self.factor, self.softness)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        terms = self.base_terms(student, teacher, labels)
        if student.logits.shape[0] != self.adapter.batch_size:
            return terms
        feats_s, feats_t = student.feats[1:], [feat.detach() for feat in teacher.feats[1:]]
        loss = semckd_loss(self.adapter.attention(feats_s, feats_t), self.adapter.distances(feats_s, feats_t))
        return terms | {"feature": self.feature_weight * loss}
