"""Numbers of settings side by side: bars or dots with their error bars, seed by seed where there are several."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdnb.plots.style import COLOURS, MARKERS, few, levels, spread, styled, wilson


@styled
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


@styled
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


@styled
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
        axis.set(xlabel=f"{label}\n({spread(frame.groupby('setting')[metric].count(), 'seed')})", ylabel="")
        axis.xaxis.set_major_locator(few(5))
    return figure


@styled
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
        levels(axis, reference)
        axis.set(xlabel=name, xlim=(-0.4, len(points) - 0.6))
    counts = [len(values) for points in panels.values() for values in points.values()]
    axes[0, 0].set_ylabel(f"{ylabel}\n({spread(counts, 'seed')})")
    if reference:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _comparison(table: Mapping, ylabel: str, title: str, size, n, ylim: tuple | None, reference=None):
    """Bars or dots of `table[group][series]`."""
    import pandas as pd
    import seaborn as sns

    found = [
        (str(group), series, value)
        for group, row in table.items()
        for series, values in row.items()
        for value in np.atleast_1d(np.asarray(values, dtype=float))
    ]
    frame = pd.DataFrame(found, columns=["group", "series", "value"])
    groups, series = list(dict.fromkeys(frame["group"])), list(dict.fromkeys(frame["series"]))
    colours = dict(zip(series, cycle(COLOURS), strict=False))
    several = frame.groupby(["group", "series"])["value"].count().max() > 1
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
    if dots:
        marks = {"linestyle": "none", "markers": list(MARKERS[: len(series)]), "markersize": 5}
        dodge = 0.8 - 0.8 / len(series) if len(series) > 1 else False
        sns.pointplot(**data, **marks, dodge=dodge, errorbar="sd", err_kws={"linewidth": 1.4})
    else:
        look = {"saturation": 1, "width": 0.8, "alpha": 0.75 if several else 1}
        sns.barplot(**data, **look, errorbar="sd", err_kws={"linewidth": 1.2, "color": "black"})
    note = ""
    if several:
        grey = data | {"palette": ["0.35" if dots else "0.1"] * len(series)}
        sns.stripplot(**grey, dodge=len(series) > 1, size=3.5, jitter=False, zorder=1 if dots else 3)
        note = f"\n({spread(frame.groupby(['group', 'series'])['value'].count(), 'value')})"
    elif n:
        images = n if isinstance(n, Mapping) else dict.fromkeys(series, n)
        _intervals(axis, frame, images, flat, colours if dots else dict.fromkeys(series, "black"))
        told = ", ".join(f"{count} {name}" for name, count in n.items()) if isinstance(n, Mapping) else f"{n} images"
        note = f"\n(95 % interval, n = {told})"
    levels(axis, reference, upright=flat)
    axis.set(**{f"{at}label": "", f"{across}label": ylabel + note}, title=title)
    if ylim:
        seen = getattr(axis, f"get_{across}lim")()
        axis.set(**{f"{across}lim": (min(ylim[0], seen[0]), ylim[1]) if dots else ylim})
    axis.grid(axis=at, visible=False)
    if flat:
        axis.set_ylim(len(groups) - 0.5, -0.5)
    for edge in range(1, len(groups)) if dots else ():
        axis.axhline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
    _series_legend(axis, colours, dots)
    return figure


def _intervals(axis: Any, frame: Any, images: Mapping[str, int], flat: bool, colours: Mapping[str, str]) -> None:
    """95 % Wilson intervals of single shares, each at the place that seaborn gave its bar or dot."""
    groups, series = list(dict.fromkeys(frame["group"])), list(colours)
    for group, name, share in frame[frame["series"].isin(images)].itertuples(index=False):
        place = groups.index(group) + (series.index(name) - (len(series) - 1) / 2) * 0.8 / len(series)
        error = np.abs(np.array(wilson(share, images[name])) - share)[:, None]
        point = {"y": [place], "x": [share], "xerr": error} if flat else {"x": [place], "y": [share], "yerr": error}
        axis.errorbar(**point, fmt="none", elinewidth=1.4, ecolor=colours[name])


def _series_legend(axis: Any, colours: Mapping[str, str], dots: bool) -> None:
    """Colours (and markers) of the series, if there are several, and the named lines, beside the axis."""
    marks: list = []
    if len(colours) > 1 and dots:
        look = {"markersize": 5, "linestyle": "none"}
        series = zip(colours.items(), MARKERS, strict=False)
        marks = [Line2D([], [], color=colour, marker=mark, label=name, **look) for (name, colour), mark in series]
    elif len(colours) > 1:
        marks = [Patch(color=colour, label=name) for name, colour in colours.items()]
    marks += axis.get_legend_handles_labels()[0]
    if marks:
        axis.legend(handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5))
