"""A page about many runs: one table of numbers with their seeds, the figures, what they were made with, and the notebooks themselves.

`index.html` stands alone (style and figures are inside); `notebooks/*.html` beside it are the executed notebooks, `results.csv` holds
the single values (notebook,metric,value,seed). Everything that comes from a run is escaped.
"""

import base64
import csv
import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError
from kdnb.execute import read_outcome
from kdnb.files import atomic_write
from kdnb.paths import outputs_root
from kdnb.recipes import canonical

COLUMNS = ("notebook", "metric", "value", "seed")
_MAX_FIGURE = 2_000_000  # bytes of a figure that goes into the page


class RunFiles(NamedTuple):
    """What a run folder holds."""

    folder: Path
    notebook: str
    record: dict[str, Any]           # run.json
    outcome: dict[str, Any]          # execution.json
    results: list[dict[str, str]]    # rows of results.csv

    @property
    def parameters(self) -> dict[str, Any]:
        return self.record.get("parameters") or self.outcome.get("parameters") or {}


class Summary(NamedTuple):
    """One metric of one experiment over its seeds."""

    notebook: str
    variant: str     # the parameters in which experiments of a notebook differ
    metric: str
    values: list[tuple[str, float]]  # (seed, value)

    @property
    def mean(self) -> float:
        return statistics.fmean(value for _, value in self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(value for _, value in self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.std is None else f" ± {self.std:.2g}")


# --- reading -------------------------------------------------------------------------------------------------------------------

def read_run(folder: Path) -> RunFiles:
    """Read a run folder; what is missing or unreadable is empty."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    return RunFiles(folder, folder.parent.name, record, read_outcome(folder), _rows(folder / "results.csv"))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError:
        return []
    return [row for row in rows if set(COLUMNS) <= set(row) and _is_number(row["value"])]


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def find_runs(profile: str) -> list[Path]:
    """All run folders under outputs/PROFILE, by notebook and name."""
    return sorted({path.parent for path in (outputs_root() / profile).glob("*/*/*.json") if path.name in ("run.json", "execution.json")})


# --- summing up ----------------------------------------------------------------------------------------------------------------

def summarize(runs: Iterable[RunFiles]) -> list[Summary]:
    """Metrics by experiment: runs of a notebook that differ in nothing but the seed are one experiment."""
    runs = list(runs)
    found: dict[tuple, Summary] = {}
    for run in runs:
        recipe = _without_seed(run)
        siblings = [_without_seed(other) for other in runs if other.notebook == run.notebook]
        for row in run.results:
            key = (run.notebook, canonical(recipe), row["metric"])
            found.setdefault(key, Summary(run.notebook, _difference(recipe, siblings), row["metric"], []))
            found[key].values.append((row["seed"], float(row["value"])))
    return list(found.values())


def _without_seed(run: RunFiles) -> dict[str, Any]:
    return {name: value for name, value in run.parameters.items() if name != "seed"}


def _difference(recipe: dict[str, Any], siblings: list[dict[str, Any]]) -> str:
    """`name=value` of the parameters that are not the same in all experiments of the notebook."""
    names = [name for name in recipe if any(other.get(name) != recipe[name] for other in siblings)]
    return ", ".join(f"{name}={recipe[name]}" for name in names)


# --- writing -------------------------------------------------------------------------------------------------------------------

def build_report(runs: Iterable[Path], folder: Path, title: str) -> Path:
    """Write index.html, results.csv and notebooks/*.html into `folder`.

    Args:
        runs: run folders, in the order in which they appear.
        title: heading of the page.
    Returns:
        The path of index.html.
    """
    found = [read_run(path) for path in runs]
    folder = Path(folder)
    atomic_write(folder / "results.csv", _csv(found))
    pages = [_notebook_page(run, folder / "notebooks") for run in found]
    sections = [{"run": run, "page": page, "figures": _figures(run.folder), "tables": _tables(run.folder)}
                for run, page in zip(found, pages, strict=True)]
    page = _template().render(title=title, summaries=summarize(found), sections=sections)
    atomic_write(folder / "index.html", page.encode())
    return folder / "index.html"


def report(profile: str) -> Path:
    """The page of all runs of a profile, outputs/PROFILE/report/index.html."""
    runs = find_runs(profile)
    if not runs:
        raise InputError(f"no runs of profile {profile} found; start one with `inv run NOTEBOOK --profile {profile}`")
    return build_report(runs, outputs_root() / profile / "report", f"kdnb, {profile} profile")


def _csv(runs: list[RunFiles]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows(run.results)
    return buffer.getvalue().encode()


def _figures(folder: Path) -> list[tuple[str, str]]:
    """(name, data address) of the run's figures."""
    files = [path for path in sorted((folder / "figures").glob("*.png")) if path.stat().st_size <= _MAX_FIGURE]
    return [(path.stem, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()) for path in files]


def _tables(folder: Path) -> list[str]:
    return [path.name for path in sorted((folder / "tables").glob("*.csv"))]


def _notebook_page(run: RunFiles, folder: Path) -> str:
    """The executed notebook as HTML; its address relative to the report, empty if there is none or it can't be read."""
    source = run.folder / "notebook.ipynb"
    if not source.is_file():
        return ""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    # scripts that our notebooks don't need are left out; formulas are set by MathJax where there is a network
    page = ("{% extends 'lab/index.html.j2' %}{% block html_head_js_requirejs %}{% endblock %}"
            "{% block html_head_js_mermaidjs %}{% endblock %}")
    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.j2": page})], template_file="page.j2", sanitize_html=True)
    try:
        body, _ = exporter.from_notebook_node(nbformat.read(source, as_version=4))
    except (OSError, ValueError):
        return ""
    name = f"{run.notebook}-{run.folder.name}.html"
    atomic_write(folder / name, body.encode())
    return f"notebooks/{name}"


def _template():
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2")
