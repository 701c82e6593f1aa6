"""Soft labels: what a store keeps of a teacher's probabilities, what comes back, and how a student is trained on it."""

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError, check_name
from kdnb.losses.checks import check_logits, check_temperature, upcast

MODES = (
    "ori",
    "hard",
    "smoothing",
    "marginal_smoothing_kN",
    "marginal_renorm_kN",
)  # N: how many classes are kept, e.g. 5 or 10
DISCARD_HARD, CONTEXT, POSITIVE, DISCARD_EASY = range(4)  # regions of FerKD, in order of rising teacher confidence


class CompressedLabels(NamedTuple):
    """Top classes of each distribution, best first; leading dimensions are free (B,), (B, crops), ...

    Attributes:
        indices: (..., k) int64; None where all classes are kept in their order (`ori`).
        probs: (..., k) float; None where the winner is certain (`hard`).
    """

    indices: Tensor | None
    probs: Tensor | None


def parse_mode(mode: str) -> tuple[str, int]:
    """Split a mode's name into its kind and k, the number of classes kept (0 for `ori`: all).

    >>> parse_mode("marginal_smoothing_k5")
    ('marginal_smoothing', 5)

    Raises:
        InputError: unknown mode, with the nearest name.
    """
    found = re.fullmatch(r"(marginal_smoothing|marginal_renorm)_k([1-9]\d*)", str(mode))
    if found:
        return found.group(1), int(found.group(2))
    check_name(
        "label mode", mode, MODES[:3] + ("marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm_k5")
    )
    return mode, 0 if mode == "ori" else 1


def compress_labels(probs: Tensor, mode: str) -> CompressedLabels:
    """Keep what the mode needs of each distribution.

        ori: p      hard: argmax p      smoothing: (argmax p, max p)      marginal_*_kN: the N largest with their classes

    Args:
        probs: (..., K) float, rows sum to 1, K >= 2.
        mode: one of `MODES`.
    Returns:
        `CompressedLabels`.
    Raises:
        InputError: unknown mode, or k >= K.

    Source: Shen and Xing, ECCV 2022 (FKD). Deviations: one batched top-k instead of a full sort per crop; classes stay integers (the
    released code stores them as floats beside the probabilities, inexact above 2048 in half precision); `ori` can be written.
    """
    kind, k = parse_mode(mode)
    num_classes = probs.shape[-1]
    if k >= num_classes:
        raise InputError(f"mode {mode!r} keeps {k} classes; the distributions must have more, got {num_classes}")
    if kind == "ori":
        return CompressedLabels(None, probs)
    values, indices = probs.topk(k, dim=-1)
    return CompressedLabels(indices, None if kind == "hard" else values)


def restore_labels(compressed: CompressedLabels, mode: str, num_classes: int) -> Tensor:
    """Distributions over all classes from what was kept; the classes not kept share what is missing, or nothing.

        hard:                  onehot
        smoothing, marginal_smoothing:  p_k for the kept,  (1 - sum p) / (K - k) elsewhere
        marginal_renorm:       p_k / sum p for the kept,   0 elsewhere

    Args:
        compressed: as `compress_labels` returns; probabilities of any float type, restored in float32 at least.
        mode: the mode it was compressed with.
        num_classes: K.
    Returns:
        (..., K) float, rows sum to 1.
    Raises:
        InputError: unknown mode, or a width that doesn't belong to the mode.

    Source: Shen and Xing, ECCV 2022 (FKD). Deviations: the released loader looks for `marginal_renorm` where the writer says
    `marginal_renorm_k5` and then returns nothing, and can't restore half-precision stores.
    """
    kind, k = parse_mode(mode)
    indices, probs = compressed
    kept = probs if indices is None else indices
    if (
        kept is None
        or kept.shape[-1] != (k or num_classes)
        or (probs is None) != (kind == "hard")
        or (indices is None) != (kind == "ori")
    ):
        raise InputError(f"these compressed labels were not made with mode {mode!r} for {num_classes} classes")
    if kind == "ori":
        return upcast(probs)
    assert indices is not None
    if kind == "hard":
        return F.one_hot(indices[..., 0].long(), num_classes).float()
    values = upcast(probs)
    total = values.sum(-1, keepdim=True)
    if kind == "marginal_renorm":
        values, rest = values / total, torch.zeros_like(total)
    else:
        rest = (1 - total) / (num_classes - k)
    return rest.expand(*rest.shape[:-1], num_classes).scatter(-1, indices.long(), values)


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Cross-entropy against distributions.

        L = - mean_b sum_k q_bk log softmax(z_b / tau)_k

    Args:
        logits: (B, K) float, student logits.
        targets: (B, K) float, rows sum to 1; treated as constants.
        temperature: tau > 0 of the student alone; no tau^2 (the stored labels are not tempered).
        keep: (B,) bool, samples that count; the mean is over them, 0 if there are none. Default: all.
    Returns:
        Scalar, nats.
    Raises:
        InputError: shapes differ or temperature <= 0.

    Source: Shen and Xing, ECCV 2022 (FKD), with tau = 1.
    """
    check_logits(logits, targets)
    check_temperature(temperature)
    per_sample = -(targets.detach() * F.log_softmax(upcast(logits) / temperature, dim=-1)).sum(-1)
    if keep is None:
        return per_sample.mean()
    return torch.where(keep, per_sample, 0).sum() / keep.sum().clamp(min=1)


def ferkd_partition(confidence: Tensor, low: float, middle: float, top: float) -> Tensor:
    """Sort crops by the teacher's confidence into four regions.

        p < T_L: DISCARD_HARD     T_L <= p < T_M: CONTEXT     T_M <= p <= T_T: POSITIVE     p > T_T: DISCARD_EASY

    Args:
        confidence: any shape, in [0, 1].
        low, middle, top: T_L < T_M < T_T in [0, 1].
    Returns:
        int64 of the same shape, values 0..3.
    Raises:
        InputError: thresholds out of order or outside [0, 1].

    Source: Shen, ICCV 2023 (FerKD). The thresholds were not published and must be chosen; a crop exactly on T_L or T_M
    belongs to the region above it, one on T_T to the region below.
    """
    if not 0 <= low < middle < top <= 1:
        raise InputError(
            f"thresholds must satisfy 0 <= low < middle < top <= 1, got low = {low}, middle = {middle}, top = {top}"
        )
    return (confidence >= low).long() + (confidence >= middle) + (confidence > top)


def ferkd_targets(
    soft_labels: Tensor,
    labels: Tensor,
    low: float,
    middle: float,
    top: float,
    smoothing: float = 0.1,
    by_label: bool = False,
) -> tuple[Tensor, Tensor]:
    """Targets of FerKD: context crops get the smoothed ground truth, positives keep their soft label, the rest is left out.

        q = (1 - eps) onehot(y) + eps / (K - 1) elsewhere   in CONTEXT;      q = soft label   in POSITIVE

    Args:
        soft_labels: (..., K) restored teacher distributions.
        labels: (...) int64 class ids.
        low, middle, top: thresholds of `ferkd_partition`.
        smoothing: eps in [0, 1).
        by_label: confidence = probability of the true class; default: the largest probability, which every mode of a store holds
            exactly (after `marginal_*` compression a true class that was not kept has only its share of the rest).
    Returns:
        (targets (..., K), keep (...) bool) for `soft_cross_entropy`.
    Raises:
        InputError: thresholds out of order, or eps outside [0, 1).

    Source: Shen, ICCV 2023 (FerKD). Which probability is compared is not stated in the material at hand: both readings are here.
    """
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing must lie in [0, 1), got {smoothing}")
    num_classes = soft_labels.shape[-1]
    confidence = soft_labels.gather(-1, labels[..., None])[..., 0] if by_label else soft_labels.amax(-1)
    region = ferkd_partition(confidence, low, middle, top)
    smoothed = torch.full_like(soft_labels, smoothing / (num_classes - 1)).scatter(-1, labels[..., None], 1 - smoothing)
    targets = torch.where((region == CONTEXT)[..., None], smoothed, soft_labels)
    return targets, (region == CONTEXT) | (region == POSITIVE)


def self_mix(
    crops: Tensor, targets: Tensor, lam: Tensor, box: tuple[int, int, int, int] | None = None, shift: int = 1
) -> tuple[Tensor, Tensor]:
    """SelfMix: mix crops of the *same* image, so that the mixed label stays near the image's own.

        mixup:   x = lam x_i + (1 - lam) x_j           q = lam q_i + (1 - lam) q_j,      j = (i + shift) mod M
        cutmix:  the box of x_i is taken from x_j, and lam becomes 1 - box area / image area

    Args:
        crops: (B, M, C, H, W), M >= 2 crops of each image.
        targets: (B, M, K) their distributions.
        lam: (B,) or scalar tensor in [0, 1], share of the crop itself, one draw an image; unused with a box.
        box: (top, left, height, width) in pixels for cutmix; None for mixup.
        shift: which other crop is the partner, not a multiple of M.
    Returns:
        (crops, targets) of the same shapes.
    Raises:
        InputError: a crop would be mixed with itself, or the box leaves the image.

    Source: Shen, ICCV 2023 (FerKD). The pairing inside an image is not published; here it is a rotation.
    """
    num_crops, (height, width) = crops.shape[1], crops.shape[-2:]
    if shift % num_crops == 0:
        raise InputError(f"shift {shift} pairs each of the {num_crops} crops with itself")
    partners, partner_targets = crops.roll(-shift, 1), targets.roll(-shift, 1)
    if box is None:
        lam = torch.as_tensor(lam, dtype=crops.dtype, device=crops.device).reshape(-1, 1, 1)
        return torch.lerp(partners, crops, lam[..., None, None]), torch.lerp(
            partner_targets, targets, lam.to(targets.dtype)
        )
    y, x, h, w = box
    if min(y, x, h, w) < 0 or y + h > height or x + w > width:
        raise InputError(f"box {box} leaves the {height} x {width} image")
    mixed = crops.clone()
    mixed[..., y : y + h, x : x + w] = partners[..., y : y + h, x : x + w]
    return mixed, torch.lerp(targets, partner_targets, h * w / (height * width))
