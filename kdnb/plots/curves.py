"""Curves over epochs, flips, rounds: alone or with bands."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from kdnb.plots.style import curve, legend, levels, series_look, styled, ticks


@styled
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
        curve(axis, index, x, y, name)
        if band:
            axis.fill_between(x, *band, alpha=0.2, linewidth=0, color=series_look(index)["color"])
    levels(axis, reference)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ticks(axis, log)
    legend(axis)
    return figure


@styled
def training_curves(history: Sequence[Mapping]):
    """Loss terms (nats), test accuracy and learning rate over epochs, side by side.

    Args:
        history: rows with "epoch", "lr", "train_..." for each loss term and, in some or all, "top1".
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    epochs = [row["epoch"] for row in history]
    terms = [key for key in history[0] if key.startswith("train_")]
    for index, key in enumerate(terms):
        curve(axes[0], index, epochs, [row[key] for row in history], key.removeprefix("train_"))
    axes[0].set(xlabel="epoch", ylabel="training loss (nats)")
    axes[0].legend()
    seen = [row for row in history if "top1" in row]
    curve(axes[1], 0, [row["epoch"] for row in seen], [row["top1"] for row in seen], "top1")
    axes[1].set(xlabel="epoch", ylabel="test top-1 (fraction)", ylim=(None, 1.02))
    curve(axes[2], 0, epochs, [row["lr"] for row in history], "lr")
    axes[2].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    ticks(axes[0], log=all(row[key] > 0 for row in history for key in terms))
    ticks(axes[1])
    ticks(axes[2])
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


@styled
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
            curve(axis, index, at, [row["mean"] for row in rows], name)
            low, high = [row["low"] for row in rows], [row["high"] for row in rows]
            axis.fill_between(at, low, high, alpha=0.2, linewidth=0, color=series_look(index)["color"])
        levels(axis, reference)
        axis.set(xlabel=xlabel, title=title)
        ticks(axis, log)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(title=f"mean and {band}", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
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
            look = series_look(index) | {"linestyle": "-"}
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=look["color"], linewidth=0.8, alpha=0.4)
            error = (spread or {}).get(name)
            axis.errorbar(x[-1], y[-1], yerr=error, label=name, markersize=6, elinewidth=1, capsize=2, **look)
        steps = [(point[0], point[1]) for point in front]
        x, y = zip(*steps, (axis.get_xlim()[1], steps[-1][1]), strict=True)
        axis.step(x, y, where="post", color="0.2", linestyle="--", linewidth=1.3, label="Pareto front")
        levels(axis, reference)
        axis.set(xlabel=xlabel, xscale="log", xlim=(None, x[-1]))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
