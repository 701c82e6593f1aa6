"""Images in grids and rows, with frames that say whether an answer is right."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from kdnb.plots.style import styled

VERDICTS = {"agree": ("#009E73", "solid"), "disagree": ("#E69F00", (0, (2, 1)))}
"""Colour and dashes of the frames of an image."""

REGION_KINDS = ("image and region right", "image right, region wrong", "both wrong", "image wrong, region right")
_REGION_COLOURS = ("#009E73", "#D55E00", "#999999", "#56B4E9")
_REGION_SIGNS = "✓✗–+"


@styled
def image_grid(
    images: Tensor,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    scale: float = 0.75,
    caption: str = "",
    *,
    frames: Sequence[str | Sequence[str] | None] | None = None,
    frame_title: str = "",
    captions: Sequence[str] | None = None,
):
    """Images as a grid, row by row; grey for one channel.

    Args:
        images: (N, C, H, W) in [-1, 1]. titles: N lines above, such as class and the teacher's confidence. columns: images in a row.
        scale: inches of an image. caption: line above the grid.
        frames: N of None, a status ("agree": solid green, "disagree": dashed orange), a colour, or several of them, drawn from outside in.
        frame_title: what the frames say, for the legend. captions: N lines below.
    """
    columns = min(columns, max(1, len(images)))
    rows = -(-len(images) // columns)
    height = scale + 0.2 * bool(titles) + 0.3 * bool(captions) + 0.15 * bool(frames)
    size = columns * scale, rows * height + 0.25 * bool(caption) + 0.4 * bool(frames)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.get_layout_engine().set(h_pad=0.08 if captions else 0.04)
    _pictures(axes.flat, images, titles, captions, frames, scale)
    if caption:
        figure.suptitle(caption, fontsize=9)
    _verdicts(figure, frames or (), frame_title)
    return figure


@styled
def labelled_rows(
    groups: Mapping[str, Tensor],
    scale: float = 0.6,
    *,
    titles: Mapping[str, Sequence[str]] | None = None,
    frames: Mapping[str, Sequence[str | Sequence[str] | None]] | None = None,
    frame_title: str = "",
    captions: Mapping[str, Sequence[str]] | None = None,
):
    """One row of images per group, the group's name at the left.

    Args:
        groups: (N, C, H, W) in [-1, 1] by name. scale: inches of an image.
        titles, frames, captions, frame_title: as in `image_grid`, by the group's name; a group may be left out.
    """
    titles, frames, captions = titles or {}, frames or {}, captions or {}
    columns = max(len(images) for images in groups.values())
    lines_of_text = sum((name in titles) + (name in captions) for name in groups)
    figure, axes = plt.subplots(
        len(groups),
        columns,
        figsize=(columns * scale + 1.4, len(groups) * scale + 0.2 * lines_of_text + 0.3 * bool(frames)),
        squeeze=False,
    )
    for row, (name, images) in zip(axes, groups.items(), strict=True):
        _pictures(row, images, titles.get(name), captions.get(name), frames.get(name), scale)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, labelpad=8)
    _verdicts(figure, [frame for row in frames.values() for frame in row], frame_title)
    return figure


@styled
def region_maps(images: Tensor, groups: Tensor, titles: Sequence[str], columns: int = 8, scale: float = 1.15):
    """Images with their S x S regions coloured by kind.

    Args:
        images: (N, C, H, W) in [-1, 1]. groups: (N, S*S) in 0..3, row-major, as `kdnb.losses.sdd_groups` numbers them.
        titles: N lines above. columns: images in a row. scale: inches of an image.
    """
    side = int(round(groups.shape[1] ** 0.5))
    columns = max(min(columns, len(images)), 5)  # room for the legend
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * scale, rows * scale * 1.15 + 0.3), squeeze=False)
    _pictures(axes.flat, images, titles, None, None, scale, extent=(0, side, side, 0))
    for axis, kinds in zip(axes.flat, groups.view(-1, side, side).cpu().numpy(), strict=False):
        axis.imshow(
            kinds, cmap=ListedColormap(_REGION_COLOURS), vmin=0, vmax=3, alpha=0.4, extent=axis.images[0].get_extent()
        )
        for (i, j), kind in np.ndenumerate(kinds):
            sign = axis.text(j + 0.5, i + 0.5, _REGION_SIGNS[kind], color="white", ha="center", va="center", fontsize=9)
            sign.set_path_effects([withStroke(linewidth=1.6, foreground="black")])
    handles = [
        Patch(color=colour, alpha=0.6, label=f"{sign}  {kind}")
        for colour, sign, kind in zip(_REGION_COLOURS, _REGION_SIGNS, REGION_KINDS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns * scale > 8 else 2)
    return figure


def _pictures(axes: Iterable, images: Tensor, titles, captions, frames, scale: float, **options: Any) -> None:
    """One image an axis, without ticks; axes beyond the last image stay empty."""
    pictures = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    margin = 8 if frames else 2
    wide = max(4, int(scale * 15))  # characters of this size that fit over an image
    for index, axis in enumerate(axes):
        axis.set(xticks=[], yticks=[], frame_on=False)
        if index >= len(pictures):
            continue
        axis.imshow(pictures[index].squeeze(), cmap="gray", vmin=0, vmax=1, **options)
        if titles:
            axis.set_title(textwrap.fill(titles[index], wide), fontsize=8, pad=margin)
        if captions:
            axis.set_xlabel(textwrap.fill(captions[index], wide), fontsize=8, labelpad=margin)
        for depth, status in enumerate(reversed(_statuses(frames[index]) if frames else ())):
            colour, dashes = VERDICTS.get(status, (status, "solid"))
            gap = 0.04 + 0.1 * depth
            place = (-gap, -gap), 1 + 2 * gap, 1 + 2 * gap
            look = {"edgecolor": colour, "linestyle": dashes, "linewidth": 1.5, "fill": False, "clip_on": False}
            axis.add_artist(Rectangle(*place, transform=axis.transAxes, **look))


def _statuses(frame: str | Sequence[str] | None) -> Sequence[str]:
    return (frame,) if isinstance(frame, str) else tuple(frame or ())


def _verdicts(figure: Any, frames: Iterable, title: str) -> None:
    """Legend of the statuses that were drawn."""
    seen = {status for frame in frames for status in _statuses(frame)}
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=2, label=status)
        for status, (colour, dashes) in VERDICTS.items()
        if status in seen
    ]
    if handles:
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=len(handles))
