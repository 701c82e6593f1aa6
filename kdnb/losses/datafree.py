"""Losses that turn a trained classifier into a source of images: batch-norm statistics, labels, disagreement, balance, smoothness.

Every function maps tensors to a scalar to be *minimised* by whatever makes the images. Here gradients flow through both networks into
the images, so, unlike in the distillation losses, the teacher's logits are not detached.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_classes, check_logits, check_temperature, upcast
from kdnb.losses.kd import ce_loss, kd_loss


def batch_norm_terms(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_variances: Sequence[Tensor],
    squared: bool = False,
) -> Tensor:
    """Mismatch between a batch and the statistics that each batch-norm layer remembers, one value a layer.

        r_l = ||mu_l(x) - mu_l|| + ||var_l(x) - var_l||            (squared: ||.||^2)

    Args:
        means, variances: L tensors (C_l,), statistics of what *enters* each layer (biased variance); see `BatchNormProbe`.
        running_means, running_variances: L tensors (C_l,), the layers' buffers; constants.
        squared: squared norms, as the equation of Fast-AD states it. Default: un-squared, whose gradient has unit length per term.
    Returns:
        (L,) tensor, >= 0. At exact agreement the gradient of an un-squared norm is undefined; here it is 0 (the sub-gradient of
        `vector_norm`), so no epsilon shifts the value.
    Raises:
        InputError: the four lists differ in length or are empty.

    Source: Yin et al., CVPR 2020 (DeepInversion), eq. 4, with the un-squared norms of its released code. Fast-AD's released code
    compares the statistics of the layers' *outputs* with these buffers; that is not offered here.
    """
    lengths = {len(means), len(variances), len(running_means), len(running_variances)}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(
            f"batch-norm statistics need four non-empty lists of one length (one entry a layer), got lengths {sorted(lengths)}"
        )
    terms = []
    for mean, variance, running_mean, running_variance in zip(
        means, variances, running_means, running_variances, strict=True
    ):
        gap_mean, gap_variance = mean - running_mean.detach(), variance - running_variance.detach()
        if squared:
            terms.append(gap_mean.square().sum() + gap_variance.square().sum())
        else:
            terms.append(torch.linalg.vector_norm(gap_mean) + torch.linalg.vector_norm(gap_variance))
    return torch.stack(terms)


def batch_norm_loss(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_variances: Sequence[Tensor],
    squared: bool = False,
    first_layer_weight: float = 1.0,
) -> Tensor:
    """Sum over layers of `batch_norm_terms`.

        L_bn = a r_1 + sum_{l>1} r_l

    Args:
        means, variances, running_means, running_variances, squared: as in `batch_norm_terms`.
        first_layer_weight: a, weight of the layer nearest to the pixels; 1 (DeepInversion uses 10 on ImageNet).
    Returns:
        Scalar >= 0. A sum, not a mean: the weight against the label loss grows with the number of layers.

    Source: Yin et al., CVPR 2020. Fast-AD's released code divides by the number of layers; its paper sums.
    """
    terms = batch_norm_terms(means, variances, running_means, running_variances, squared)
    return terms.sum() + (first_layer_weight - 1.0) * terms[0] if first_layer_weight != 1.0 else terms.sum()


class BatchNormMomentum:
    """Remembers earlier batches' statistics, so that a small batch is judged together with those before it.

        mixed = (1 - m) s(x) + m buffer          once a buffer exists, else s(x)
        buffer <- (1 - m) s(x) + m buffer        at `update`, the first time a plain copy

    Args:
        momentum: m in [0, 1); 0.9.
    Raises:
        InputError: momentum outside [0, 1).

    The gradient through `mix` is scaled by 1 - m; the buffer itself is a constant.
    Source: Fang et al., AAAI 2022 (Fast-Datafree), where the buffer is updated once per synthesised batch.
    """

    def __init__(self, momentum: float = 0.9):
        if not 0.0 <= momentum < 1.0:
            raise InputError(f"batch-norm momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def mix(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The statistics to be compared with the running ones; differentiable in `means` and `variances`."""
        if not self.means:
            return list(means), list(variances)
        return self._average(means, self.means), self._average(variances, self.variances)

    @torch.no_grad()
    def update(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Take a batch's own (unmixed) statistics into the buffer."""
        mixed = self.mix(means, variances)
        self.means, self.variances = ([value.detach().clone() for value in values] for values in mixed)

    def _average(self, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
        return [(1.0 - self.momentum) * a + self.momentum * b for a, b in zip(new, old, strict=True)]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"means": list(self.means), "variances": list(self.variances)}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.means, self.variances = list(state["means"]), list(state["variances"])


def adversarial_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Look for images on which teacher and student agree in the label but not in the probabilities.

        L_adv = -1/B sum_b m_b KL(p^t_b || p^s_b),   m_b = [argmax z^s_b = argmax z^t_b]

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both, into the images.
    Returns:
        Scalar <= 0, nats, at temperature 1 (float32 at least). The mask is a constant; where the labels differ already, nothing is gained.
    Raises:
        InputError: shapes differ or K < 2.

    Source: Fang et al., IJCAI 2021 (CMI) and AAAI 2022 (Fast-Datafree), masked form of their released code.
    """
    check_logits(logits_s, logits_t)
    log_s, log_t = _log_probs(logits_s), _log_probs(logits_t)
    agree = logits_s.argmax(dim=1) == logits_t.argmax(dim=1)
    return -(agree * (log_t.exp() * (log_t - log_s)).sum(dim=1)).mean()


def one_hot_loss(logits_t: Tensor, labels: Tensor | None = None) -> Tensor:
    """The teacher should name the wanted class.

        L_oh = 1/B sum_b CE(T(x_b), y_b),   y_b = argmax T(x_b) if no labels are given

    Args:
        logits_t: (B, K) float.
        labels: (B,) int64, or None for the teacher's own vote (DAFL's one-hot loss).
    Returns:
        Scalar, nats.

    Source: Yin et al., CVPR 2020 (labels); Chen et al., ICCV 2019 (own vote).
    """
    return ce_loss(logits_t, logits_t.argmax(dim=1) if labels is None else labels)


def class_balance_loss(logits_t: Tensor) -> Tensor:
    """The batch should cover the classes evenly: negative entropy of the mean prediction.

        L_bal = sum_k pbar_k ln pbar_k,   pbar = 1/B sum_b softmax(z^t_b)

    Args:
        logits_t: (B, K) float.
    Returns:
        Scalar in [-ln K, 0], nats; -ln K for a balanced batch.

    Source: Chen et al., ICCV 2019 (DAFL), information-entropy loss.
    """
    check_classes(logits_t)
    log_mean = torch.logsumexp(_log_probs(logits_t), dim=0) - math.log(logits_t.shape[0])
    return (log_mean.exp() * log_mean).sum()


def activation_loss(features: Tensor) -> Tensor:
    """Real images excite the penultimate layer: minus the mean absolute feature, -1/(B D) sum |f|.

    Args:
        features: (B, D) float, the teacher's pooled features.
    Returns:
        Scalar <= 0.

    Source: Chen et al., ICCV 2019 (DAFL), activation loss.
    """
    return -upcast(features).abs().mean()


def js_divergence(logits_s: Tensor, logits_t: Tensor, temperature: float = 3.0) -> Tensor:
    """Jensen-Shannon divergence between teacher and student; Adaptive DeepInversion maximises it.

        JS = 1/(2B) sum_b KL(p_b || m_b) + KL(q_b || m_b),   m = (p + q) / 2,   p, q = softmax(z / tau)

    Args:
        logits_s, logits_t: (B, K) float; gradients flow through both.
        temperature: tau > 0; 3.
    Returns:
        Scalar in [0, ln 2], nats; symmetric. The loss of Adaptive DeepInversion is 1 - JS.
    Raises:
        InputError: temperature <= 0.

    Source: Yin et al., CVPR 2020, eq. 7.
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    log_p, log_q = _log_probs(logits_s, temperature), _log_probs(logits_t, temperature)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=1).mean()


def js_divergence_released(logits_s: Tensor, logits_t: Tensor, temperature: float = 3.0) -> Tensor:
    """The form in the released code of CMI and DeepInversion: arguments swapped, probabilities clamped to [0.01, 0.99].

        1/(2B) sum_b KL(m_b || p_b) + KL(m_b || q_b),   each of p, q, m clamped after m = (p + q) / 2

    Clamped vectors do not sum to one, so it is no divergence. Arguments and errors as in `js_divergence`.
    """
    check_logits(logits_s, logits_t)
    check_temperature(temperature)
    p, q = _log_probs(logits_s, temperature).exp(), _log_probs(logits_t, temperature).exp()
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, 0.5 * (p + q)))
    return 0.5 * (m * (2.0 * m.log() - p.log() - q.log())).sum(dim=1).mean()


def total_variation_l1(images: Tensor) -> Tensor:
    """Roughness of images: mean absolute difference to four neighbours (right, below, both diagonals), summed.

    Args:
        images: (B, C, H, W) float, H, W >= 2.
    Returns:
        Scalar >= 0, in pixel units; independent of image and batch size.

    Source: Mahendran and Vedaldi, CVPR 2015, in the L1 form of the CMI benchmark code.
    """
    return torch.stack([difference.abs().mean() for difference in _neighbour_differences(images)]).sum()


def total_variation_l2(images: Tensor) -> Tensor:
    """The same four differences as Euclidean norms over the whole batch, summed (DeepInversion; weight 2.5e-5 on CIFAR).

    Args:
        images: (B, C, H, W) float, H, W >= 2.
    Returns:
        Scalar >= 0; grows with the root of the number of pixels.

    Source: Yin et al., CVPR 2020.
    """
    return torch.stack([torch.linalg.vector_norm(difference) for difference in _neighbour_differences(images)]).sum()


def hard_mix_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    kd_weight: float = 0.9,
    ce_weight: float = 0.1,
    temperature: float = 20.0,
    labels: Tensor | None = None,
) -> Tensor:
    """Distillation with a hard-label share, for images that have no ground truth.

        L = alpha KD_tau(S, T) + beta CE(S, y),   y = argmax T unless given

    Args:
        logits_s: (B, K) float, student; gradients flow here only.
        logits_t: (B, K) float, teacher, constants.
        kd_weight, ce_weight, temperature: alpha 0.9, beta 0.1, tau 20.
        labels: (B,) int64, kept where an attack has replaced image and logits; None = the teacher's vote (the `no_aea` ablation).
    Returns:
        Scalar, nats.
    Raises:
        InputError: shapes differ, temperature <= 0.

    Source: AEAHL-RG released code (2024).
    """
    labels = logits_t.argmax(dim=1) if labels is None else labels
    return kd_weight * kd_loss(logits_s, logits_t, temperature) + ce_weight * ce_loss(logits_s, labels)


def _log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return F.log_softmax(upcast(logits) / temperature, dim=1)


def _neighbour_differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if images.dim() != 4 or min(images.shape[2:]) < 2:
        raise InputError(f"total variation needs (B, C, H, W) images with H, W >= 2, got shape {tuple(images.shape)}")
    return (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
