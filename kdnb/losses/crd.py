"""Contrastive representation distillation: the student's vector of an image should be found by the teacher's among many others."""

import math

import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_temperature, no_autocast, upcast


def crd_log_scores(anchors: Tensor, memory: Tensor, places: Tensor, temperature: float = 0.07) -> Tensor:
    """<v_b, m_j> / tau for each anchor and the entries of a memory that it is held against.

    One matrix product with the whole memory, then a choice: B n numbers instead of the B (k + 1) d of looked-up vectors (25 MB instead of
    1 GB for 50 000 images, k = 16384). Logarithms, because e^(1 / 0.07) doesn't fit in float16.

    Args:
        anchors: (B, d) at unit length. memory: (n, d), treated as constant. places: (B, k + 1) int64, rows of the memory, the positive first.
        temperature: tau > 0; 0.07.
    Returns:
        (B, k + 1), float32 at least.
    Raises:
        InputError: temperature <= 0.
    """
    check_temperature(temperature)
    anchors, memory = upcast(anchors), upcast(memory.detach())
    with no_autocast(anchors):
        return (anchors @ memory.T).gather(1, places) / temperature


def crd_log_normalizer(log_scores: Tensor, num_images: int) -> Tensor:
    """ln Z = ln(n mean e^s), the estimate of released code from its first batch; a constant."""
    scores = log_scores.detach()
    return scores.flatten().logsumexp(0) + math.log(num_images / scores.numel())


def crd_loss(log_scores: Tensor, num_images: int, eps: float = 1e-7) -> Tensor:
    """Noise-contrastive loss: tell one positive from k negatives that were drawn with probability 1 / n each.

        L = -1/B sum_b [ ln x_0 / (x_0 + k/n + eps) + sum_{j=1..k} ln (k/n) / (x_j + k/n + eps) ],   x = e^s / Z

    Args:
        log_scores: (B, k + 1) ln x, the positive first; gradients flow here.
        num_images: n.
        eps: 1e-7.
    Returns:
        Scalar, nats.
    Raises:
        InputError: no negatives.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020; Z and eps are released code's.
    """
    num_negatives = log_scores.shape[1] - 1
    if num_negatives < 1:
        raise InputError(f"log_scores need a positive and at least one negative, got shape {tuple(log_scores.shape)}")
    share = num_negatives / num_images
    noise = log_scores.new_full((), math.log(share + eps))
    total = torch.logaddexp(log_scores, noise)
    positive = log_scores[:, 0] - total[:, 0]
    negative = math.log(share) - total[:, 1:]
    return -(positive + negative.sum(1)).mean()
