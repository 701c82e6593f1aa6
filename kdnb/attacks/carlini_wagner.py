"""Carlini and Wagner's L2 attack: the smallest change of an image that changes the label."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.frozen import frozen
from kdnb.rehearsal import cut

UPPER_C = 1e10  # end of the search interval for c; "no upper bound found yet"


class Attacked(NamedTuple):
    """What the attack found for B images.

    Attributes:
        images: (B, C, H, W) with the smallest successful change, the clean image where none was found.
        success: (B,) bool.
        l2: (B,) distance with pixels in [0, 1], infinite without success.
        l2_history: (search_steps, B), the smallest distance so far after each search step.
    """

    images: Tensor
    success: Tensor
    l2: Tensor
    l2_history: Tensor


def carlini_wagner_l2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targeted: bool = False,
    confidence: float = 0.0,
    lr: float = 0.01,
    num_steps: int = 1000,
    search_steps: int = 9,
    initial_c: float = 1e-3,
) -> Attacked:
    """The attack as published: change of variables, a binary search over c for each image, the best image kept.

        min_w ||a - x||^2 + c f(a),   a = tanh(w),   f = max(z_y - max_{j != y} z_j, -kappa)         (targeted: f with opposite sign)

    Args:
        model: images in [-1, 1] -> (B, K) logits; frozen, evaluation mode.
        images: (B, C, H, W) in [-1, 1]. labels: (B,) int64, the true classes, or the wanted ones if `targeted`.
        confidence: kappa >= 0, margin in logits that a success must have.
        lr: Adam's, on w. num_steps: per search step; stopped early once no image's cost has fallen by 1e-4 of itself in a tenth.
        search_steps: halvings of c in [0, 1e10]; x10 until the first success. initial_c: first c, 1e-3.
    Returns:
        `Attacked`. Distances are Euclidean with pixels in [0, 1] (half those in [-1, 1]), as in the literature.
    Raises:
        InputError: images outside [-1, 1] (checked once), negative confidence, fewer than one step.

    Source: Carlini and Wagner, S&P 2017, section VI. w starts at artanh(x) with x shrunk by 1e-6; other classes are masked by -inf.
    """
    if confidence < 0 or min(num_steps, search_steps) < 1:
        raise InputError(
            f"need confidence >= 0 and at least one step, got {confidence=}, {num_steps=}, {search_steps=}"
        )
    if images.abs().amax() > 1:
        raise InputError("images must lie in [-1, 1]")
    low, high = (
        torch.zeros(len(images), device=images.device),
        torch.full((len(images),), UPPER_C, device=images.device),
    )
    c = torch.full_like(low, initial_c)
    best, best_l2, history = images.clone(), torch.full_like(low, torch.inf).to(images.dtype), []
    with frozen(model):
        for _ in cut(range(search_steps), "search step", most=1):
            found, found_l2 = _minimise(model, images, labels, c.to(images.dtype), targeted, confidence, lr, num_steps)
            success = found_l2.isfinite()
            best, best_l2 = _closer(best, best_l2, found, found_l2)
            high = torch.where(success, torch.minimum(high, c), high)
            low = torch.where(success, low, torch.maximum(low, c))
            c = torch.where(high < UPPER_C, 0.5 * (low + high), 10.0 * c)
            history.append(best_l2)
    return Attacked(best, best_l2.isfinite(), best_l2, torch.stack(history))


def _minimise(model, images, labels, c, targeted, confidence, lr, num_steps) -> tuple[Tensor, Tensor]:
    """One run of Adam at fixed c: the closest successful image of the whole path and its distance (inf = none)."""
    w = torch.atanh(images * (1 - 1e-6)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    best, best_l2 = images, torch.full_like(c, torch.inf)
    previous, interval = torch.full_like(c, torch.inf), max(num_steps // 10, 1)
    for step in cut(range(num_steps), "attack step"):
        candidates = torch.tanh(w)
        gap = class_margin(model(candidates), labels, targeted)
        squared = (0.5 * (candidates - images)).square().flatten(1).sum(dim=1)
        cost = squared + c * gap.clamp_min(-confidence)
        with torch.no_grad():
            success = (gap < 0) & (gap <= -confidence)
            best, best_l2 = _closer(best, best_l2, candidates, torch.where(success, squared.sqrt(), torch.inf))
        optimizer.zero_grad()
        cost.sum().backward()
        optimizer.step()
        if (step + 1) % interval == 0:
            if (cost.detach() > 0.9999 * previous).all():  # one look at the device a tenth of the run
                break
            previous = cost.detach()
    return best, best_l2


def class_margin(logits: Tensor, labels: Tensor, targeted: bool = False) -> Tensor:
    """z_y - max_{j != y} z_j, (B,); with the opposite sign if `targeted`. Below zero the attack has succeeded."""
    wanted = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    gap = wanted[:, 0] - others
    return -gap if targeted else gap


def _closer(best: Tensor, best_l2: Tensor, images: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    closer = l2 < best_l2
    return torch.where(closer[:, None, None, None], images.detach(), best), torch.where(closer, l2.detach(), best_l2)


def carlini_wagner_l2_released(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targeted: bool = False,
    c: float = 1e-4,
    kappa: float = 0.0,
    lr: float = 0.01,
    max_iter: int = 1000,
) -> Tensor:
    """The form in AEAHL-RG's notebook: fixed c, start from grey, the last image instead of the best.

        min_w sum ||a - x||^2 + c sum f,   a = (tanh w + 1) / 2,   w_0 = 0

    Args:
        model: images in [0, 1] -> (B, K) logits. images: (B, C, H, W) in [0, 1].
        labels, targeted: as in `carlini_wagner_l2`. c, kappa, lr, max_iter: 1e-4 (the notebook uses 0.1), 0, 0.01, 1000.
    Returns:
        (B, C, H, W) in (0, 1).

    In the maximum over j != y the class y counts as 0, which is wrong where all other logits are negative. Every max_iter / 10 steps the
    run ends if the cost of the whole batch grew; the image is then the one before the last update.
    """
    w = torch.zeros_like(images, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr)
    previous, interval = 1e10, max(max_iter // 10, 1)
    with frozen(model):
        for step in cut(range(max_iter), "attack step"):
            attacked = 0.5 * (torch.tanh(w) + 1)
            logits = model(attacked)
            gap = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], 0.0).amax(dim=1)
            cost = (attacked - images).square().sum() + c * (-gap if targeted else gap).clamp_min(-kappa).sum()
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            if step % interval == 0:
                if cost.item() > previous:
                    return attacked.detach()
                previous = cost.item()
    return (0.5 * (torch.tanh(w) + 1)).detach()
