"""Figures: every function takes data and returns a matplotlib figure, small enough to be stored in a notebook.

Colours are Okabe and Ito's, told apart by colour-blind readers, and never the only sign: series differ in marker or line as well. Axes carry
units, error bars say what they are. Style is set while a function draws and left as it was found.
"""

from kdnb.plots.comparisons import bars, grouped_bars, seed_dots, sensitivity
from kdnb.plots.curves import band_panels, bands, cost_panels, lines, training_curves
from kdnb.plots.images import REGION_KINDS, VERDICTS, image_grid, labelled_rows, region_maps
from kdnb.plots.predictions import calibration, class_maps, confusion, heatmaps, logit_statistics, scatter
from kdnb.plots.style import COLOURS, NAMES

__all__ = [
    "COLOURS",
    "NAMES",
    "REGION_KINDS",
    "VERDICTS",
    "band_panels",
    "bands",
    "bars",
    "calibration",
    "class_maps",
    "confusion",
    "cost_panels",
    "grouped_bars",
    "heatmaps",
    "image_grid",
    "labelled_rows",
    "lines",
    "logit_statistics",
    "region_maps",
    "scatter",
    "seed_dots",
    "sensitivity",
    "training_curves",
]
