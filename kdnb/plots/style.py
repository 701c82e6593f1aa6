"""What all figures share: colours, markers, style, and the small parts of axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX<>hp*"
DASHES = ("-", "--", ":", "-.")
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


def styled(draw: Callable) -> Callable:
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


def series_look(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a series; alike only after 84."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def curve(axis: Any, index: int, x: Sequence[float], y: Sequence[float], name: str) -> None:
    label = ": ".join(NAMES.get(part, part) for part in name.split(": "))
    every = max(1, len(x) // 12)
    axis.plot(x, y, label=label, linewidth=1.6, markersize=3.5, markevery=every, **series_look(index))


def levels(axis: Any, reference: Mapping[str, float] | None, upright: bool = False) -> None:
    """Named grey lines across the axis."""
    for index, (name, level) in enumerate((reference or {}).items()):
        line = axis.axvline if upright else axis.axhline
        line(level, color="0.35", linestyle=DASHES[1:][index % 3], linewidth=1.1, label=name)


def ticks(axis: Any, log: bool = False) -> None:
    """Whole ticks for whole x; a logarithmic vertical axis with plain numbers, however short."""
    if all(float(value).is_integer() for line in axis.lines for value in line.get_xdata()):
        axis.xaxis.set_major_locator(few(7, integer=True))
    if log:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high / low < 1000:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 10 else few(5))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())


def few(count: int, **options: Any) -> MaxNLocator:
    """At most so many round intervals."""
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], **options)


def legend(axis: Any) -> None:
    """None for one series, beside the axis for many."""
    count = len(axis.get_legend_handles_labels()[1])
    if count > 4:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif count > 1:
        axis.legend()


def spread(counts: Iterable[int], what: str) -> str:
    """What the error bars are, for an axis label."""
    few, many = min(counts), max(counts)
    if many == 1:
        return f"one {what}"
    return f"mean ± sd, n = {many if few == many else f'{few} to {many}'} {what}s"


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of n."""
    from scipy.stats import binomtest

    return tuple(binomtest(round(share * n), n).proportion_ci(method="wilson"))
