"""What networks say: confusion, calibration, logits, features of many images."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from kdnb.plots.style import COLOURS, DASHES, MARKERS, curve, few, series_look, styled, ticks, wilson


@styled
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


@styled
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


@styled
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
    ends = np.array([wilson(correct[part].mean(), len(part)) for part in parts])
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
        look = {"color": COLOURS[index], "linestyle": DASHES[index], "linewidth": 1.3, "alpha": 0.35}
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


@styled
def logit_statistics(logits: Mapping[str, Tensor], standardized: Mapping[str, Tensor]):
    """Left: standard deviation of each image's logits against their mean. Right: sorted logits after standardisation, mean over images.

    Args:
        logits, standardized: (N, K) by network.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0))
    for index, (name, values) in enumerate(logits.items()):
        look = series_look(index)
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
        curve(right, index, ranks, profile, f"{name} (n = {len(values)})")
    left.set(xlabel="mean of an image's logits", ylabel="their standard deviation")
    right.set(xlabel="rank of the class", ylabel="standardised logit,\nmean over images")
    ticks(right)
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
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
        look = series_look(index)
        size_and_alpha = {"s": 12, "alpha": 0.6} if count > 60 else {"s": 36, "alpha": 0.9}
        axis.scatter(x, y, label=name, linewidth=0, color=look["color"], marker=look["marker"], **size_and_alpha)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.xaxis.set_major_locator(few(5))
    if axis.get_xlim()[1] >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(groups) > 1:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5 if count > 60 else 1)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        if count > len(groups):
            legend.set_title(f"{count} points")
    return figure


@styled
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
                look = {"color": COLOURS[place % 6], "marker": MARKERS[place], "label": names[index]}
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
