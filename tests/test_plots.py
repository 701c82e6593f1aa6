"""kdnb.plots: figures show the numbers they are given."""

import pytest
import torch

from kdnb import plots

ROWS = [
    {"setting": name, "seed": seed, "top1": value}
    for name, values in {"a": (0.1, 0.3), "b": (0.5, 0.9)}.items()
    for seed, value in enumerate(values)
]


def test_every_seed_is_a_dot_and_the_mean_a_bar():
    axis = plots.seed_dots(ROWS, {"top1": "top-1"}).axes[0]
    assert [dots.get_offsets()[:, 0].tolist() for dots in axis.collections] == [[0.1, 0.3], [0.5, 0.9]]
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([0.2, 0.7])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_a_panel_goes_through_the_means_of_its_values():
    axes = plots.sensitivity(
        {"temperature": {"1": [0.2, 0.4], "2": [0.5]}, "kd_weight": {"9": [0.6]}}, "top-1", {"alone": 0.1}
    ).axes
    assert axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.5])
    assert [axis.get_xlabel() for axis in axes] == ["temperature", "kd_weight"]


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
    assert len(figure.legends[0].get_texts()) == len(plots.REGION_KINDS) == 4


def test_bands_are_means_over_their_range_and_more_series_than_colours_are_drawn():
    rows = [{"flips": at, "mean": 0.5 * at, "low": 0.0, "high": at} for at in (0, 1, 2)]
    axis = plots.bands(
        {f"series {number}": rows for number in range(10)}, "x", "y", "title", reference={"chance": 0.1}
    ).axes[0]
    assert len(axis.collections) == 10 and len(axis.lines) == 11
    assert list(axis.lines[0].get_ydata()) == [0.0, 0.5, 1.0] and list(axis.lines[-1].get_ydata()) == [0.1, 0.1]
    assert axis.collections[0].get_paths()[0].get_extents().ymax == 2 and axis.get_title() == "title"


def test_panels_share_their_vertical_axis_and_one_legend():
    rows = [{"at": at, "mean": at, "low": at, "high": at} for at in (1, 2)]
    figure = plots.band_panels({"left": {"a": rows}, "right": {"a": rows}}, "round", "top-1", x="at")
    left, right = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["left", "right"] and left.get_ylim() == right.get_ylim()
    assert left.get_legend() is None and [text.get_text() for text in right.get_legend().get_texts()] == ["a"]
