"""Losses that turn a trained classifier into a source of images: batch-norm statistics, labels, disagreement, balance, smoothness.

Every function maps tensors to a scalar to be *minimised* by whatever makes the images. Here gradients flow through both networks into
the images, so, unlike in the distillation losses, the teacher's logits are not detached.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError


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
        raise InputError(f"batch-norm statistics need four non-empty lists of one length (one entry a layer), got lengths {sorted(lengths)}")
    terms = []
    for mean, variance, running_mean, running_variance in zip(means, variances, running_means, running_variances, strict=True):
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
