"""Random resized crops that can be written down and replayed to the bit, whole batches at once."""

import math

import torch
from torch import Tensor

from kdnb.errors import InputError

_ATTEMPTS = 10  # draws of a box before the central one is taken, as torchvision's RandomResizedCrop
_FRACTION_BITS = 22  # of Pillow's fixed-point resampling weights


def check_box_ranges(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Raise `InputError` unless these are ranges that `random_boxes` can draw from."""
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise InputError(
            f"boxes need 0 < scale low <= high <= 1 and 0 < ratio low <= high, got scale {scale}, ratio {ratio}"
        )


def random_boxes(
    num: int,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Boxes of RandomResizedCrop: area uniform in `scale`, log aspect ratio uniform, position uniform; whole pixels.

    Args:
        num: how many, N.
        height, width: of the image, in pixels.
        scale: smallest and largest area as a share of the image, 0 < low <= high <= 1.
        ratio: smallest and largest width / height, > 0.
        generator: on the CPU.
    Returns:
        (N, 4) float32: top/H, left/W, height/H, width/W.
    Raises:
        InputError: ranges empty or out of bounds.

    Source: Szegedy et al., CVPR 2015 (the augmentation); box format of FKD, Shen and Xing, ECCV 2022, which uses scale (0.08, 0.936).
    """
    check_box_ranges(scale, ratio)
    uniform = torch.rand(4, num, _ATTEMPTS, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * uniform[1])
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
    top, left = (uniform[2] * (height - h + 1)).floor(), (uniform[3] * (width - w + 1)).floor()
    first = fits.int().argmax(1, keepdim=True)
    drawn = torch.stack([top, left, h, w], -1).gather(1, first[..., None].expand(-1, -1, 4))[:, 0]
    # nothing fitted: the largest central box whose aspect ratio is allowed
    central_h, central_w = min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))
    central = torch.tensor(
        [(height - central_h) // 2, (width - central_w) // 2, central_h, central_w], dtype=torch.float64
    )
    boxes = torch.where(fits.any(1, keepdim=True), drawn, central)
    return (boxes / torch.tensor([height, width, height, width])).float()


def _weights(start: Tensor, stop: Tensor, size: int, extent: int) -> Tensor:
    """Bilinear resampling with antialiasing of pixels [start, stop) to `size` pixels, as one matrix a crop: (N, size, extent), rows sum to 1.

    The triangle filter is widened by the reduction factor (never narrowed) and cut off at the crop's own border, as Pillow does.
    """
    scale = ((stop - start) / size)[:, None]
    centre = (torch.arange(size, device=start.device) + 0.5) * scale
    pixel = torch.arange(extent, device=start.device) - start[:, None]  # counted from the crop's first pixel
    distance = ((pixel + 0.5)[:, None, :] - centre[:, :, None]).abs_().div_(scale.clamp_min(1)[:, :, None])
    inside = (pixel >= 0) & (pixel < (stop - start)[:, None])
    weights = distance.neg_().add_(1).clamp_min_(0).mul_(inside[:, None, :])
    return weights.div_(weights.sum(-1, keepdim=True))


def _fixed_point(weights: Tensor) -> Tensor:
    return (weights * 2**_FRACTION_BITS + 0.5).floor()


def _to_bytes(total: Tensor) -> Tensor:
    """Fixed-point sums back to whole pixel values; exact, since all numbers stay far below 2^53."""
    return ((total + 2 ** (_FRACTION_BITS - 1)) / 2**_FRACTION_BITS).floor().clamp(0, 255)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) with (B M, size, H) and (B M, size, W) -> (B, M, C, size, size); laid out so that both products are plain batched ones."""
    B, C, H, W = images.shape
    N, size, _ = rows.shape
    shrunk = rows.view(B, -1, H) @ images.transpose(1, 2).reshape(B, H, C * W)  # (B, M size, C W)
    crops = shrunk.view(N, size * C, W) @ columns.mT
    return crops.view(B, -1, size, C, size).transpose(2, 3)


def _resample_bytes(images: Tensor, rows: Tensor, columns: Tensor, vertical_first: Tensor) -> Tensor:
    """Both passes in Pillow's fixed-point arithmetic: (B, 1, C, H, W) with (B, M, 1, size, H) and (B, M, 1, size, W) -> (B, M, C, size, size)."""
    images, rows, columns = images.double(), _fixed_point(rows), _fixed_point(columns)
    horizontal = _to_bytes(rows @ _to_bytes(images @ columns.mT))
    vertical = _to_bytes(_to_bytes(rows @ images) @ columns.mT)
    return torch.where(vertical_first, vertical, horizontal).byte()


def replay_crops(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut the boxes out, resize them (bilinear, antialiased) to size x size and mirror where asked.

    Args:
        images: (B, C, H, W) float, or uint8: then every pass is rounded as Pillow rounds it, and the result is Pillow's to the bit.
        boxes: (B, M, 4) float: top/H, left/W, height/H, width/W, inside the image; edges are rounded to whole pixels.
        flips: (B, M) bool.
        size: pixels.
    Returns:
        (B, M, C, size, size), of the images' dtype.
    Raises:
        InputError: shapes don't fit.

    Source: FKD, Shen and Xing, ECCV 2022. Two matrix products per crop replace the PIL calls. Bytes follow Pillow 13, which shrinks
    vertically first where the height loses more than twice what the width does; earlier versions always began horizontally, and
    such crops differ from theirs by a grey level here and there.
    """
    B, C, H, W = images.shape
    M = boxes.shape[1]
    if boxes.shape != (B, M, 4) or flips.shape != (B, M) or size < 1:
        raise InputError(
            f"{B} images need boxes (B, M, 4) and flips (B, M), got {tuple(boxes.shape)} and {tuple(flips.shape)}, size {size}"
        )
    exact = images.dtype == torch.uint8
    top, left, height, width = boxes.to(torch.float64 if exact else torch.float32).flatten(0, 1).unbind(-1)
    top, bottom, left, right = (
        (top * H).round(),
        ((top + height) * H).round(),
        (left * W).round(),
        ((left + width) * W).round(),
    )
    rows, columns = _weights(top, bottom, size, H), _weights(left, right, size, W)
    columns = torch.where(flips.view(-1, 1, 1), columns.flip(1), columns)  # a mirrored crop has its columns in reverse
    if not exact:
        return _resample(images, rows.to(images.dtype), columns.to(images.dtype))
    vertical_first = (bottom - top - size) > 2 * (right - left - size).clamp_min(0)
    rows, columns = rows.view(B, M, 1, size, H), columns.view(B, M, 1, size, W)
    return _resample_bytes(images[:, None], rows, columns, vertical_first.view(B, M, 1, 1, 1))
