"""Augmentation of whole batches on their own device."""

import torch
from torch import Tensor
from torch.nn import functional as F

BLACK = -1.0  # value of padding on the [-1, 1] scale


def augment(images: Tensor, padding: int, flip: bool, generator: torch.Generator | None = None) -> Tensor:
    """Random crop after padding with black, and horizontal flip with probability 1/2, for a whole batch at once.

    Args:
        images: (B, C, H, W).
        padding: pixels on each side; 0: no crop.
        flip: whether to mirror.
        generator: on the device of the images.
    """
    B, C, H, W = images.shape
    device = images.device
    columns = torch.arange(W, device=device).expand(B, W)
    if flip:
        mirrored = torch.rand(B, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, W - 1 - columns, columns)
    rows = torch.arange(H, device=device).expand(B, H)
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, B, 1), generator=generator, device=device)
        images = F.pad(images, (padding,) * 4, value=BLACK)
        rows, columns = rows + offsets[0], columns + offsets[1]
    if not padding and not flip:
        return images
    batch = torch.arange(B, device=device)[:, None, None]
    # advanced indices around a slice put the channel last: (B, H, W, C) -> (B, C, H, W)
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
