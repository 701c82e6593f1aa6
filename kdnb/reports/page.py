"""A page about many runs: the answer, the picture and the students first, then every number by question, the figures, what they were
made with, and the notebooks themselves.

`index.html` stands alone (style and figures are inside); `notebooks/*.html` beside it are the executed notebooks, `results.csv` holds
the single values (notebook,metric,value,seed). Everything that comes from a run is escaped.
"""

import base64
import csv
import io
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError, check_name
from kdnb.reports.checklist import checklist, provenance
from kdnb.reports.labels import Label, accuracy_bars, answer, label
from kdnb.reports.notebook_page import notebook_page
from kdnb.reports.run_files import COLUMNS, RunFiles, find_runs, read_run, runs_beside
from kdnb.storage.files import atomic_write
from kdnb.storage.naming import canonical, plain_name
from kdnb.storage.paths import outputs_root

_MAX_FIGURE = 2_000_000  # bytes of a figure that goes into the page


class Summary(NamedTuple):
    """One metric of one experiment over its seeds.

    Attributes:
        notebook: its name.
        variant: the parameters in which experiments of a notebook differ, as text.
        metric: its name.
        values: (seed, value) of each run.
    """

    notebook: str
    variant: str
    metric: str
    values: list[tuple[str, float]]

    @property
    def label(self) -> Label:
        return label(self.metric)

    @property
    def mean(self) -> float:
        return statistics.fmean(value for _, value in self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(value for _, value in self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """The mean, and the deviation where there is one; shares in per cent."""
        if self.std is None:
            return self.label.value(self.mean)
        if self.label.is_share:
            return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} %"
        return f"{self.mean:.4g} ± {self.std:.2g}"


# --- summing up ----------------------------------------------------------------------------------------------------------------


def group_runs(runs: Iterable[RunFiles]) -> list[Summary]:
    """Metrics by experiment: runs of a notebook that differ in nothing but the seed are one experiment."""
    runs = list(runs)
    found: dict[tuple, Summary] = {}
    for run in runs:
        siblings = [other.experiment for other in runs if other.notebook == run.notebook]
        for row in run.results:
            key = (run.notebook, canonical(run.experiment), row["metric"])
            found.setdefault(key, Summary(run.notebook, _difference(run.experiment, siblings), row["metric"], []))
            found[key].values.append((run.seed, float(row["value"])))
    return list(found.values())


def _difference(experiment: dict[str, Any], siblings: list[dict[str, Any]]) -> str:
    """`name=value` of the parameters that are not the same in all experiments of the notebook."""
    names = [name for name in experiment if any(other.get(name) != experiment[name] for other in siblings)]
    words = [f"{name}={experiment[name]}" for name in names if name != "by_hand"]
    return ", ".join(words + (["by hand"] if experiment.get("by_hand") else []))


class Paired(NamedTuple):
    """One metric of an experiment against the baseline, over the seeds that both ran with: see `kdnb.intervals.paired_difference`.

    Attributes:
        notebook, variant, metric: as in `Summary`.
        mean, low, high: of the differences, with a 95 % interval.
        n: pairs.
    """

    notebook: str
    variant: str
    metric: str
    mean: float
    low: float
    high: float
    n: int


def differences(summaries: Iterable[Summary], baseline: str) -> list[Paired]:
    """Every experiment minus the baseline of its notebook, metric by metric and seed by seed, with 95 % intervals.

    Args:
        baseline: the experiment to compare with, as the table names it, such as "method=kd".
    Raises:
        InputError: no experiment of that name.
    """
    from kdnb.intervals import paired_difference

    summaries = list(summaries)
    check_name("baseline", baseline, dict.fromkeys(row.variant for row in summaries if row.variant))
    base = {(row.notebook, row.metric): dict(row.values) for row in summaries if row.variant == baseline}
    found = []
    for row in summaries:
        shared = {seed: value for seed, value in row.values if seed in base.get((row.notebook, row.metric), {})}
        if row.variant == baseline or not shared:
            continue
        pairs = [
            {"setting": name, "seed": seed, row.metric: values[seed]}
            for name, values in ((row.variant, shared), (baseline, base[row.notebook, row.metric]))
            for seed in shared
        ]
        found.append(
            Paired(row.notebook, row.variant, row.metric, *paired_difference(pairs, row.variant, baseline, row.metric))
        )
    return found


# --- writing -------------------------------------------------------------------------------------------------------------------


def build_report(runs: Iterable[Path], folder: Path, title: str, baseline: str = "") -> Path:
    """Write index.html, results.csv and notebooks/*.html into `folder`.

    Args:
        runs: run folders, in the order in which they appear.
        title: heading of the page.
        baseline: an experiment with which the others are compared seed by seed; empty: none.
    Returns:
        The path of index.html.
    Raises:
        InputError: an unknown baseline.
    """
    found = [read_run(path) for path in runs]
    folder, summaries = Path(folder), group_runs(found)
    pairs = differences(summaries, baseline) if baseline else []
    atomic_write(folder / "results.csv", _csv(found))
    pages = [_notebook_page(run, folder / "notebooks") for run in found]
    sections = [_section(run, page, found) for run, page in zip(found, pages, strict=True)]
    atomic_write(folder / "index.html", _render(title, summaries, sections, baseline, pairs))
    return folder / "index.html"


def report(profile: str, baseline: str = "") -> Path:
    """The page of all runs of a profile, outputs/PROFILE/report/index.html."""
    runs = find_runs(profile)
    if not runs:
        raise InputError(f"no runs of profile {profile} found; start one with `inv run NOTEBOOK --profile {profile}`")
    return build_report(
        runs, outputs_root() / plain_name("profile", profile) / "report", f"kdnb, {profile} profile", baseline
    )


def write_run_page(folder: Path) -> Path:
    """The reproducibility report of one run, report.html in its own folder: what it was made with, and what its numbers rest on."""
    run = read_run(folder)
    section = _section(run, "", map(read_run, runs_beside(run.folder)))
    page = _render(f"{run.notebook}, {run.folder.name}", group_runs([run]), [section])
    atomic_write(run.folder / "report.html", page)
    return run.folder / "report.html"


def _section(run: RunFiles, page: str, others: Iterable[RunFiles]) -> dict[str, Any]:
    """What the page says of one run."""
    return {
        "run": run,
        "page": page,
        "answer": answer([(row["metric"], float(row["value"])) for row in run.results]),
        "figures": _figures(run),
        "provenance": provenance(run),
        "checklist": checklist(run, others),
    }


def _render(title: str, summaries: list[Summary], sections: list[dict], baseline: str = "", pairs=()) -> bytes:
    """The page; its picture is the first figure named before_after, else the first of all."""
    figures = [figure for section in sections for figure in section["figures"]]
    hero = next((figure for figure in figures if figure.name == "before_after"), next(iter(figures), None))
    means = [(row.variant, row.metric, row.mean) for row in summaries]
    order = ("student_top1", "student_top1_unguided", "student_top1_noise", "student_top1_generator", "teacher_top1")
    first = {row.metric: row.mean for row in summaries if not row.variant}
    headline = [(name, first[name]) for name in order if name in first]
    values = {"title": title, "summaries": summaries, "sections": sections, "baseline": baseline, "pairs": pairs}
    if "student_top1" in first:
        values["answer"] = answer(headline)
    values |= {"hero": hero, "bars": accuracy_bars(means)[:24], "titles": _titles(sections)}
    return _template().render(**values).encode()


def _titles(sections: list[dict]) -> dict[str, str]:
    """The question of every notebook: its first heading, or its name."""
    found: dict[str, str] = {}
    for section in sections:
        run = section["run"]
        heading = re.search(r"^# (.+)$", _first_text(run.folder / "notebook.ipynb"), re.MULTILINE)
        found.setdefault(run.notebook, heading.group(1) if heading else run.notebook)
    return found


def _first_text(path: Path) -> str:
    """The first text cell of a notebook; empty where the file is not there or not one."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return ""


def _csv(runs: list[RunFiles]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run in runs:
        mark = " (by hand)" if run.by_hand else ""
        writer.writerows(row | {"notebook": row["notebook"] + mark} for row in run.results)
    return buffer.getvalue().encode()


class Figure(NamedTuple):
    """A figure of a run.

    Attributes:
        name: of its file.
        caption: what it shows, from its own title and axes; its name where the run did not record one.
        address: the picture itself as a data address.
    """

    name: str
    caption: str
    address: str


def _figures(run: RunFiles) -> list[Figure]:
    """In the order in which the run drew them."""
    captions = run.record.get("captions")
    captions = captions if isinstance(captions, dict) else {}
    files = [path for path in (run.folder / "figures").glob("*.png") if path.stat().st_size <= _MAX_FIGURE]
    drawn = list(captions)
    files.sort(key=lambda path: (drawn.index(path.stem) if path.stem in drawn else len(drawn), path.stem))
    return [
        Figure(
            path.stem,
            str(captions.get(path.stem) or path.stem.replace("_", " ")),
            "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        )
        for path in files
    ]


def _notebook_page(run: RunFiles, folder: Path) -> str:
    """The executed notebook as HTML; its address relative to the report, empty if there is none or it can't be read."""
    source = run.folder / "notebook.ipynb"
    if not source.is_file():
        return ""
    try:
        body = notebook_page(source)
    except (OSError, ValueError):
        return ""
    name = f"{run.notebook}-{run.folder.name}.html"
    atomic_write(folder / name, body.encode())
    return f"notebooks/{name}"


def _template():
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")
