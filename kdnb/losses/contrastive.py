"""Contrastive terms of data-free inversion (CMI): every new image should be tellable from its batch and from those made before."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.losses.checks import check_temperature


class ProjectionHead(nn.Module):
    """Linear, ReLU, Linear, then unit length: instance features (B, D) -> (B, `width`).

    Args:
        in_features: D, sum of the channels of all batch-norm layers of the teacher.
        width: size of the hidden layer's output space, 128.
        hidden: width of the hidden layer; D by default.

    Source: Fang et al., IJCAI 2021.
    """

    def __init__(self, in_features: int, width: int = 128, hidden: int | None = None):
        super().__init__()
        hidden = hidden or in_features
        self.head = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.head(features), dim=1)


def instance_features(inputs: Sequence[Tensor]) -> Tensor:
    """What identifies an image to the teacher: the spatial means of every batch-norm layer's input, side by side.

    Args:
        inputs: L tensors (B, C_l, ...), e.g. `BatchNormProbe(teacher, keep_inputs=True).inputs`.
    Returns:
        (B, sum C_l).

    Source: Fang et al., IJCAI 2021.
    """
    return torch.cat([x.flatten(2).mean(dim=2) if x.dim() > 2 else x for x in inputs], dim=1)


def contrastive_inversion_loss(
    proj_local: Tensor,
    proj_global: Tensor,
    cached_local: Tensor | None = None,
    cached_global: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Instance discrimination: each local view must find its own global view among all.

        L = mean_{i in batch} l_i + mean_{i in cache} l_i,   l_i = -ln softmax_j(u_i . sg(v_j) / tau)_i,   j over batch and cache

    Args:
        proj_local, proj_global: (B, D) projections u, v of two views of the current images, unit length.
        cached_local, cached_global: (N, D) projections of earlier images, or None.
        temperature: tau > 0; 0.1.
    Returns:
        Scalar >= 0, nats. No gradient through the columns v.
    Raises:
        InputError: shapes differ, only one cached half is given, or temperature <= 0.

    Source: Fang et al., IJCAI 2021, eq. 7. Batch and cache are averaged apart and added, as in the released code.
    """
    check_temperature(temperature)
    if proj_local.shape != proj_global.shape or (cached_local is None) != (cached_global is None):
        raise InputError(
            f"views must come in pairs of one shape, got {tuple(proj_local.shape)} and {tuple(proj_global.shape)}"
        )
    rows, columns = proj_local, proj_global
    if cached_local is not None and cached_global is not None:
        if cached_local.shape != cached_global.shape:
            raise InputError(
                f"cached views differ in shape: {tuple(cached_local.shape)} and {tuple(cached_global.shape)}"
            )
        rows, columns = torch.cat([rows, cached_local]), torch.cat([columns, cached_global])
    logits = rows @ columns.detach().mT / temperature
    losses = F.cross_entropy(logits, torch.arange(len(rows), device=rows.device), reduction="none")
    batch = proj_local.shape[0]
    return losses[:batch].mean() + losses[batch:].mean() if len(rows) > batch else losses.mean()


def supervised_contrast(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: float = 0.07,
    base_temperature: float = 0.07,
    anchors: str = "all",
) -> Tensor:
    """SupCon (with labels) and SimCLR (without), one loss an anchor.

        l_i = -(tau / tau_0) 1/|P(i)| sum_{p in P(i)} ln( exp(f_i f_p / tau) / sum_{a != i} exp(f_i f_a / tau) )

    Args:
        features: (B, V, D), V views of each image, unit length.
        labels: (B,) int64: P(i) are all other views of the same class; None: only of the same image.
        temperature, base_temperature: tau and tau_0, > 0; 0.07.
        anchors: "all" views or the first "one" of each image.
    Returns:
        (V, B) or (1, B), nats times tau / tau_0; average for a loss.
    Raises:
        InputError: features not (B, V, D) with V >= 2, unknown `anchors`, temperature <= 0.

    Source: Khosla et al., NeurIPS 2020, eq. 2; Chen et al., ICML 2020.
    """
    if features.dim() != 3 or features.shape[1] < 2:
        raise InputError(f"features must be (B, V, D) with at least two views, got shape {tuple(features.shape)}")
    check_temperature(temperature)
    check_temperature(base_temperature)
    check_name("anchors", anchors, ("all", "one"))
    batch, views, _ = features.shape
    columns = features.transpose(0, 1).flatten(0, 1)  # (B, V, D) -> (V B, D), view by view
    num_anchors = views if anchors == "all" else 1
    rows = columns[: num_anchors * batch]
    ids = torch.arange(batch, device=features.device) if labels is None else labels
    itself = torch.eye(len(rows), len(columns), dtype=torch.bool, device=features.device)
    positive = (ids.repeat(num_anchors)[:, None] == ids.repeat(views)[None, :]) & ~itself
    logits = rows @ columns.mT / temperature
    log_prob = logits - torch.logsumexp(logits.masked_fill(itself, -torch.inf), dim=1, keepdim=True)
    losses = -(temperature / base_temperature) * (positive * log_prob).sum(dim=1) / positive.sum(dim=1)
    return losses.view(num_anchors, batch)
