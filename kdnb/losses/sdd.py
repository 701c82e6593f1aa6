"""Scale-decoupled distillation (SDD): logits of image regions at several scales, weighted by whether the teacher's
answer for the region agrees in correctness with its answer for the image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_labels, check_logits, upcast
from kdnb.losses.dkd import dkd_per_sample
from kdnb.losses.kd import kd_per_sample
from kdnb.losses.standardization import standardize

GRID = 4  # every scale is pooled from a 4 x 4 grid of cells


def check_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Scales as a tuple: ascending divisors of 4, so that every coarser region is a whole number of cells.

    >>> check_scales([1, 2])
    (1, 2)
    """
    given = tuple(scales)
    if not given or any(s not in (1, 2, 4) for s in given) or list(given) != sorted(set(given)):
        raise InputError(f"scales must be ascending, distinct and among 1, 2, 4, got {list(given)}")
    return given


def multiscale_pool(feature_map: Tensor, scales: Sequence[int]) -> Tensor:
    """Average a feature map over the regions of every scale.

        P_4 = adaptive average pool of F to 4 x 4;   P_s = s x s average pool of P_4

    Args:
        feature_map: (B, D, H, W) float, any H, W >= 1.
        scales: ascending, of 1, 2, 4; scale s has s^2 regions.
    Returns:
        (B, D, M), M = sum of s^2, regions coarse to fine and row-major within a scale.
    Raises:
        InputError: other scales, or a map that is not 4-dimensional.

    Source: Luo, Cheng, Scale Decoupled Distillation, CVPR 2024, section 3.2; coarse scales come from the 4 x 4 grid as in released code.
    Where 4 does not divide H (7 on ImageNet) the cells overlap, so region 0 is not the global average; at H = 2 each pixel fills 4 cells.
    """
    scales = check_scales(scales)
    if feature_map.dim() != 4:
        raise InputError(f"feature_map must be (B, D, H, W), got shape {tuple(feature_map.shape)}")
    grid = F.adaptive_avg_pool2d(feature_map, GRID)
    levels = [grid if s == GRID else F.avg_pool2d(grid, GRID // s) for s in scales]
    return torch.cat([level.flatten(2) for level in levels], dim=2)


def region_logits(final_map: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int]) -> Tensor:
    """Apply a network's own classifier to every region of its final map.

        z_bkm = sum_d W_kd P_bdm + c_k

    Args:
        final_map: (B, D, H, W), what enters global pooling.
        weight: (K, D) weights of the linear classifier.
        bias: (K,) or None.
        scales: see `multiscale_pool`.
    Returns:
        (B, K, M) logits; with scale 1 first, region 0 is the whole image.
    Raises:
        InputError: as `multiscale_pool`, or D differs between map and classifier.
    """
    if final_map.dim() == 4 and weight.shape[1] != final_map.shape[1]:
        raise InputError(f"the classifier takes {weight.shape[1]} features, the map has {final_map.shape[1]} channels")
    logits = torch.matmul(weight, multiscale_pool(final_map, scales))  # (K, D) x (B, D, M) -> (B, K, M)
    return logits if bias is None else logits + bias.unsqueeze(1)


def _correct(logits_t: Tensor, labels: Tensor) -> Tensor:
    """(B, M) whether the teacher names the true class in the region."""
    return logits_t.argmax(1) == labels.unsqueeze(1)


def sdd_groups(logits_t: Tensor, labels: Tensor) -> Tensor:
    """Which of four kinds a region is, from the teacher's answers for the image (region 0) and for the region.

    Args:
        logits_t: (B, K, M) teacher logits.
        labels: (B,) int64.
    Returns:
        (B, M) int64: 0 both right, 1 image right and region wrong, 2 both wrong, 3 image wrong and region right.
    """
    local = _correct(logits_t, labels)
    return torch.where(local[:, :1], (~local).long(), 2 + local.long())


def sdd_weights(logits_t: Tensor, labels: Tensor, complementary_weight: float = 2.0) -> Tensor:
    """(B, M) weights: 1 where image and region are both right or both wrong, `complementary_weight` elsewhere.

    The test is correctness, as in released code: a region wrong in another way than the image counts as consistent, although the
    paper's text speaks of the same class.
    """
    local = _correct(logits_t, labels)
    complementary = (local != local[:, :1]).to(upcast(logits_t).dtype)
    return 1 + (complementary_weight - 1) * complementary


def region_rows(logits: Tensor, standardized: bool) -> Tensor:
    """(B, K, M) -> (B, M, K), each region's row z-scored by itself if asked."""
    rows = logits.transpose(1, 2)
    return standardize(rows) if standardized else rows


def check_regions(logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> None:
    """Region logits of one shape (B, K, M) with K >= 2, and a label for each image."""
    if logits_s.dim() != 3:
        raise InputError(f"region logits must be (B, K, M), got shape {tuple(logits_s.shape)}")
    check_logits(logits_s, logits_t, class_dim=1)
    check_labels(labels, logits_s.shape[:1])


def sdd_kd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    complementary_weight: float = 2.0,
    standardize_logits: bool = False,
) -> Tensor:
    """Scale-decoupled soft targets.

        L = 1 / (B M) sum_b sum_m w_bm tau^2 KL(q_bm || p_bm)

    Args:
        logits_s, logits_t: (B, K, M) region logits, region 0 the whole image; the teacher's are treated as constants.
        labels: (B,) int64; they set the weights w only (see `sdd_weights`).
        temperature: tau > 0.
        complementary_weight: w of complementary regions; 2 is the best of 1, 2, 4, 6, 8 in the paper.
        standardize_logits: z-score every region's row first (the fusion with LSKD).
    Returns:
        Scalar, nats. With M = 1 it is `kd_loss`.
    Raises:
        InputError: shapes that do not fit, K < 2, or temperature not in (0, inf).

    Source: Luo, Cheng, Scale Decoupled Distillation, CVPR 2024, equations 6-9. The paper sums over regions; released code, and this
    function, average, so that the weight against cross-entropy does not depend on M.
    """
    check_regions(logits_s, logits_t, labels)
    rows = kd_per_sample(
        region_rows(logits_s, standardize_logits), region_rows(logits_t.detach(), standardize_logits), temperature
    )
    return (sdd_weights(logits_t, labels, complementary_weight) * rows).mean()


def _dkd_rows(logits_s, logits_t, labels, alpha, beta, temperature, standardized) -> Tensor:
    labels = labels.unsqueeze(1).expand(-1, logits_s.shape[2])
    tckd, nckd = dkd_per_sample(
        region_rows(logits_s, standardized), region_rows(logits_t.detach(), standardized), labels, temperature
    )
    return alpha * tckd + beta * nckd


def sdd_dkd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    complementary_weight: float = 2.0,
    standardize_logits: bool = False,
) -> Tensor:
    """Scale-decoupled DKD: `sdd_kd_loss` with alpha TCKD + beta NCKD (see `dkd_loss`) in place of the KL of a region.

        L = 1 / (B M) sum_b sum_m w_bm (alpha TCKD_bm + beta NCKD_bm)

    Arguments, returns, errors and source as `sdd_kd_loss`; alpha and beta as `dkd_loss`.
    """
    check_regions(logits_s, logits_t, labels)
    rows = _dkd_rows(logits_s, logits_t, labels, alpha, beta, temperature, standardize_logits)
    return (sdd_weights(logits_t, labels, complementary_weight) * rows).mean()


def sdd_kd_lskd_loss_released(logits_s: Tensor, logits_t: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """The SDD + LSKD fusion with KL as its released code computes it; `sdd_kd_loss(..., standardize_logits=True)` is the sound form.

        L = mean_{r in A} l_r + mean_{r not in A} l_r,   r = m B + b,   A: the region is right exactly if image floor(r / M) is

    Two slips are kept: the image of row r is r mod B, not floor(r / M), so regions are grouped by another image's answer; and each group
    is averaged by itself, so complementary regions weigh more the fewer there are. An empty group adds 0.

    Arguments as `sdd_kd_loss`. Source: Shardzzi/SDD-LSKD-Fusion, released code only.
    """
    check_regions(logits_s, logits_t, labels)
    rows = kd_per_sample(
        region_rows(logits_s, True), region_rows(logits_t.detach(), True), temperature
    ).T.flatten()  # (M B), region-major
    local = _correct(logits_t, labels)
    image = torch.arange(rows.numel(), device=rows.device) // local.shape[1]
    consistent = (local.T.flatten() == local[image, 0]).to(rows.dtype)
    groups = torch.stack([consistent, 1 - consistent])  # (2, M B)
    return ((groups * rows).sum(1) / groups.sum(1).clamp(min=1)).sum()


def sdd_dkd_lskd_loss_released(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 9.0,
    beta: float = 72.0,
    temperature: float = 2.0,
    complementary_weight: float = 2.0,
) -> Tensor:
    """The SDD + LSKD fusion with DKD as its released code computes it: a sum over all B M rows (only M = 1 is divided by B).

    At B = 64 and M = 21 the value is 1344 times that of `sdd_dkd_loss(..., standardize_logits=True)`, the sound form; released training
    hides it behind gradient clipping at norm 40. Arguments as `sdd_dkd_loss`. Source: Shardzzi/SDD-LSKD-Fusion, released code only.
    """
    mean = sdd_dkd_loss(
        logits_s, logits_t, labels, alpha, beta, temperature, complementary_weight, standardize_logits=True
    )
    regions = logits_s.shape[2]
    return mean if regions == 1 else mean * (logits_s.shape[0] * regions)


def sdd_dkd_lskd_loss_averaged_weights_released(
    logits_s: Tensor,
    logits_t: Tensor,
    labels: Tensor,
    alpha: float = 9.0,
    beta: float = 72.0,
    temperature: float = 2.0,
    complementary_weight: float = 2.0,
) -> Tensor:
    """The SDD + LSKD fusion with DKD as another released code computes it: no region is weighted by itself.

        L = (1 / (B M) sum_bm w_bm) (1 / (B M) sum_bm (alpha TCKD_bm + beta NCKD_bm))

    SDD's weights are averaged over the batch before they meet the rows: the more complementary regions a batch has, the more all its
    regions count. Arguments as `sdd_dkd_loss`.

    Source: iversonshao/DSKD, released code only.
    """
    check_regions(logits_s, logits_t, labels)
    rows = _dkd_rows(logits_s, logits_t, labels, alpha, beta, temperature, True)
    return sdd_weights(logits_t, labels, complementary_weight).mean() * rows.mean()
