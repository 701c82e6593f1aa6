"""What guidance rules are made of: how unsure or how wrong a teacher is, views of an image, and the two ways to combine gradients.

Every step takes the clean estimate x0 of the noisy images x_t and two losses of it: L_bn, how far the batch is from the statistics
that the teacher's batch-norm layers remember, and L_ce = sum_b CE(T(x0_b), y_b), the classes asked for. A rule turns their gradients
by x_t into a rectification r, which `kdnb.samplers.cadr.rectify_noise` adds to the prior's noise estimate.

    joint (CADR)    g = w_bn g_bn + w_ce g_ce,   r_b = lam_b eta ||x_b|| g_b / ||g_b||
    separate        r_b = eta ||x_b|| ( w_bn g_bn,b / rms(||g_bn||)  +  w_ce lam_b g_ce,b / ||g_ce,b|| )

In the joint rule one gate lam rules both terms, and the longer of two gradients rules the direction: once the teacher is sure of an
image, that image leaves the teacher's statistics uncorrected, and one that is surely wrong has low entropy and gets no correction at
all. The separate rule keeps the statistics term on for every image and gates the class term alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.data.augmentation import BLACK


def entropy_gate(
    uncertainty: Tensor, lambda_max: float = 1.5, threshold: float = 0.4, sharpness: float = 10.0
) -> Tensor:
    """lambda = lambda_max / (1 + exp(-k (H - tau))), per sample.

    With the defaults it is 0.027 at H = 0, 0.75 at H = 0.4 and 1.5 at H = 2 nats: nearly a switch, and in nats its threshold means
    something else for 10 classes than for 100 (hence the normalised entropy).
    """
    return lambda_max * torch.sigmoid(sharpness * (uncertainty - threshold))


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """How little the teacher expects the class asked for: 1 - p_T(y | x0), per sample.

    It falls to 0 only where the teacher is sure *and right*; a surely wrong image has surprise 1, where its entropy is 0.

    Args:
        logits: (B, K) float. labels: (B,) int64.
    Returns:
        (B,) in [0, 1]. Computed as -expm1(-CE), which keeps its digits where p is nearly 1.

    >>> surprise(torch.tensor([[0.0, 0.0], [9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 0, 1])).round(decimals=3).tolist()
    [0.5, 0.0, 1.0]
    """
    return -torch.expm1(-F.cross_entropy(logits, labels, reduction="none"))


def adaptive_rectification(grad: Tensor, x_t: Tensor, gate: Tensor, eta: float = 0.1, xi: float = 1e-6) -> Tensor:
    """r = gate * eta * ||x_t|| * g / (||g|| + xi), norms over C, H, W of each sample; (B, C, H, W)."""
    return _column(gate, x_t) * eta * _norms(x_t) * grad / (_norms(grad) + xi)


def separate_rectification(
    grad_bn: Tensor | None,
    grad_ce: Tensor | None,
    x_t: Tensor,
    gate: Tensor,
    *,
    eta: float,
    bn_weight: float,
    ce_weight: float,
    xi: float = 1e-6,
) -> Tensor:
    """The separate rule: each term with a length of its own.

        r_b = eta ||x_b|| ( w_bn g_bn,b / (rms + xi)  +  w_ce lam_b g_ce,b / (||g_ce,b|| + xi) ),   rms^2 = 1/B sum_b ||g_bn,b||^2

    The class loss of an image is its own, so its gradient is normalised per sample and only the gate says how much of it is due. The
    statistics belong to the batch: how much an image must move for the batch's sake differs from image to image, and the common
    divisor keeps that.

    Args:
        grad_bn, grad_ce: (B, C, H, W) gradients of L_bn and of L_ce by x_t; None leaves the term out.
        x_t: (B, C, H, W) noisy images.
        gate: (B,) lam, strength of the class term.
        eta: step share: eta * (w_bn + w_ce lam) bounds ||r|| / ||x_t|| up to the spread of ||g_bn||.
        bn_weight, ce_weight: w_bn and w_ce, dimensionless lengths.
        xi: guard against division by zero.
    Returns:
        (B, C, H, W). Any common factor of a term's gradient cancels but for xi.
    """
    found = torch.zeros_like(x_t)
    if grad_bn is not None:
        rms = _norms(grad_bn).square().mean().sqrt()
        found = found + bn_weight * grad_bn / (rms + xi)
    if grad_ce is not None:
        found = found + ce_weight * _column(gate, x_t) * grad_ce / (_norms(grad_ce) + xi)
    return eta * _norms(x_t) * found


def shifted_views(images: Tensor, views: int, shift: int, noise: float, generators: tuple) -> Tensor:
    """Views of every image, moved by whole pixels and noised: what a class gradient should hold for, beside the image itself.

        view_v(x)[i, j] = x[i + dy_v, j + dx_v] + s z,   dy, dx ~ U{-shift..shift},  z ~ N(0, 1)

    Args:
        images: (B, C, H, W); black moves in, as in the crops that teachers are trained with.
        views: number of views V. One shift a view serves the whole batch, so a view is one slice.
        shift: largest shift, pixels. noise: s, in pixel units of [-1, 1].
        generators: of the shifts, on the CPU (no device is asked to wait), and of the noise, on the images' device.
    Returns:
        (V * B, C, H, W), view after view; gradients flow to `images`.

    Source: Athalye et al., ICML 2018 (expectation over transformations).
    """
    H, W = images.shape[-2:]
    padded = F.pad(images, (shift,) * 4, value=BLACK)
    corners = torch.randint(2 * shift + 1, (views, 2), generator=generators[0]).tolist()
    moved = torch.cat([padded[..., top : top + H, left : left + W] for top, left in corners])
    return moved + noise * torch.randn(moved.shape, generator=generators[1], device=images.device, dtype=images.dtype)


def _norms(x: Tensor) -> Tensor:
    """Norm of each sample over all but the first dimension, shaped to multiply the samples."""
    return _column(x.flatten(1).norm(dim=1), x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view((-1,) + (1,) * (like.dim() - 1))
