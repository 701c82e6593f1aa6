"""Figures: every function takes data and returns a matplotlib figure, small enough to be stored in a notebook.

Colours are Okabe and Ito's, told apart by colour-blind readers; axes carry units.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_STYLE = {
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 72,
    "savefig.dpi": 100,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
plt.rcParams.update(_STYLE)


def image_grid(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 10, scale: float = 0.75, caption: str = ""
):
    """Images (N, C, H, W) in [-1, 1] as a grid, row by row; grey for one channel."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * scale, rows * scale * (1.3 if titles else 1.0)), squeeze=False
    )
    pictures = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index < len(images):
            axis.imshow(
                pictures[index].squeeze(-1) if pictures.shape[-1] == 1 else pictures[index], cmap="gray", vmin=0, vmax=1
            )
            if titles:
                axis.set_title(titles[index], fontsize=7, pad=2)
    if caption:
        figure.suptitle(caption, fontsize=9)
    return _done(figure)


def labelled_rows(groups: Mapping[str, Tensor], scale: float = 0.6):
    """One row of images per group, the group's name at the left."""
    columns = max(len(images) for images in groups.values())
    figure, axes = plt.subplots(
        len(groups), columns, figsize=(columns * scale + 1.4, len(groups) * scale), squeeze=False
    )
    for row, (name, images) in zip(axes, groups.items(), strict=True):
        pictures = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
        for index, axis in enumerate(row):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
            if index < len(images):
                axis.imshow(
                    pictures[index].squeeze(-1) if pictures.shape[-1] == 1 else pictures[index],
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                )
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return _done(figure)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    log: bool = False,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (5.5, 3.0),
):
    """Curves from (x, y) pairs; `reference` draws named horizontal lines."""
    figure, axis = plt.subplots(figsize=size)
    for name, points in series.items():
        x, y = zip(*points, strict=True)
        axis.plot(x, y, label=name, linewidth=1.6, marker="o" if len(x) < 15 else None, markersize=3)
    for index, (name, level) in enumerate((reference or {}).items()):
        axis.axhline(level, color="0.4", linestyle=("--", ":", "-.")[index % 3], linewidth=1, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
    if len(series) + len(reference or {}) > 1:
        axis.legend(fontsize=8)
    return _done(figure)


def training_curves(history: Sequence[Mapping]):
    """Loss terms, accuracy and learning rate over epochs, side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    epochs = [row["epoch"] for row in history]
    for name in (key for key in history[0] if key.startswith("train_")):
        axes[0].plot(epochs, [row[name] for row in history], label=name.removeprefix("train_"))
    axes[0].set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    axes[0].legend(fontsize=8)
    seen = [row for row in history if "top1" in row]
    axes[1].plot([row["epoch"] for row in seen], [row["top1"] for row in seen], marker="o", markersize=3)
    axes[1].set(xlabel="epoch", ylabel="test top-1 (fraction)", ylim=(None, 1.005))
    axes[2].plot(epochs, [row["lr"] for row in history])
    axes[2].set(xlabel="epoch", ylabel="learning rate")
    return _done(figure)


def confusion(matrix: Tensor, names: Sequence[str], title: str = ""):
    """Counts (K, K): rows are true classes, columns predictions. The diagonal is left uncoloured so that errors stand out."""
    counts = matrix.cpu().numpy()
    errors = np.where(np.eye(len(counts), dtype=bool), np.nan, counts)
    figure, axis = plt.subplots(figsize=(4.2, 3.6))
    picture = axis.imshow(errors, cmap="viridis_r", vmin=0)
    for i, j in np.argwhere(counts > 0) if len(counts) <= 20 else []:
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=7)
    axis.set(
        xlabel="predicted class", ylabel="true class", title=title, xticks=range(len(names)), yticks=range(len(names))
    )
    axis.set_xticklabels(names, rotation=90 if max(map(len, names)) > 2 else 0)
    axis.set_yticklabels(names)
    axis.grid(False)
    figure.colorbar(picture, label="wrong images", shrink=0.8)
    return _done(figure)


def calibration(reliability, logits: Tensor, labels: Tensor):
    """Left: how often the network is right at each level of confidence. Right: confidence of right and of wrong predictions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9))
    filled = reliability.count > 0
    left.plot([0, 1], [0, 1], color="0.5", linestyle="--", label="calibrated")
    left.plot(reliability.confidence[filled].cpu(), reliability.accuracy[filled].cpu(), marker="o", label="network")
    left.set(xlabel="confidence", ylabel="accuracy in the bin", xlim=(0, 1.02), ylim=(0, 1.05))
    left.legend(fontsize=8)
    top = logits.softmax(dim=1).max(dim=1).values.cpu()
    right_ones = (logits.argmax(dim=1) == labels).cpu()
    bins = np.linspace(0, 1, 21)
    right.hist(
        [top[right_ones].numpy(), top[~right_ones].numpy()],
        bins=bins,
        stacked=True,
        log=True,
        label=[f"right ({int(right_ones.sum())})", f"wrong ({int((~right_ones).sum())})"],
    )
    right.set(xlabel="confidence", ylabel="test images")
    right.legend(fontsize=8)
    return _done(figure)


def bars(
    values: Mapping[str, Sequence[float] | float],
    ylabel: str,
    title: str = "",
    *,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (6.0, 3.0),
    ylim: tuple | None = None,
):
    """One bar per name: the mean over seeds, with every single value as a dot."""
    figure, axis = plt.subplots(figsize=size)
    for index, found in enumerate(values.values()):
        points = np.atleast_1d(np.asarray(found, dtype=float))
        axis.bar(index, points.mean(), color=COLOURS[index % len(COLOURS)], alpha=0.75)
        if len(points) > 1:
            axis.scatter([index] * len(points), points, color="black", s=10, zorder=3)
    for name, level in (reference or {}).items():
        axis.axhline(level, color="0.3", linestyle="--", linewidth=1, label=name)
    axis.set(ylabel=ylabel, title=title, xticks=range(len(values)), ylim=ylim)
    axis.set_xticklabels(values, rotation=20, ha="right")
    axis.grid(axis="x", visible=False)
    if reference:
        axis.legend(fontsize=8)
    return _done(figure)


def grouped_bars(
    table: Mapping[str, Mapping[str, float]], ylabel: str, title: str = "", size: tuple[float, float] = (7.0, 3.0)
):
    """`table[group][series]`: one cluster of bars per group, one colour per series."""
    figure, axis = plt.subplots(figsize=size)
    series = list(next(iter(table.values())))
    width = 0.8 / len(series)
    for index, name in enumerate(series):
        positions = np.arange(len(table)) + (index - (len(series) - 1) / 2) * width
        axis.bar(positions, [row[name] for row in table.values()], width, label=name)
    axis.set(ylabel=ylabel, title=title, xticks=range(len(table)))
    axis.set_xticklabels(table, rotation=20, ha="right")
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _done(figure)


def seed_dots(rows: Sequence[Mapping], metrics: Mapping[str, str], height: float = 0.32):
    """One panel a metric, one line a setting: every seed as a dot, the mean as a bar.

    Args:
        rows: with "setting", "seed" and the metrics; metrics: axis label by name.
    """
    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2.9 * len(metrics) + 1.2, height * len(names) + 0.9), sharey=True, squeeze=False
    )
    for axis, (metric, label) in zip(axes[0], metrics.items(), strict=True):
        for index, name in enumerate(names):
            values = np.array([row[metric] for row in rows if row["setting"] == name], dtype=float)
            colour = COLOURS[index % len(COLOURS)]
            axis.plot([values.mean()] * 2, [index - 0.3, index + 0.3], color=colour, linewidth=2)
            axis.scatter(values, [index] * len(values), color=colour, s=22, alpha=0.7, zorder=3)
        axis.set(xlabel=label, yticks=range(len(names)))
        axis.set_yticklabels(names)
    axes[0, 0].invert_yaxis()
    return _done(figure)


def sensitivity(
    panels: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, reference: Mapping[str, float] | None = None
):
    """`panels[hyper-parameter][value]`: results of all seeds, one panel each, dots for seeds and a line through the means."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels) + 0.6, 2.5), sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes[0], panels.items(), strict=True):
        axis.plot(range(len(points)), [np.mean(values) for values in points.values()], color=COLOURS[0])
        for index, values in enumerate(points.values()):
            axis.scatter([index] * len(values), values, color=COLOURS[0], s=18, alpha=0.7, zorder=3)
        for index, (label, level) in enumerate((reference or {}).items()):
            axis.axhline(level, color="0.4", linestyle=("--", ":")[index % 2], linewidth=1, label=label)
        axis.set(xlabel=name, xticks=range(len(points)), xlim=(-0.4, len(points) - 0.6))
        axis.set_xticklabels(points)
    axes[0, 0].set_ylabel(ylabel)
    if reference:
        axes[0, -1].legend(fontsize=7)
    return _done(figure)


def logit_statistics(logits: Mapping[str, Tensor], standardized: Mapping[str, Tensor]):
    """Left: standard deviation of each image's logits against their mean. Right: sorted logits after standardisation, mean over images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9))
    for index, (name, values) in enumerate(logits.items()):
        left.scatter(
            values.mean(dim=1).cpu(), values.std(dim=1).cpu(), s=5, alpha=0.4, color=COLOURS[index], label=name
        )
        profile = standardized[name].sort(dim=1, descending=True).values.mean(dim=0).cpu()
        right.plot(
            range(1, len(profile) + 1),
            profile,
            marker="o" if len(profile) < 30 else None,
            markersize=3,
            color=COLOURS[index],
            label=name,
        )
    left.set(xlabel="mean of an image's logits", ylabel="their standard deviation")
    right.set(xlabel="rank of the class", ylabel="standardised logit")
    left.legend(fontsize=8, markerscale=3)
    right.legend(fontsize=8)
    return _done(figure)


REGION_KINDS = ("image and region right", "image right, region wrong", "both wrong", "image wrong, region right")
_REGION_COLOURS = ("#009E73", "#D55E00", "#999999", "#56B4E9")


def region_maps(images: Tensor, groups: Tensor, titles: Sequence[str], columns: int = 8, scale: float = 1.15):
    """Images with their S x S regions coloured by kind: `groups` (N, S*S), row-major, as `kdnb.losses.sdd_groups` numbers them."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    side = int(round(groups.shape[1] ** 0.5))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * scale, rows * scale * 1.25 + 0.3), squeeze=False)
    pictures = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, kinds, title in zip(
        axes.flat, pictures, groups.view(-1, side, side).cpu().numpy(), titles, strict=False
    ):
        extent = (0, side, side, 0)
        axis.imshow(
            picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1, extent=extent
        )
        axis.imshow(kinds, cmap=ListedColormap(_REGION_COLOURS), vmin=0, vmax=3, alpha=0.45, extent=extent)
        axis.set_title(title, fontsize=7, pad=2)
    figure.legend(
        handles=[Patch(color=colour, label=kind) for colour, kind in zip(_REGION_COLOURS, REGION_KINDS, strict=True)],
        loc="outside lower center",
        ncols=4,
        fontsize=7,
    )
    return _done(figure)


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    size: tuple[float, float] = (4.6, 3.4),
):
    """Points (x, y) by group, one colour and marker a group (colours repeat after eight, markers do not)."""
    figure, axis = plt.subplots(figsize=size)
    markers = "os^Dv*PX<>hp"
    for index, (name, points) in enumerate(groups.items()):
        x, y = zip(*points, strict=True)
        axis.scatter(
            x,
            y,
            s=14,
            alpha=0.75,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=markers[index % len(markers)],
        )
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(groups) > 1:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _done(figure)


def heatmaps(
    matrices: Mapping[str, Tensor], xlabel: str, ylabel: str, rows: Sequence[str], columns: Sequence[str], label: str
):
    """Matrices of one shape side by side on one colour scale."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(2.7 * len(matrices) + 0.8, 2.7), squeeze=False)
    high = max(float(matrix.max()) for matrix in matrices.values())
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        picture = axis.imshow(matrix.cpu().numpy(), cmap="viridis", vmin=0, vmax=high)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=range(len(columns)), yticks=range(len(rows)))
        axis.set_xticklabels(columns)
        axis.set_yticklabels(rows)
        axis.grid(False)
    figure.colorbar(picture, ax=list(axes[0]), label=label, shrink=0.8)
    return _done(figure)


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
):
    """Means as lines over the range from lowest to highest: rows with `x`, `mean`, `low`, `high`."""
    return band_panels({title: series}, xlabel, ylabel, x=x, log=log, reference=reference, size=size)


def band_panels(
    panels: Mapping[str, Mapping[str, Sequence[Mapping]]],
    xlabel: str,
    ylabel: str,
    *,
    x: str = "flips",
    log: bool = False,
    reference: Mapping[str, float] | None = None,
    size: tuple[float, float] = (4.2, 3.0),
):
    """`bands` side by side, `panels[title][series]`: the same series in each, one legend, one vertical axis. `size` is of one panel."""
    figure, axes = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), sharey=True, squeeze=False)
    for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
        for colour, (name, rows) in zip(cycle(COLOURS), series.items(), strict=False):
            at = [row[x] for row in rows]
            axis.plot(at, [row["mean"] for row in rows], label=name, linewidth=1.6, color=colour)
            axis.fill_between(
                at, [row["low"] for row in rows], [row["high"] for row in rows], alpha=0.15, linewidth=0, color=colour
            )
        for name, level in (reference or {}).items():
            axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=name)
        axis.set(xlabel=xlabel, title=title, yscale="log" if log else "linear")
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _done(figure)


def _done(figure):
    """Close for pyplot, so that a cell that ends in the figure shows it once."""
    plt.close(figure)
    return figure
