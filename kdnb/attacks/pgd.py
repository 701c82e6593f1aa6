"""Projected gradient descent in the maximum norm, the usual yardstick of robustness."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.frozen import frozen
from kdnb.rehearsal import cut


def projected_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    num_steps: int = 10,
    targeted: bool = False,
    random_start: bool = True,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Climb the cross-entropy by signed gradients, staying within epsilon of the image.

        a <- clip(a + s sign grad CE(T(a), y),  x - e, x + e,  -1, 1)                  (targeted: descend)

    Args:
        model: images in [-1, 1] -> (B, K) logits; frozen, evaluation mode.
        images: (B, C, H, W) in [-1, 1]. labels: (B,) int64, the true classes, or the wanted ones if `targeted`.
        epsilon, step_size: shares of the full pixel range (8/255 means 8 grey levels); e, s are twice that in [-1, 1].
        num_steps: gradient steps, 10; one with step_size = epsilon and no random start is FGSM.
        random_start: begin at a uniform point of the box, drawn from `rng` (on the images' device).
    Returns:
        (B, C, H, W) in [-1, 1], detached.
    Raises:
        InputError: epsilon or step_size not positive, num_steps < 1.

    Source: Madry et al., ICLR 2018.
    """
    if not (epsilon > 0 and step_size > 0 and num_steps >= 1):
        raise InputError(f"need positive epsilon, step_size and num_steps, got {epsilon=}, {step_size=}, {num_steps=}")
    low, high = (images - 2 * epsilon).clamp_min(-1), (images + 2 * epsilon).clamp_max(1)
    attacked = images.detach()
    if random_start:
        noise = torch.rand(images.shape, generator=rng, device=images.device, dtype=images.dtype)
        attacked = low + (high - low) * noise
    direction = -1.0 if targeted else 1.0
    with frozen(model):
        for _ in cut(range(num_steps), "attack step"):
            attacked = attacked.detach().requires_grad_()
            loss = F.cross_entropy(model(attacked), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, attacked)
            attacked = torch.clamp(attacked + direction * 2 * step_size * gradient.sign(), low, high)
    return attacked.detach()
