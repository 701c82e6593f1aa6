"""Figures: every function takes data and returns a matplotlib figure, small enough to be stored in a notebook.

Colours are Okabe and Ito's, told apart by colour-blind readers, and never the only sign: series differ in marker or line as well. Axes carry
units, error bars say what they are. Style is set while a function draws and left as it was found.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX<>hp*"
_DASHES = ("-", "--", ":", "-.")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "figure.dpi": 96,
    "font.size": 9,
    "axes.titlesize": 10,
    "image.interpolation": "nearest",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "figure.constrained_layout.use": True,
}

NAMES = {
    "bn": "batch-norm statistics",
    "oh": "one-hot",
    "adv": "adversarial",
    "ce": "cross-entropy",
    "kd": "soft targets",
    "feature": "features",
    "swap": "swapped prediction",
    "top1": "top-1",
}
"""What a legend calls the loss terms and measures that histories hold under short keys."""

VERDICTS = {"agree": ("#009E73", "solid"), "disagree": ("#E69F00", (0, (2, 1)))}
"""Colour and dashes of the frames of an image."""

REGION_KINDS = ("image and region right", "image right, region wrong", "both wrong", "image wrong, region right")
_REGION_COLOURS = ("#009E73", "#D55E00", "#999999", "#56B4E9")
_REGION_SIGNS = "✓✗–+"


def _styled(draw: Callable) -> Callable:
    """Draw in the style above and close for pyplot, so that a cell that ends in the figure shows it once."""

    @wraps(draw)
    def drawn(*arguments: Any, **options: Any):
        with plt.rc_context(_STYLE):
            figure = draw(*arguments, **options)
            for axis in figure.axes:  # ticks are made later, when the figure is shown
                axis.tick_params(which="both", labelsize=8, grid_alpha=0.3, grid_linewidth=0.6)
        plt.close(figure)
        return figure

    return drawn


# --- images --------------------------------------------------------------------------------------------------------------------


@_styled
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


@_styled
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


@_styled
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


# --- curves --------------------------------------------------------------------------------------------------------------------


@_styled
def lines(
    series: Mapping[str, Sequence[tuple[float, ...]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    log: bool = False,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (5.5, 3.0),
):
    """Curves by name.

    Args:
        series: points (x, y), or (x, y, low, high) for a curve in its band. log: logarithmic vertical axis.
        reference: horizontal lines by name. size: inches.
    """
    figure, axis = plt.subplots(figsize=size)
    for index, (name, points) in enumerate(series.items()):
        x, y, *band = zip(*points, strict=True)
        _curve(axis, index, x, y, name)
        if band:
            axis.fill_between(x, *band, alpha=0.2, linewidth=0, color=_look(index)["color"])
    _levels(axis, reference)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    _ticks(axis, log)
    _legend(axis)
    return figure


@_styled
def training_curves(history: Sequence[Mapping]):
    """Loss terms (nats), test accuracy and learning rate over epochs, side by side.

    Args:
        history: rows with "epoch", "lr", "train_..." for each loss term and, in some or all, "top1".
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    epochs = [row["epoch"] for row in history]
    terms = [key for key in history[0] if key.startswith("train_")]
    for index, key in enumerate(terms):
        _curve(axes[0], index, epochs, [row[key] for row in history], key.removeprefix("train_"))
    axes[0].set(xlabel="epoch", ylabel="training loss (nats)")
    axes[0].legend()
    seen = [row for row in history if "top1" in row]
    _curve(axes[1], 0, [row["epoch"] for row in seen], [row["top1"] for row in seen], "top1")
    axes[1].set(xlabel="epoch", ylabel="test top-1 (fraction)", ylim=(None, 1.02))
    _curve(axes[2], 0, epochs, [row["lr"] for row in history], "lr")
    axes[2].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    _ticks(axes[0], log=all(row[key] > 0 for row in history for key in terms))
    _ticks(axes[1])
    _ticks(axes[2])
    return figure


def bands(
    series: Mapping[str, Sequence[Mapping]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    x: str = "flips",
    log: bool = False,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (6.5, 3.2),
    band: str = "range",
):
    """Means as lines over their bands: rows with `x`, `mean`, `low`, `high`. Other arguments as in `band_panels`."""
    return band_panels({title: series}, xlabel, ylabel, x=x, log=log, reference=reference, size=size, band=band)


@_styled
def band_panels(
    panels: Mapping[str, Mapping[str, Sequence[Mapping]]],
    xlabel: str,
    ylabel: str,
    *,
    x: str = "flips",
    log: bool = False,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (4.2, 3.0),
    band: str = "range",
):
    """`bands` side by side, `panels[title][series]`: the same series in each, one legend, one vertical axis.

    Args:
        panels: rows with `x`, `mean`, `low`, `high`. log: logarithmic vertical axis. reference: horizontal lines by name.
        size: inches of one panel. band: what `low` and `high` are, for the legend.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), sharey=True, squeeze=False)
    for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
        for index, (name, rows) in enumerate(series.items()):
            at = [row[x] for row in rows]
            _curve(axis, index, at, [row["mean"] for row in rows], name)
            low, high = [row["low"] for row in rows], [row["high"] for row in rows]
            axis.fill_between(at, low, high, alpha=0.2, linewidth=0, color=_look(index)["color"])
        _levels(axis, reference)
        axis.set(xlabel=xlabel, title=title)
        _ticks(axis, log)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(title=f"mean and {band}", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _look(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a series; alike only after 84."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": _DASHES[index // len(COLOURS) % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def _curve(axis: Any, index: int, x: Sequence[float], y: Sequence[float], name: str) -> None:
    label = ": ".join(NAMES.get(part, part) for part in name.split(": "))
    every = max(1, len(x) // 12)
    axis.plot(x, y, label=label, linewidth=1.6, markersize=3.5, markevery=every, **_look(index))


def _levels(axis: Any, reference: Mapping[str, float] | None, upright: bool = False) -> None:
    """Named grey lines across the axis."""
    for index, (name, level) in enumerate((reference or {}).items()):
        line = axis.axvline if upright else axis.axhline
        line(level, color="0.35", linestyle=_DASHES[1:][index % 3], linewidth=1.1, label=name)


def _ticks(axis: Any, log: bool = False) -> None:
    """Whole ticks for whole x; a logarithmic vertical axis with plain numbers, however short."""
    if all(float(value).is_integer() for line in axis.lines for value in line.get_xdata()):
        axis.xaxis.set_major_locator(_few(7, integer=True))
    if log:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high / low < 1000:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 10 else _few(5))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())


def _few(count: int, **options: Any) -> MaxNLocator:
    """At most so many round intervals."""
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], **options)


def _legend(axis: Any) -> None:
    """None for one series, beside the axis for many."""
    count = len(axis.get_legend_handles_labels()[1])
    if count > 4:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif count > 1:
        axis.legend()


@_styled
def cost_panels(
    panels: Mapping[str, tuple[Mapping[str, Sequence[tuple[float, float]]], Sequence[tuple[float, ...]]]],
    ylabel: str,
    *,
    spread: Mapping[str, float] | None = None,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (4.4, 3.8),
):
    """What was reached against what it cost, on a logarithmic axis: a thin curve a method, a marker at its end, the best as a staircase.

    Args:
        panels: by what the cost is, `(curves, front)`: points (cost, value) by name, and those that nothing cheaper beats, by rising cost.
        spread: half the length of the error bar at the end of a curve, by name. reference: horizontal lines by name. size: of a panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), sharey=True, squeeze=False)
    for axis, (xlabel, (curves, front)) in zip(axes[0], panels.items(), strict=True):
        for index, (name, points) in enumerate(curves.items()):
            look = _look(index) | {"linestyle": "-"}
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=look["color"], linewidth=0.8, alpha=0.4)
            error = (spread or {}).get(name)
            axis.errorbar(x[-1], y[-1], yerr=error, label=name, markersize=6, elinewidth=1, capsize=2, **look)
        steps = [(point[0], point[1]) for point in front]
        x, y = zip(*steps, (axis.get_xlim()[1], steps[-1][1]), strict=True)
        axis.step(x, y, where="post", color="0.2", linestyle="--", linewidth=1.3, label="Pareto front")
        _levels(axis, reference)
        axis.set(xlabel=xlabel, xscale="log", xlim=(None, x[-1]))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# --- comparisons ---------------------------------------------------------------------------------------------------------------


@_styled
def bars(
    values: Mapping[str, Sequence[float] | float],
    ylabel: str,
    title: str = "",
    *,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (6.0, 3.0),
    ylim: tuple | None = None,
    n: int | None = None,
):
    """The mean of each name with its error bar, as bars from 0.

    Fractions that are all above 0.6, or `ylim` above 0, give dots on a cut axis. Dots, and many or long names, go down the side.

    Args:
        values: one value, or one a seed (each drawn as a grey dot; error bar: standard deviation). reference: lines by name.
        size: inches; the height grows with names down the side. ylim: at least these values are in sight.
        n: images behind a fraction, for the 95 % Wilson interval of single values.
    """
    return _comparison({name: {"": found} for name, found in values.items()}, ylabel, title, size, n, ylim, reference)


@_styled
def grouped_bars(
    table: Mapping[str, Mapping[str, float | Sequence[float]]],
    ylabel: str,
    title: str = "",
    size: tuple[float, float] = (7.0, 3.0),
    *,
    n: int | Mapping[str, int] | None = None,
    ylim: tuple | None = None,
    reference: Mapping[str, float] | None = None,
):
    """`table[group][series]`: one cluster of bars (or dots) per group, one colour per series.

    Args:
        n: images behind a fraction, or by series; a series without has no interval. Others as in `bars`.
    """
    return _comparison(table, ylabel, title, size, n, ylim, reference)


@_styled
def seed_dots(rows: Sequence[Mapping], metrics: Mapping[str, str], height: float = 0.32):
    """One panel a metric, one line a setting: every seed as a grey dot, mean (stroke) and standard deviation (line) over seeds in colour.

    Args:
        rows: with "setting", "seed" and the metrics. metrics: axis label by name. height: inches of a line.
    """
    import pandas as pd
    import seaborn as sns

    frame = pd.DataFrame(list(rows))
    settings = frame["setting"].nunique()
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2.9 * len(metrics) + 1.2, height * settings + 1.0), sharey=True, squeeze=False
    )
    for axis, (metric, label) in zip(axes[0], metrics.items(), strict=True):
        data = {"data": frame, "x": metric, "y": "setting", "ax": axis}
        stroke = {"marker": "|", "markersize": 14, "markeredgewidth": 2.2, "color": COLOURS[0], "linestyle": "none"}
        sns.pointplot(**data, **stroke, errorbar="sd", err_kws={"linewidth": 1.4})
        sns.stripplot(**data, color="0.35", size=4.5, jitter=False, alpha=0.8, zorder=3)
        axis.set(xlabel=f"{label}\n({_spread(frame.groupby('setting')[metric].count(), 'seed')})", ylabel="")
        axis.xaxis.set_major_locator(_few(5))
    return figure


@_styled
def sensitivity(
    panels: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, reference: Mapping[str, float] | None = None
):
    """One panel a hyper-parameter: every seed as a grey dot, a line through the means with their standard deviation.

    Args:
        panels: `panels[hyper-parameter][value]`, the results of all seeds. reference: horizontal lines by name.
    """
    import pandas as pd
    import seaborn as sns

    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels) + 1.4, 2.6), sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes[0], panels.items(), strict=True):
        frame = pd.DataFrame([(str(at), value) for at, values in points.items() for value in values])
        data = {"data": frame, "x": 0, "y": 1, "ax": axis}
        sns.stripplot(**data, color="0.6", size=4.5, jitter=False, zorder=1)
        sns.pointplot(**data, errorbar="sd", marker="D", markersize=4.5, color=COLOURS[0], linewidth=1.6)
        _levels(axis, reference)
        axis.set(xlabel=name, xlim=(-0.4, len(points) - 0.6))
    counts = [len(values) for points in panels.values() for values in points.values()]
    axes[0, 0].set_ylabel(f"{ylabel}\n({_spread(counts, 'seed')})")
    if reference:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _comparison(table: Mapping, ylabel: str, title: str, size, n, ylim: tuple | None, reference=None):
    """Bars or dots of `table[group][series]`."""
    import pandas as pd
    import seaborn as sns

    frame = pd.DataFrame(
        [
            (str(group), series, value)
            for group, row in table.items()
            for series, found in row.items()
            for value in np.atleast_1d(np.asarray(found, dtype=float))
        ],
        columns=["group", "series", "value"],
    )
    groups, series = list(dict.fromkeys(frame["group"])), list(dict.fromkeys(frame["series"]))
    colours = dict(zip(series, cycle(COLOURS), strict=False))
    counts = frame.groupby(["group", "series"])["value"].count()
    dots = (ylim[0] or 0) > 0 if ylim else frame["value"].between(0.6, 1).all()
    flat = dots or len(groups) > 5 or max(map(len, groups)) > 60 / len(groups)
    if flat:
        size = (min(size[0], 6.5), 1.0 + len(groups) * min(0.14 + 0.12 * len(series), 0.5))
    figure, axis = plt.subplots(figsize=size)
    at, across = ("y", "x") if flat else ("x", "y")
    data = {
        "data": frame,
        at: "group",
        across: "value",
        "hue": "series",
        "palette": colours,
        "legend": False,
        "ax": axis,
    }
    step = 0.8 / len(series)
    if dots:
        look = {"linestyle": "none", "markers": list(_MARKERS[: len(series)]), "markersize": 5}
        dodge = 0.8 - step if len(series) > 1 else False
        sns.pointplot(**data, **look, dodge=dodge, errorbar="sd", err_kws={"linewidth": 1.4})
    else:
        look = {"saturation": 1, "width": 0.8, "alpha": 0.75 if counts.max() > 1 else 1}
        sns.barplot(**data, **look, errorbar="sd", err_kws={"linewidth": 1.2, "color": "black"})
    note = ""
    if counts.max() > 1:
        grey = data | {"palette": ["0.35" if dots else "0.1"] * len(series)}
        sns.stripplot(**grey, dodge=len(series) > 1, size=3.5, jitter=False, zorder=1 if dots else 3)
        note = f"\n({_spread(counts, 'value')})"
    elif n:
        images = n if isinstance(n, Mapping) else dict.fromkeys(series, n)
        for group, name, value in frame[frame["series"].isin(images)].itertuples(index=False):
            place = groups.index(group) + (series.index(name) - (len(series) - 1) / 2) * step
            error = np.abs(np.array(_wilson(value, images[name])) - value)[:, None]
            point = {at: [place], across: [value], f"{across}err": error}
            axis.errorbar(**point, fmt="none", elinewidth=1.4, ecolor=colours[name] if dots else "black")
        told = ", ".join(f"{count} {name}" for name, count in n.items()) if isinstance(n, Mapping) else f"{n} images"
        note = f"\n(95 % interval, n = {told})"
    _levels(axis, reference, upright=flat)
    axis.set(**{f"{at}label": "", f"{across}label": ylabel + note}, title=title)
    if ylim:
        seen = getattr(axis, f"get_{across}lim")()
        axis.set(**{f"{across}lim": (min(ylim[0], seen[0]), ylim[1]) if dots else ylim})
    axis.grid(axis=at, visible=False)
    if flat:
        axis.set_ylim(len(groups) - 0.5, -0.5)
        if dots:
            for edge in range(1, len(groups)):
                axis.axhline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
    marks = [
        Line2D([], [], color=colours[name], marker=mark, markersize=5, linestyle="none", label=name)
        if dots
        else Patch(color=colours[name], label=name)
        for name, mark in zip(series, _MARKERS, strict=False)
    ]
    marks = (marks if len(series) > 1 else []) + axis.get_legend_handles_labels()[0]
    if marks:
        axis.legend(handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _spread(counts: Iterable[int], what: str) -> str:
    """What the error bars are, for an axis label."""
    few, many = min(counts), max(counts)
    if many == 1:
        return f"one {what}"
    return f"mean ± sd, n = {many if few == many else f'{few} to {many}'} {what}s"


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of n."""
    from scipy.stats import binomtest

    return tuple(binomtest(round(share * n), n).proportion_ci(method="wilson"))


# --- predictions ---------------------------------------------------------------------------------------------------------------


@_styled
def confusion(matrix: Tensor, names: Sequence[str], title: str = ""):
    """Wrong images from white to red; the diagonal stays white, so that errors stand out. Counts are written in up to 20 classes.

    Args:
        matrix: (K, K) counts: rows are true classes, columns predictions. names: K classes.
    """
    import seaborn as sns

    counts = matrix.cpu().numpy()
    right, few = np.eye(len(counts), dtype=bool), len(counts) <= 20
    wrong = int(counts[~right].sum())
    side = min(max(3.4, 0.34 * len(counts)), 7)
    room = 0.06 * max(map(len, names)) if few else 0  # for names at both sides
    figure, axis = plt.subplots(figsize=(side + 0.9 + room, side + room))
    axis.grid(False)
    sns.heatmap(
        counts,
        mask=right,
        annot=np.where(counts > 0, counts.astype(int).astype(str), "") if few else None,
        fmt="",
        annot_kws={"fontsize": 8},
        cmap=LinearSegmentedColormap.from_list("errors", ["white", "#F4A582", "#B2182B"]),
        vmin=0,
        vmax=max(4, counts[~right].max(initial=0)),
        square=True,
        xticklabels=list(names) if few else "auto",
        yticklabels=list(names) if few else "auto",
        cbar_kws={"label": "wrong images", "shrink": 0.8, "ticks": MaxNLocator(5, integer=True)},
        ax=axis,
    )
    for index, count in enumerate(counts.diagonal()) if few else []:
        axis.text(index + 0.5, index + 0.5, int(count), ha="center", va="center", fontsize=8, color="0.4")
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(f"{title}\n{int(counts.sum())} images, {wrong} wrong".strip())
    axis.tick_params(axis="x", rotation=90 if max(map(len, names)) > 2 else 0)
    axis.tick_params(axis="y", rotation=0)
    axis.spines[:].set(visible=True, color="0.7")
    return figure


@_styled
def heatmaps(
    matrices: Mapping[str, Tensor], xlabel: str, ylabel: str, rows: Sequence[str], columns: Sequence[str], label: str
):
    """Matrices side by side on one colour scale; up to 8 columns also as numbers, over 20 rows or columns without all their names.

    Args:
        matrices: (R, C) by title. rows, columns: R and C names. label: of the scale.
    """
    import seaborn as sns

    low = min(0.0, *(float(matrix.min()) for matrix in matrices.values()))
    high = max(float(matrix.max()) for matrix in matrices.values())
    figure, axes = plt.subplots(1, len(matrices), figsize=(2.7 * len(matrices) + 0.9, 2.9), sharey=True, squeeze=False)
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        axis.grid(False)
        numbers = {"annot": len(columns) <= 8, "fmt": ".2f", "annot_kws": {"fontsize": 7}}
        shown = [list(names) if len(names) <= 20 else "auto" for names in (columns, rows)]
        ticks = dict(zip(("xticklabels", "yticklabels"), shown, strict=True))
        scale = {"vmin": low, "vmax": high, "cmap": "Blues", "cbar": False}
        sns.heatmap(matrix.cpu().numpy(), **numbers, **ticks, **scale, square=True, ax=axis)
        axis.set(title=title, xlabel=xlabel)
        axis.tick_params(axis="y", rotation=0)
    axes[0, 0].set_ylabel(ylabel)
    figure.colorbar(axes[0, 0].collections[0], ax=list(axes[0]), label=label, shrink=0.8)
    return figure


@_styled
def calibration(reliability, logits: Tensor, labels: Tensor):
    """Left: how often the network is right at each level of confidence, in bins of equal count. Right: confidence of right and wrong.

    Args:
        reliability: of `kdnb.metrics.reliability`, for the calibration error in the title. logits: (N, K). labels: (N,).
    """
    import seaborn as sns

    confidence, said = (found.cpu().numpy() for found in logits.detach().softmax(dim=1).max(dim=1))
    correct = said == labels.cpu().numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1))
    left.plot([0, 1], [0, 1], color="0.5", linestyle="--", label="calibrated")
    parts = np.array_split(confidence.argsort(kind="stable"), min(10, max(1, len(confidence) // 30)))
    centres = np.array([confidence[part].mean() for part in parts])
    shares = np.array([correct[part].mean() for part in parts])
    ends = np.array([_wilson(correct[part].mean(), len(part)) for part in parts])
    look = {"fmt": "o", "markersize": 4, "elinewidth": 1.2, "color": COLOURS[0]}
    left.errorbar(centres, shares, np.abs(ends.T - shares), label=f"bins of {len(parts[-1])} images", **look)
    start = max(0.0, min(centres.min(), ends.min()) // 0.1 / 10)
    gap = (reliability.accuracy - reliability.confidence).abs()
    error = float((reliability.count * gap).sum() / reliability.count.sum())
    left.set(
        xlabel="confidence, mean of the bin",
        ylabel="right in the bin (fraction,\n95 % Wilson interval)",
        xlim=(start, 1.01),
        ylim=(start, 1.02),
        title=f"ECE {100 * error:.1f} % ({len(reliability.count)} bins of equal width)",
    )
    left.legend(loc="lower right")
    bins = np.linspace(confidence.min() // 0.05 * 0.05, 1, 21)
    for index, (name, chosen) in enumerate({"right": correct, "wrong": ~correct}.items()):
        look = {"color": COLOURS[index], "linestyle": _DASHES[index], "linewidth": 1.3, "alpha": 0.35}
        sns.histplot(
            x=confidence[chosen], bins=bins, element="step", label=f"{name} ({chosen.sum()})", ax=right, **look
        )
    right.set(
        xlabel="confidence",
        ylabel="test images in a bin",
        yscale="log",
        ylim=(0.7, None),
        title=f"{len(correct)} images",
    )
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_minor_locator(NullLocator())
    right.legend(loc="upper left")
    return figure


@_styled
def logit_statistics(logits: Mapping[str, Tensor], standardized: Mapping[str, Tensor]):
    """Left: standard deviation of each image's logits against their mean. Right: sorted logits after standardisation, mean over images.

    Args:
        logits, standardized: (N, K) by network.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0))
    for index, (name, values) in enumerate(logits.items()):
        look = _look(index)
        left.scatter(
            values.mean(dim=1).cpu(),
            values.std(dim=1).cpu(),
            s=6,
            alpha=0.4,
            color=look["color"],
            marker=look["marker"],
        )
        profile = standardized[name].sort(dim=1, descending=True).values.mean(dim=0).cpu()
        ranks = list(range(1, len(profile) + 1))
        _curve(right, index, ranks, profile, f"{name} (n = {len(values)})")
    left.set(xlabel="mean of an image's logits", ylabel="their standard deviation")
    right.set(xlabel="rank of the class", ylabel="standardised logit,\nmean over images")
    _ticks(right)
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@_styled
def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    size: tuple[float, float] = (4.6, 3.4),
):
    """Points (x, y) by group, one colour and marker a group (colours repeat after seven, with other markers)."""
    figure, axis = plt.subplots(figsize=size)
    count = sum(len(points) for points in groups.values())
    for index, (name, points) in enumerate(groups.items()):
        x, y = zip(*points, strict=True)
        look = _look(index)
        size_and_alpha = {"s": 12, "alpha": 0.6} if count > 60 else {"s": 36, "alpha": 0.9}
        axis.scatter(x, y, label=name, linewidth=0, color=look["color"], marker=look["marker"], **size_and_alpha)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.xaxis.set_major_locator(_few(5))
    if axis.get_xlim()[1] >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(groups) > 1:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5 if count > 60 else 1)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        if count > len(groups):
            legend.set_title(f"{count} points")
    return figure


@_styled
def class_maps(maps: Mapping[str, Tensor], labels: Tensor, names: Sequence[str], marked: int | None = None):
    """Maps of the same images side by side, coloured by class; classes after the tenth are grey dots.

    Args:
        maps: (N, 2) by title, without units. labels: (N,). names: K classes. marked: a class drawn in black, above the others.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(2.45 * len(maps), 2.7), squeeze=False)
    classes = labels.cpu().numpy()
    found = [int(index) for index in np.unique(classes) if index != marked]
    for axis, (title, points) in zip(axes[0], maps.items(), strict=True):
        x, y = points.cpu().numpy().T
        for place, index in enumerate(found):
            look = {"color": "0.8", "marker": "."}
            if place < 10:  # six colours: the seventh, black, is that of the marked class
                look = {"color": COLOURS[place % 6], "marker": _MARKERS[place], "label": names[index]}
            of_class = classes == index
            axis.scatter(x[of_class], y[of_class], s=8, alpha=0.6, linewidth=0, **look)
        if marked is not None:
            of_class = classes == marked
            axis.scatter(x[of_class], y[of_class], s=14, color="black", marker="x", linewidth=0.9, label=names[marked])
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    legend = axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5, fontsize=8)
    legend.set_title(f"class\n({len(classes)} images)")
    return figure
