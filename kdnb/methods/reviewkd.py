"""ReviewKD: each teacher stage is reviewed by all student stages at and after it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import hierarchical_context_loss
from kdnb.methods.base import Method, count, positive, warm_up, weight


class ReviewFusion(nn.Module):
    """Merge one student map with the residue of the coarser ones, and bring the result to the teacher's shape.

        r = a_1 conv1(F) + a_2 up(r'),  a = sigmoid(conv([conv1(F), up(r')]));   result = conv2(resized r)

    Args:
        channels_s, middle, channels_t: of the student's map, of the residue, of the teacher's map.
        fuse: False for the coarsest map, which has no residue before it.
    """

    def __init__(self, channels_s: int, middle: int, channels_t: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels_s, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, channels_t, 3, padding=1, bias=False), nn.BatchNorm2d(channels_t))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for convolution in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feat_s: Tensor, residue: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The result in the teacher's shape, and the residue for the next finer map; `size` is (H, W) of the teacher's map."""
        x = self.conv1(feat_s)
        if residue is not None:
            residue = F.interpolate(residue, x.shape[2:])
            assert self.att_conv is not None
            share = self.att_conv(torch.cat([x, residue], dim=1))
            x = x * share[:, :1] + residue * share[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.conv2(x), x


class Review(nn.Module):
    """The chain of fusions, from the pooled vector (a 1 x 1 map) to the finest map.

    Args:
        channels_s, channels_t: of the maps from fine to coarse, the pooled vector last.
    """

    def __init__(self, channels_s: list[int], channels_t: list[int]):
        super().__init__()
        middle, last = min(512, channels_s[-1]), len(channels_s) - 1
        self.fusions = nn.ModuleList(
            ReviewFusion(channels_s[level], middle, channels_t[level], fuse=level < last)
            for level in range(last, -1, -1)
        )

    def forward(self, feats_s: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """One map for each teacher map, fine to coarse as the student's maps and the teacher's sizes."""
        results: list[Tensor] = []
        residue = None
        for fusion, feat_s, size in zip(self.fusions, reversed(feats_s), reversed(sizes), strict=True):
            result, residue = fusion(feat_s, residue, size)
            results.insert(0, result)
        return results


def as_levels(maps: list[Tensor], pooled: Tensor) -> list[Tensor]:
    """All maps but the stem's, fine to coarse, with the pooled vector as a map of 1 x 1 at the end."""
    return [*maps[1:], pooled[:, :, None, None]]


class ReviewKD(Method):
    """Knowledge review beside the labels.

        L = ce_weight CE + feature_weight min(epoch / warmup, 1) sum_l HCL(review_l(F^s_l, F^s_l+1, ...), F^t_l)  [+ kd_weight KL_tau]

    The student's maps are compared with the teacher's before their last ReLU, the pooled vectors with each other. Both networks need as many
    stages; sizes may differ.

    Args:
        feature_weight: 5 (8 for ResNet-32x4 to ShuffleNetV2, 0.6 and 1 for ResNet-56 to 20 and 110 to 32; 1 on ImageNet).
        warmup: 20 epochs (1 on ImageNet).
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Chen, Liu, Zhao, Jia, CVPR 2021. The residue has min(512, C of the pooled vector) channels, whatever released settings say.
    """

    needs_features = True
    needs_preactivations = ("teacher",)

    def __init__(
        self,
        feature_weight: float = 5.0,
        warmup: int = 20,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.warmup = count("warmup", warmup)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        channels = [[shape[0] for shape in (*shapes.feats[1:], shapes.pooled)] for shapes in (shapes_s, shapes_t)]
        if len(channels[0]) != len(channels[1]):
            raise InputError(
                f"ReviewKD pairs stages: the student has {len(channels[0]) - 1} stages, the teacher {len(channels[1]) - 1}"
            )
        self.review = Review(*channels)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        targets = as_levels(teacher.preactivations, teacher.pooled)
        results = self.review(as_levels(student.feats, student.pooled), [target.shape[2:] for target in targets])
        losses = [hierarchical_context_loss(*pair) for pair in zip(results, targets, strict=True)]
        loss = self.feature_weight * warm_up(epoch, self.warmup) * torch.stack(losses).sum()
        return self.base_terms(student, teacher, labels) | {"feature": loss}
