"""Where two networks differ: the terms that adversarial data-free methods maximise in the images and minimise in the student.

Unlike the distillation losses, nothing is detached here: a generator needs the gradient through both networks. For a student's loss
pass the teacher's tensors detached.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses.checks import check_classes, check_logits, check_temperature, upcast


def disagreement_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Look for images on which the student does not follow the teacher, whatever their labels: `adversarial_loss` without its mask.

        L = -1/B sum_b KL(p^t_b || p^s_b),   p = softmax(z)

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both.
    Returns:
        Scalar <= 0, nats; unbounded below.
    Raises:
        InputError: shapes differ or K < 2.

    Source: Micaelli and Storkey, NeurIPS 2019 (ZSKT), eq. 1; the reduction of the CMI benchmark (ZSKT, DFQ). ZSKT's own code divides
    by K too, see `element_mean_kl_released`.
    """
    check_logits(logits_s, logits_t)
    return -_kl(logits_s, logits_t, 1.0).sum(dim=1).mean()


def disagreement_l1_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """The same in logits: L = -1/(B K) sum |z^s - z^t|.

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both.
    Returns:
        Scalar <= 0; unbounded below. Its negative is the student's loss.
    Raises:
        InputError: shapes differ or K < 2.

    Source: Fang et al., arXiv 1912.11006 (DFAD), eq. 6: an L1 whose gradient does not vanish where the two networks come close.
    """
    check_logits(logits_s, logits_t)
    return -(upcast(logits_s) - upcast(logits_t)).abs().mean()


def element_mean_kl(logits_s: Tensor, logits_t: Tensor, temperature: float = 30.0) -> Tensor:
    """KL averaged over classes too: K times weaker than `kd_loss`.

        L = tau^2 / (B K) sum_bk p^t_bk (ln p^t_bk - ln p^s_bk),   p = softmax(z / tau)

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both.
        temperature: tau > 0; 30 in SpaceshipNet, whose weight 900 is this tau^2.
    Returns:
        Scalar >= 0, nats.
    Raises:
        InputError: shapes differ, K < 2, or temperature not in (0, inf).

    Source: Yu et al., CVPR 2023 (SpaceshipNet), the distillation term of the released code.
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    return temperature**2 * _kl(logits_s, logits_t, temperature).mean()


def element_mean_kl_released(logits_s: Tensor, logits_t: Tensor, temperature: float = 1.0) -> Tensor:
    """`element_mean_kl` without the factor tau^2, as in ZSKT's code, where its negative is the generator's loss too.

    The paper's equation sums over classes; with the code's reduction the attention weight beta = 250 is relative to a KL that is K
    times smaller. Arguments and errors as there; tau is 1 in all published runs.
    """
    return element_mean_kl(logits_s, logits_t, temperature) / temperature**2


def class_balance_loss_released(logits_t: Tensor) -> Tensor:
    """`class_balance_loss` in DAFL's code: the logarithm has base 10, so a weight there equals 1 / ln 10 = 0.434 of that weight here.

        L = sum_k pbar_k log10 pbar_k,   pbar = 1/B sum_b softmax(z^t_b)

    Args:
        logits_t: (B, K) float.
    Returns:
        Scalar in [-log10 K, 0].
    Raises:
        InputError: K < 2.
    """
    check_classes(logits_t)
    log_mean = torch.logsumexp(F.log_softmax(upcast(logits_t), dim=1), dim=0) - math.log(logits_t.shape[0])
    return (log_mean.exp() * log_mean).sum() / math.log(10.0)


def attention_map(feat: Tensor) -> Tensor:
    """Where a feature map is strong: channel mean of squares, flattened, of unit length per image.

    Args:
        feat: (B, C, H, W) float.
    Returns:
        (B, H W) float, >= 0. A map of zeros stays zero.
    Raises:
        InputError: not four dimensions.

    Source: Zagoruyko and Komodakis, ICLR 2017.
    """
    if feat.dim() != 4:
        raise InputError(f"an attention map needs features (B, C, H, W), got shape {tuple(feat.shape)}")
    return F.normalize(upcast(feat).square().mean(dim=1).flatten(1), dim=1)


def attention_loss(feat_s: Tensor, feat_t: Tensor) -> Tensor:
    """Mean squared difference of two attention maps, over images and positions.

    Args:
        feat_s: (B, C_s, H, W), feat_t: (B, C_t, H, W) float; channels may differ.
    Returns:
        Scalar in [0, 4 / (H W)].
    Raises:
        InputError: batch or positions differ.

    Source: Zagoruyko and Komodakis, ICLR 2017; Micaelli and Storkey, NeurIPS 2019, eq. 2 with beta = 250.
    """
    map_s, map_t = attention_map(feat_s), attention_map(feat_t)
    if map_s.shape != map_t.shape:
        raise InputError(
            f"attention compares maps of one size, got features {tuple(feat_s.shape)} and {tuple(feat_t.shape)}"
        )
    return (map_s - map_t).square().mean()


def class_activation_maps(final_map: Tensor, weight: Tensor) -> Tensor:
    """What each class sees where: the classifier's weight applied at every position, without its bias.

        CAM_bkhw = sum_d W_kd F_bdhw

    Args:
        final_map: (B, D, H, W), what enters global average pooling. weight: (K, D) of the linear classifier.
    Returns:
        (B, K, H, W).
    Raises:
        InputError: D differs.

    Source: Zhou et al., CVPR 2016.
    """
    if final_map.dim() != 4 or weight.dim() != 2 or final_map.shape[1] != weight.shape[1]:
        raise InputError(f"maps {tuple(final_map.shape)} do not fit a classifier of weight {tuple(weight.shape)}")
    return torch.einsum("kd,bdhw->bkhw", weight, final_map)


def class_activation_loss(map_s: Tensor, map_t: Tensor, weight_s: Tensor, weight_t: Tensor) -> Tensor:
    """Mean squared difference of student's and teacher's class-activation maps.

    Args:
        map_s: (B, D_s, H, W), map_t: (B, D_t, H, W): final maps. weight_s: (K, D_s), weight_t: (K, D_t).
    Returns:
        Scalar >= 0.
    Raises:
        InputError: a weight does not fit its map, or the maps differ in batch, classes or size.

    Source: Yu et al., CVPR 2023 (SpaceshipNet), the term for class-activation maps.
    """
    cam_s, cam_t = class_activation_maps(map_s, weight_s), class_activation_maps(map_t, weight_t)
    if cam_s.shape != cam_t.shape:
        raise InputError(f"class-activation maps differ in shape: {tuple(cam_s.shape)} and {tuple(cam_t.shape)}")
    return (cam_s - cam_t).square().mean()


def _kl(logits_s: Tensor, logits_t: Tensor, temperature: float) -> Tensor:
    """(B, K) summands of KL(p^t || p^s)."""
    log_s, log_t = (F.log_softmax(upcast(logits) / temperature, dim=1) for logits in (logits_s, logits_t))
    return log_t.exp() * (log_t - log_s)
