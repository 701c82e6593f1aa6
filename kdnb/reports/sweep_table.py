"""The table of a sweep: each metric of each experiment over its seeds, and against the baseline where seeds match."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kdnb.errors import InputError
from kdnb.intervals import Difference, paired_difference
from kdnb.reports.page import Summary, group_runs
from kdnb.reports.run_files import RunFiles
from kdnb.storage.naming import canonical

_RECIPE = ("kdnb", "code", "data_hashes")  # what is no parameter and changes results all the same


class Line(NamedTuple):
    """One metric of one experiment.

    Attributes:
        summary: its values over seeds.
        difference: from the baseline's; None where there is no experiment or no seed to pair.
    """

    summary: Summary
    difference: Difference | None


def sweep_table(runs: Iterable[RunFiles], baseline: Mapping[str, Any]) -> list[Line]:
    """Mean and spread of every metric by experiment, and paired differences from the baseline.

    The baseline of an experiment is the one that has the baseline's values and shares all other parameters.

    Args:
        runs: of the sweep; those without results count for nothing.
        baseline: values by name, such as {"method": "kd"}; empty: no differences.
    Raises:
        InputError: runs of one experiment that were made by different code or from different data can't be averaged.
    """
    runs = [run for run in runs if run.results]
    _check_recipes(runs)
    keys = {(run.notebook, canonical(run.experiment)): run.experiment for run in runs}
    rows: dict[tuple[str, str, str], Summary] = {}
    summaries = group_runs(runs)
    by_experiment = _experiments_of(runs)
    for summary, key in zip(summaries, by_experiment, strict=True):
        rows[(*key, summary.metric)] = summary
    found = []
    for (notebook, experiment, metric), summary in rows.items():
        base = canonical(keys[notebook, experiment] | dict(baseline)) if baseline else experiment
        other = rows.get((notebook, base, metric)) if base != experiment else None
        found.append(Line(summary, _paired(summary, other)))
    return found


def _experiments_of(runs: list[RunFiles]) -> list[tuple[str, str]]:
    """Notebook and experiment of each summary, in the order of `group_runs`."""
    found: dict[tuple[str, str, str], tuple[str, str]] = {}
    for run in runs:
        experiment = canonical(run.experiment)
        for row in run.results:
            found.setdefault((run.notebook, experiment, row["metric"]), (run.notebook, experiment))
    return list(found.values())


def _check_recipes(runs: list[RunFiles]) -> None:
    first: dict[tuple[str, str], RunFiles] = {}
    for run in runs:
        one = first.setdefault((run.notebook, canonical(run.experiment)), run)
        for name in _RECIPE:
            if _recipe(one)[name] != _recipe(run)[name]:
                raise InputError(
                    f"{one.folder.name} and {run.folder.name} of {run.notebook} can't be averaged: they differ in {name} "
                    f"({_recipe(one)[name]} and {_recipe(run)[name]}); run the older one again"
                )


def _recipe(run: RunFiles) -> dict[str, Any]:
    versions = run.record.get("versions", {})
    hashes = run.record.get("data_hashes")
    return {"kdnb": versions.get("kdnb"), "code": run.outcome.get("notebook_hash"), "data_hashes": hashes}


def _paired(summary: Summary, baseline: Summary | None) -> Difference | None:
    if baseline is None:
        return None
    ours, theirs = dict(summary.values), dict(baseline.values)
    shared = [seed for seed in ours if seed in theirs]
    rows = [
        {"setting": name, "seed": seed, "value": values[seed]}
        for name, values in (("it", ours), ("baseline", theirs))
        for seed in shared
    ]
    return paired_difference(rows, "it", "baseline", "value") if shared else None


COLUMNS = ("notebook", "experiment", "metric", "n", "mean", "sd", "difference", "low", "high", "pairs")


def cells(line: Line) -> list[str]:
    """A line in the order of `COLUMNS`; what is not there is empty."""
    one, gap = line.summary, line.difference
    numbers = [one.mean, one.std, *(gap[:3] if gap else (None, None, None))]
    shown = ["" if number is None or math.isnan(number) else f"{number:.6g}" for number in numbers]
    return [one.notebook, one.variant, one.metric, str(len(one.values)), *shown, str(gap.n) if gap else ""]


def to_csv(lines: Iterable[Line]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(cells, lines))
    return buffer.getvalue().encode()


def rows_to_show(lines: Iterable[Line]) -> list[list[str]]:
    """For a terminal: mean ± standard deviation, and the difference with its 95 % interval; of shares in per cent and points."""
    shown = [["notebook", "experiment", "metric", "n", "mean ± sd", "against the baseline (95 % interval, pairs)"]]
    for summary, gap in lines:
        shown.append([*summary[:3], str(len(summary.values)), summary.text, _difference(gap, summary.label.is_share)])
    return shown


def _difference(gap: Difference | None, is_share: bool) -> str:
    if gap is None:
        return ""
    mean, low, high = (f"{100 * one:+.1f}" if is_share else f"{one:+.3g}" for one in gap[:3])
    interval = "" if math.isnan(gap.low) else f"{low} to {high}, "
    return f"{mean}{' points' * is_share} ({interval}{gap.n})"
