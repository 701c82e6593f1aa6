"""Novel-class discovery: the relation of new classes to known ones, and swapped prediction between views.

Layout everywhere: (V, heads, B, K) = views, output heads, samples, classes; known classes come first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import check_temperature, no_autocast, upcast


def _relation_terms(
    new_logits: Tensor, old_logits: Tensor, unlabelled: Tensor, temperature: float, kd_temperature: float
):
    """Gate w / (V B) (V, heads, B), zero for labelled samples; log-probabilities of both models over the known classes (V, heads, B, K_old)."""
    num_old = old_logits.shape[-1]
    if new_logits.shape[:-1] != old_logits.shape[:-1] or new_logits.shape[-1] <= num_old:
        raise InputError(
            "new_logits must have the layout of old_logits and more classes, got "
            f"{tuple(new_logits.shape)} and {tuple(old_logits.shape)}"
        )
    check_temperature(temperature)
    check_temperature(kd_temperature)
    scale = temperature * kd_temperature
    new, old = upcast(new_logits) / scale, upcast(old_logits.detach()) / scale
    log_gate = new[..., :num_old].logsumexp(-1) - new.logsumexp(-1)
    # dividing by the mean over everything is a softmax of log-gates: no underflow, and no boolean indexing, which would stop a GPU
    masked = log_gate.masked_fill(~unlabelled, torch.finfo(log_gate.dtype).min)
    gate = (F.softmax(masked.flatten(), dim=0).view_as(masked) * masked.shape[1]).masked_fill(~unlabelled, 0)
    return gate, F.log_softmax(new[..., :num_old], dim=-1), F.log_softmax(old, dim=-1)


def relation_loss(
    new_logits: Tensor, old_logits: Tensor, unlabelled: Tensor, temperature: float = 0.1, kd_temperature: float = 4.0
) -> Tensor:
    """Keep how novel-class samples resemble the known classes as the model before discovery saw it.

        a = z^old / (tau T),  c = z^new / (tau T),   w = sum_{k <= K_old} softmax(c)_k,   w <- w / mean w
        L_h = T^2 mean_{v,b} [ w KL(softmax(a) || softmax(c_{1..K_old})) ]

    The gate w has no parameter but gradient flows through it, its mean included: a sample is freed by looking less like known classes.

    Args:
        new_logits: (V, heads, B, K_old + K_new) cosines of the model being trained, large crops only.
        old_logits: (V, heads, B, K_old) cosines of the frozen model; treated as constants.
        unlabelled: (B,) bool, samples that count; with none of them the loss is 0.
        temperature: tau > 0 of the cosine classifier.
        kd_temperature: T > 0.
    Returns:
        (heads,) nats; the caller averages and weights (0.1 in the paper's experiments). Zero at agreement on the known classes.
    Raises:
        InputError: layouts don't fit or a temperature <= 0.

    Source: Gu, Zhang, Xu, He, ICCV 2023 (Cr-KD-NCD). The released code is `relation_loss_released`.
    """
    gate, log_p, log_q = _relation_terms(new_logits, old_logits, unlabelled, temperature, kd_temperature)
    return kd_temperature**2 * (gate * (log_q.exp() * (log_q - log_p)).sum(-1)).sum((0, 2))


def relation_loss_released(
    new_logits: Tensor, old_logits: Tensor, unlabelled: Tensor, temperature: float = 0.1, kd_temperature: float = 4.0
) -> Tensor:
    """The relation term with cross-entropy in place of KL, as released.

        L_h = T^2 mean_{v,b} [ w CE(softmax(a), softmax(c_{1..K_old})) ]

    The gate makes the two differ in gradient too: here samples on which the old model is uncertain push their gate down even where
    both models agree. Arguments, result and errors as `relation_loss`.

    Source: released code of Gu et al., ICCV 2023. Deviation: log-softmax instead of the logarithm of a softmax.
    """
    gate, log_p, log_q = _relation_terms(new_logits, old_logits, unlabelled, temperature, kd_temperature)
    return -(kd_temperature**2) * (gate * (log_q.exp() * log_p).sum(-1)).sum((0, 2))


def swapped_prediction(logits: Tensor, targets: Tensor, num_large: int = 2, temperature: float = 0.1) -> Tensor:
    """Predict the assignment of every large view from each other view.

        L_h = 1 / (V_L (V - 1)) sum_{v <= V_L} sum_{u != v} mean_b CE(target_v, softmax(z_u / tau))

    Args:
        logits: (V, heads, B, K) cosines, large views first.
        targets: (>= V_L, heads, B, K) distributions (one-hot, or `sinkhorn`) of the large views; constants. Further views are ignored.
        num_large: V_L in [1, V].
        temperature: tau > 0.
    Returns:
        (heads,) nats.
    Raises:
        InputError: fewer than two views, V_L outside [1, V], too few targets or tau <= 0.

    Source: Gu et al., ICCV 2023, after Caron et al., NeurIPS 2020 (SwAV). One product over all pairs of views instead of loops.
    """
    num_views = logits.shape[0]
    if (
        num_views < 2
        or not 1 <= num_large <= num_views
        or len(targets) < num_large
        or targets.shape[1:] != logits.shape[1:]
    ):
        raise InputError(
            f"swapped prediction needs V >= 2 views and targets for {num_large} of them, got logits {tuple(logits.shape)} "
            f"and targets {tuple(targets.shape)}"
        )
    check_temperature(temperature)
    log_p = F.log_softmax(upcast(logits) / temperature, dim=-1)
    with no_autocast(log_p):
        pairs = -torch.einsum("vhbk,uhbk->vuh", targets[:num_large].detach().to(log_p), log_p) / logits.shape[2]
    others = 1 - torch.eye(num_large, num_views, dtype=log_p.dtype, device=log_p.device)
    return (pairs * others[..., None]).sum((0, 1)) / (num_large * (num_views - 1))
