"""kdnb.plots: figures show the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdnb import metrics, plots

ROWS = [
    {"setting": name, "seed": seed, "top1": value}
    for name, values in {"a": (0.1, 0.3), "b": (0.5, 0.9)}.items()
    for seed, value in enumerate(values)
]


def spans(axis, places=2):
    """Ends of the error bars along x, top to bottom."""
    bars = [line.get_xdata() for line in axis.lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2]
    return [[round(float(end), places) for end in ends] for ends in bars]


def test_style_is_left_as_it_was_found():
    before = dict(plt.rcParams)
    figure = plots.lines({"a": [(1, 2), (2, 3)]}, "x", "y")
    assert dict(plt.rcParams) == before and plt.get_fignums() == [] and figure.get_dpi() == 96
    assert not figure.axes[0].spines["top"].get_visible()


def test_every_seed_is_a_dot_and_the_mean_a_stroke_in_its_standard_deviation():
    axis = plots.seed_dots(ROWS, {"top1": "top-1"}).axes[0]
    assert [dots.get_offsets()[:, 0].tolist() for dots in axis.collections] == [[0.1, 0.3], [0.5, 0.9]]
    assert axis.lines[0].get_xdata().tolist() == pytest.approx([0.2, 0.7])
    assert spans(axis) == [[0.06, 0.34], [0.42, 0.98]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_xlabel() == "top-1\n(mean ± sd, n = 2 seeds)"


def test_a_panel_goes_through_the_means_of_its_values():
    axes = plots.sensitivity(
        {"temperature": {"1": [0.2, 0.4], "2": [0.5]}, "kd_weight": {"9": [0.6]}}, "top-1", {"alone": 0.1}
    ).axes
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.5])
    assert [axis.get_xlabel() for axis in axes] == ["temperature", "kd_weight"]
    assert axes[0].get_ylabel() == "top-1\n(mean ± sd, n = 1 to 2 seeds)"


def test_bars_start_at_zero_and_have_one_colour():
    axis = plots.bars({"a": [0.2, 0.4], "b": 0.9}, "top-1", reference={"teacher": 1.0}).axes[0]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([0.3, 0.9]) and axis.get_ylim()[0] == 0
    assert len({bar.get_facecolor() for bar in axis.patches}) == 1
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([0.3 - 0.02**0.5, 0.3 + 0.02**0.5])


@pytest.mark.parametrize("options", [{}, {"ylim": (0.8, 1)}])
def test_accuracies_close_together_are_dots_with_wilson_intervals(options):
    axis = plots.bars({"a": 0.9, "b": 0.7}, "top-1", n=100, **options).axes[0]
    assert not axis.patches and axis.get_xlabel() == "top-1\n(95 % interval, n = 100 images)"
    assert axis.lines[0].get_xdata().tolist() == [0.9, 0.7] and 0.5 < axis.get_xlim()[0] < 0.7
    ends = [path.vertices[:, 0].round(3).tolist() for part in axis.collections for path in part.get_paths()]
    assert ends == [[0.826, 0.945], [0.604, 0.781]]  # Wilson, 1927


def test_clusters_of_many_groups_lie_down_and_intervals_stand_at_their_bars():
    table = {f"group {k}": {"teacher": 0.1 * k, "judge": 0.5} for k in range(1, 8)}
    axis = plots.grouped_bars(table, "share", n={"judge": 50}).axes[0]
    teacher, judge = axis.containers[:2]
    assert [bar.get_width() for bar in teacher] == pytest.approx([0.1 * k for k in range(1, 8)])
    at = [part.get_segments()[0][0, 1] for part in axis.collections]
    assert at == pytest.approx([bar.get_y() + bar.get_height() / 2 for bar in judge])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["teacher", "judge"]


def test_lines_have_readable_names_whole_ticks_and_looks_of_their_own():
    points = [(epoch, 1.0 + epoch) for epoch in range(3)]
    series = {"bn": points, "tolerant: top1": points} | {f"series {number}": points for number in range(10)}
    axis = plots.lines(series, "epoch", "loss", log=True).axes[0]
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts[:3] == ["batch-norm statistics", "tolerant: top-1", "series 0"]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}) == 12
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_a_point_with_its_ends_draws_a_band():
    axis = plots.lines({"bound": [(1, 5, 4, 6), (2, 6, 5.5, 6.5)]}, "samples", "nats").axes[0]
    assert axis.lines[0].get_ydata().tolist() == [5, 6] and axis.collections[0].get_paths()[0].get_extents().ymin == 4


def test_training_curves_show_terms_accuracy_and_rate():
    history = [{"epoch": 1, "lr": 0.1, "train_ce": 2.0}, {"epoch": 2, "lr": 0.2, "train_ce": -1.0, "top1": 0.5}]
    loss, accuracy, rate = plots.training_curves(history).axes
    assert loss.lines[0].get_ydata().tolist() == [2, -1] and loss.get_yscale() == "linear"
    assert loss.get_legend().get_texts()[0].get_text() == "cross-entropy"
    assert accuracy.lines[0].get_xdata().tolist() == [2] and rate.lines[0].get_ydata().tolist() == [0.1, 0.2]


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_titles_and_captions_go_to_their_image(channels):
    figure = plots.image_grid(
        torch.zeros(3, channels, 4, 4),
        ["6 0.98", "1 0.50", "2 0.40"],
        frames=["agree", ("agree", "disagree"), None],
        captions=["asked 6", "asked 7", "asked 8"],
    )
    frames = [[artist for artist in axis.patches if artist.get_transform() is not None] for axis in figure.axes]
    assert [[frame.get_linestyle() for frame in own] for own in frames] == [["solid"], [(0, (2, 1)), "solid"], []]
    outer = max(frames[1], key=lambda frame: frame.get_width())
    assert outer.get_linestyle() == "solid"
    assert [axis.get_title() for axis in figure.axes] == ["6 0.98", "1 0.50", "2 0.40"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["asked 6", "asked 7", "asked 8"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["agree", "disagree"]


def test_rows_carry_the_frames_of_their_group():
    groups = {"real": torch.zeros(2, 1, 4, 4), "noise": torch.zeros(1, 1, 4, 4)}
    figure = plots.labelled_rows(groups, frames={"noise": ["disagree"]}, titles={"real": ["1", "2"]})
    assert [len(axis.patches) for axis in figure.axes] == [0, 0, 1, 0]
    assert [axis.get_title() for axis in figure.axes] == ["1", "2", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["real", "", "noise", ""]


def test_errors_are_coloured_and_every_count_is_written():
    axis, scale = plots.confusion(torch.tensor([[7, 2, 0], [0, 8, 0], [1, 0, 9]]), ["a", "b", "c"], "test").axes
    drawn = axis.collections[0].get_array()
    assert drawn.mask.reshape(3, 3).tolist() == np.eye(3, dtype=bool).tolist() and drawn.max() == 2
    assert sorted(text.get_text() for text in axis.texts if text.get_text()) == ["1", "2", "7", "8", "9"]
    assert axis.get_title() == "test\n27 images, 3 wrong"
    assert all(float(tick).is_integer() for tick in scale.get_yticks())


def test_calibration_has_bins_of_one_size_and_every_image_in_the_histogram():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    logits = torch.randn(90, 3, generator=rng) + 3 * torch.nn.functional.one_hot(labels, 3)
    left, right = plots.calibration(metrics.reliability(logits, labels), logits, labels).axes
    shares = left.lines[1].get_ydata()
    correct = (logits.argmax(dim=1) == labels).double().mean().item()
    assert len(shares) == 3 and np.mean(shares) == pytest.approx(correct)
    assert left.get_legend().get_texts()[-1].get_text() == "bins of 30 images"
    assert (
        f"ECE {100 * metrics.ece(logits, labels).item():.1f} %" in left.get_title() and right.get_title() == "90 images"
    )


def test_logits_are_shown_by_mean_deviation_and_sorted_profile():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 2.0]])
    left, right = plots.logit_statistics({"x": logits}, {"x": logits}).axes
    assert left.collections[0].get_offsets().tolist() == [[2, 1], [2, 2]]
    assert right.lines[0].get_ydata().tolist() == [3.5, 2.0, 0.5]


@pytest.mark.parametrize("channels", [1, 3])
def test_region_maps_lay_the_kinds_over_the_image_row_by_row(channels):
    groups = torch.tensor([[0, 1, 2, 3]])
    figure = plots.region_maps(torch.zeros(1, channels, 8, 8), groups, ["label 5"], columns=1)
    picture, overlay = figure.axes[0].images
    assert overlay.get_array().tolist() == [[0, 1], [2, 3]] and picture.get_extent() == overlay.get_extent()
    assert [sign.get_text() for sign in figure.axes[0].texts] == ["✓", "✗", "–", "+"]
    assert len(figure.legends[0].get_texts()) == len(plots.REGION_KINDS) == 4


def test_groups_of_points_have_colours_and_markers_of_their_own():
    axis = plots.scatter({str(k): [(k * 10_000, k)] for k in range(10)}, "parameters", "top-1").axes[0]
    looks = {(str(dots.get_facecolor()), str(dots.get_paths()[0].vertices)) for dots in axis.collections}
    assert len(looks) == 10 and axis.xaxis.get_major_formatter()(50_000) == "50k"


def test_matrices_share_a_scale_and_say_their_numbers():
    axes = plots.heatmaps({"a": torch.eye(2), "b": 0.5 * torch.eye(2)}, "x", "y", "rs", "cd", "share").axes
    assert [axis.collections[0].get_clim() for axis in axes[:2]] == [(0, 1), (0, 1)]
    assert [text.get_text() for text in axes[1].texts] == ["0.50", "0.00", "0.00", "0.50"]


def test_maps_of_classes_mark_one_class_and_leave_the_eleventh_grey():
    labels = torch.arange(12).repeat(2)
    points = torch.stack([labels, -labels], dim=1).float()
    names = [f"class {label}" for label in range(12)]
    axes = plots.class_maps({"teacher": points, "student": 2 * points}, labels, names, marked=3).axes
    assert [axis.get_title() for axis in axes] == ["teacher", "student"]
    assert [len(group.get_offsets()) for group in axes[1].collections] == [2] * 12
    assert [list(point) for point in axes[1].collections[-1].get_offsets()] == [[6, -6], [6, -6]]
    shown = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert shown == [name for name in names[:11] if name != "class 3"] + ["class 3"]
    assert axes[1].collections[10].get_facecolor()[0][:3].tolist() == [0.8, 0.8, 0.8]


def test_bands_are_means_over_their_range_and_more_series_than_colours_are_drawn():
    rows = [{"flips": at, "mean": 0.5 * at, "low": 0.0, "high": at} for at in (0, 1, 2)]
    axis = plots.bands(
        {f"series {number}": rows for number in range(10)}, "x", "y", "title", reference={"chance": 0.1}
    ).axes[0]
    assert len(axis.collections) == 10 and len(axis.lines) == 11
    assert list(axis.lines[0].get_ydata()) == [0.0, 0.5, 1.0] and list(axis.lines[-1].get_ydata()) == [0.1, 0.1]
    assert axis.collections[0].get_paths()[0].get_extents().ymax == 2 and axis.get_title() == "title"
    assert axis.get_legend().get_title().get_text() == "mean and range"


def test_panels_share_their_vertical_axis_and_one_legend():
    rows = [{"at": at, "mean": at, "low": at, "high": at} for at in (1, 2)]
    figure = plots.band_panels({"left": {"a": rows}, "right": {"a": rows}}, "round", "top-1", x="at")
    left, right = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["left", "right"] and left.get_ylim() == right.get_ylim()
    assert left.get_legend() is None and [text.get_text() for text in right.get_legend().get_texts()] == ["a"]


def test_the_front_is_a_staircase_over_curves_that_end_in_a_marker_with_its_spread():
    curves = {"a": [(1.0, 0.2), (8.0, 0.6)], "b": [(2.0, 0.5)]}
    front = [(1.0, 0.2, "a"), (2.0, 0.5, "b"), (8.0, 0.6, "a")]
    figure = plots.cost_panels({"seconds": (curves, front)}, "top-1", spread={"a": 0.05}, reference={"teacher": 0.9})
    (axis,) = figure.axes
    labels = axis.get_legend_handles_labels()[1]
    assert axis.get_xscale() == "log" and sorted(labels) == ["Pareto front", "a", "b", "teacher"]
    stairs = next(line for line in axis.lines if line.get_label() == "Pareto front")
    assert stairs.get_drawstyle() == "steps-post" and list(stairs.get_ydata()) == [0.2, 0.5, 0.6, 0.6]
    assert stairs.get_xdata()[-1] >= 8.0
    bars = [segment for part in axis.collections for segment in part.get_segments()]
    assert [tuple(round(float(y), 3) for y in segment[:, 1]) for segment in bars] == [(0.55, 0.65)]
