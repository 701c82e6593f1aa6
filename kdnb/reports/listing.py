"""Runs as text for the terminal: all of them in a table, or one with everything it left."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdnb.errors import InputError
from kdnb.reports.run_files import RunFiles, all_runs, find_runs, read_run

_MAIN = 3  # results of a run that fit into a line of the table


def list_runs(profile: str = "") -> str:
    """A line for each run: name, how it ended, seconds, its first results; of one profile or, if empty, of all.

    Raises:
        InputError: there are none.
    """
    runs = [read_run(path) for path in (find_runs(profile) if profile else all_runs())]
    if not runs:
        of = f" of profile {profile}" if profile else ""
        raise InputError(f"no runs{of} found; start one with `inv run NOTEBOOK`")
    rows = [(run_label(run.folder), run.status, _seconds(run), _main_results(run)) for run in runs]
    return columns([("run", "status", "seconds", "results"), *rows])


def run_label(folder: Path) -> str:
    """PROFILE/NOTEBOOK/RUN."""
    return "/".join(folder.parts[-3:])


def _seconds(run: RunFiles) -> str:
    return f"{run.outcome['seconds']:.0f}" if isinstance(run.outcome.get("seconds"), int | float) else ""


def _main_results(run: RunFiles) -> str:
    shown = [f"{row['metric']} {float(row['value']):.4g}" for row in run.results]
    return ", ".join(shown[:_MAIN]) + (f", {len(shown) - _MAIN} more" if len(shown) > _MAIN else "")


def describe_run(folder: Path) -> str:
    """Everything about one run: how it ended, its parameters, results, checks and files."""
    run = read_run(folder)
    ended = [("status", run.status)] + [
        (name, run.outcome[name]) for name in ("seconds", "message", "reused", "next") if run.outcome.get(name)
    ]
    parts = {
        run_label(run.folder): ended + [("damaged", problem) for problem in run.problems],
        "parameters": run.parameters.items(),
        "results": [(row["metric"], row["value"]) for row in run.results],
        "checks": [(row["outcome"], _check(row)) for row in _checks(folder)],
        "files": [(path.relative_to(folder).as_posix(), f"{path.stat().st_size:,} bytes") for path in _files(folder)],
    }
    return "\n\n".join(f"{title}\n{_indented(rows)}" for title, rows in parts.items() if rows)


def describe_results(folder: Path) -> str:
    """The results of a run, a line each; empty if it has none."""
    return _indented([(row["metric"], row["value"]) for row in read_run(folder).results])


def _checks(folder: Path) -> list[dict[str, str]]:
    """Rows of the table that `kdnb.checks` keeps."""
    try:
        rows = list(csv.DictReader(io.StringIO((folder / "tables" / "checks.csv").read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if {"check", "outcome", "value", "because"} <= set(row)]


def _check(row: Mapping[str, Any]) -> str:
    detail = f"because {row['because']}" if row["because"] else f"found {row['value']}" if row["value"] else ""
    return f"{row['check']} ({detail})" if detail else str(row["check"])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)


def _indented(rows: Iterable[tuple[Any, Any]]) -> str:
    return columns([("  " + str(name), value) for name, value in rows])


def columns(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as lines of text, each column as wide as its widest cell."""
    cells = [[" ".join(str(cell).split("\n")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
