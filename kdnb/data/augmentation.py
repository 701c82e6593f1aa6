"""Augmentation of whole batches on their own device."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.errors import InputError

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
    cropped = images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    # with one channel the permuted strides count as contiguous and as channels_last; convolutions must not take them for the latter
    return cropped.view(-1).view(B, C, H, W)


# --- strong augmentation -------------------------------------------------------------------------------------------------------

# operation: (smallest, largest magnitude); the unit is that of the operation, magnitudes are uniform between the two
STRONG_OPERATIONS = {
    "AutoContrast": (0.0, 1.0),  # no magnitude
    "Brightness": (0.05, 0.95),  # share of the image, the rest is black
    "Color": (0.05, 0.95),  # share of the image, the rest is its grey version
    "Contrast": (0.05, 0.95),  # share of the image, the rest is its mean grey
    "Sharpness": (0.05, 0.95),  # share of the image, the rest is smoothed
    "Equalize": (0.0, 1.0),  # no magnitude
    "Identity": (0.0, 1.0),  # no magnitude
    "Posterize": (4.0, 8.0),  # bits kept, rounded down
    "Rotate": (-30.0, 30.0),  # degrees
    "ShearX": (-0.3, 0.3),  # pixels of shift per pixel of height
    "ShearY": (-0.3, 0.3),
    "Solarize": (0.0, 256.0),  # levels from here on are inverted
    "TranslateX": (-0.3, 0.3),  # share of the width
    "TranslateY": (-0.3, 0.3),
}
_INDEX = {name: index for index, name in enumerate(STRONG_OPERATIONS)}
_CUTOUT_RGB = (125.0, 123.0, 114.0)
_CUTOUT_GREY = 123.0  # their luma
_LARGEST_CUTOUT = 0.5  # of the width


@cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """A small table on a device, copied there once: a copy from the host in each step would wait for the device."""
    return torch.tensor(values, device=device)


def strong_augment(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Two random operations per image and a grey square: the strong view of multi-level logit distillation.

    Each image draws two operations of `STRONG_OPERATIONS` with replacement, each with a uniform magnitude, then loses a square of side
    uniform in [0, W/2] around a uniform centre to the colour (125, 123, 114), or to its luma 123 where there is one channel.

    Args:
        images: (B, C, H, W) in [-1, 1], C = 1 or 3, H and W >= 3; cropped and flipped before (`augment`).
        generator: on the device of the images.
    Returns:
        (B, C, H, W) in [-1, 1], the dtype of the images, on the 256 levels of 8-bit images.
    Raises:
        InputError: C is neither 1 nor 3.

    Source: Cubuk et al., RandAugment, 2019, with the operations and ranges of the released code of Jin, Wang, Lin, Multi-Level Logit
    Distillation, CVPR 2023 (their nominal magnitude 10 is never used). Levels follow Pillow's 8-bit operations; geometry is by nearest
    neighbour with black outside. The square is cut at all four borders alike; theirs is moved inside at the left and the top.
    """
    B, C = images.shape[:2]
    if C not in (1, 3):
        raise InputError(f"strong augmentation needs images of 1 or 3 channels, got {C}")
    device = images.device
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    ranges = _constant(tuple(STRONG_OPERATIONS.values()), device)
    for _ in range(2):
        operation = torch.randint(len(STRONG_OPERATIONS), (B,), generator=generator, device=device)
        low, high = ranges[operation].unbind(1)
        magnitude = low + (high - low) * torch.rand(B, generator=generator, device=device)
        levels = apply_operations(levels, operation, magnitude)
    levels = _cutout(levels, torch.rand(3, B, 1, generator=generator, device=device))
    return (levels / 127.5 - 1).to(images.dtype)


def apply_operations(levels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """One operation per image, in three passes over the whole batch: geometry, blends, level tables. An image changes in one of them.

    Three passes for everybody cost less than fourteen for some, and which image takes which never has to be known on the host.

    Args:
        levels: (B, C, H, W) whole numbers 0..255 as floats.
        operation: (B,) positions in `STRONG_OPERATIONS`.
        magnitude: (B,) in the operation's own unit.
    """
    chosen = {name: operation == index for name, index in _INDEX.items()}

    def where(name: str, otherwise: float = 0.0) -> Tensor:  # (B,): the magnitude where this operation was chosen
        return torch.where(chosen[name], magnitude, otherwise)

    levels = _affine(
        levels, where("Rotate"), where("ShearX"), where("ShearY"), where("TranslateX"), where("TranslateY")
    )
    levels = _blend(levels, chosen, magnitude)
    return _lookup(levels, chosen, where("Posterize", 8.0), where("Solarize", 256.0))


def _affine(
    levels: Tensor, degrees: Tensor, shear_x: Tensor, shear_y: Tensor, translate_x: Tensor, translate_y: Tensor
) -> Tensor:
    """Nearest neighbour: output pixel centre (x, y) reads the input at A (x, y) + t; rotation turns around the middle."""
    B, C, H, W = levels.shape
    radians = torch.deg2rad(-degrees)
    cos, sin = radians.cos(), radians.sin()
    x = (torch.arange(W, device=levels.device) + 0.5).expand(1, H, W)
    y = (torch.arange(H, device=levels.device) + 0.5)[:, None].expand(1, H, W)
    cos, sin, shear_x, shear_y, shift_x, shift_y = (
        value[:, None, None] for value in (cos, sin, shear_x, shear_y, translate_x * W, translate_y * H)
    )
    columns = (cos * (x - W / 2) + sin * (y - H / 2) + W / 2 + shear_x * y + shift_x).floor().long()  # (B, H, W)
    rows = (cos * (y - H / 2) - sin * (x - W / 2) + H / 2 + shear_y * x + shift_y).floor().long()
    inside = (columns >= 0) & (columns < W) & (rows >= 0) & (rows < H)
    source = (rows.clamp(0, H - 1) * W + columns.clamp(0, W - 1)).view(B, 1, H * W).expand(B, C, H * W)
    return levels.flatten(2).gather(2, source).view(B, C, H, W) * inside[:, None]


def _blend(levels: Tensor, chosen: dict[str, Tensor], magnitude: Tensor) -> Tensor:
    """magnitude * image + (1 - magnitude) * other, rounded down; the other is black, grey, the mean grey or the smoothed image."""
    chosen = {name: chosen[name][:, None, None, None] for name in ("Brightness", "Color", "Contrast", "Sharpness")}
    grey = levels
    if levels.shape[1] == 3:
        weights = _constant((19595.0, 38470.0, 7471.0), levels.device).view(
            1, 3, 1, 1
        )  # luma .299, .587, .114 in 1/65536
        grey = (((levels * weights).sum(1, keepdim=True) + 32768) / 65536).floor()
    smooth = levels.clone()  # (3x3 sum + 4 * centre) / 13; the border stays
    sums = F.avg_pool2d(levels, 3, 1, divisor_override=1) + 4 * levels[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (sums / 13 + 0.5).floor()

    other = torch.where(chosen["Color"], grey, smooth)
    other = torch.where(chosen["Contrast"], (grey.mean((2, 3), keepdim=True) + 0.5).floor(), other)
    other = other.masked_fill(chosen["Brightness"], 0.0)
    share = torch.where(sum(chosen.values()) > 0, magnitude[:, None, None, None], 1.0)
    return (other + share * (levels - other)).floor()


def _lookup(levels: Tensor, chosen: dict[str, Tensor], bits: Tensor, threshold: Tensor) -> Tensor:
    """AutoContrast, Equalize, Posterize, Solarize: one table of 256 levels per image and channel, then one read."""
    B, C, H, W = levels.shape
    flat = levels.flatten(2).long()  # (B, C, HW)
    level = torch.arange(256, device=levels.device, dtype=torch.float32).expand(B, C, 256)
    step = torch.exp2(8 - bits.floor())[:, None, None]
    table = (level / step).floor() * step
    table = torch.where(table < threshold[:, None, None], table, 255 - table)

    low, high = (value.float()[..., None] for value in flat.aminmax(dim=2))
    stretched = ((level - low) * 255 / (high - low).clamp(min=1)).floor().clamp(0, 255)
    table = torch.where(chosen["AutoContrast"][:, None, None] & (high > low), stretched, table)

    counts = torch.zeros(B, C, 256, device=levels.device).scatter_add_(
        2, flat, torch.ones((), device=levels.device).expand(B, C, H * W)
    )
    per_level = ((H * W - counts.gather(2, high.long())) / 255).floor()  # pixels below the highest level, shared out
    below = counts.cumsum(2) - counts
    equalized = ((below + (per_level / 2).floor()) / per_level.clamp(min=1)).floor().clamp(max=255)
    table = torch.where(chosen["Equalize"][:, None, None] & (per_level > 0), equalized, table)
    return table.gather(2, flat).view(B, C, H, W)


def _cutout(levels: Tensor, uniform: Tensor) -> Tensor:
    """Fill a square per image. uniform: (3, B, 1) in [0, 1): side in units of W/2, centre column, centre row."""
    B, C, H, W = levels.shape
    half = uniform[0] * _LARGEST_CUTOUT * W / 2
    columns = (torch.arange(W, device=levels.device) + 0.5 - uniform[1] * W).abs() < half  # (B, W)
    rows = (torch.arange(H, device=levels.device) + 0.5 - uniform[2] * H).abs() < half
    fill = _constant(_CUTOUT_RGB if C == 3 else (_CUTOUT_GREY,), levels.device).view(1, C, 1, 1)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], fill, levels)
