"""Two runs side by side: what they were made with, and whether their results are equal, within spread, or different.

equal           every number in results.csv and tables/ is the same; times, memory and what follows from them don't count
within spread   every metric of one run lies in the prediction interval of the other one's experiment

    mean +- t_{1 - 0.025/m, n-1} s sqrt(1 + 1/n)

over the n >= 3 other runs that share all parameters but the seed with the first run; s with divisor n - 1. Divided by m, the number
of metrics, so that all of them together lie inside with 95 % probability (Bonferroni)
different       anything else; "spread unknown" is added where there are fewer than 3 such runs
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError
from kdnb.intervals import prediction_interval
from kdnb.reports.checklist import provenance
from kdnb.reports.run_files import RunFiles, read_run, runs_beside

MIN_RUNS = 3
RULE = (
    "equal: all numbers but times and memory are the same; within spread: every metric of the second run lies in the prediction "
    f"interval of the first one's experiment over at least {MIN_RUNS} seeds, 95 % for all metrics together"
)
_COMPARED = ("parameters", "seeds", "hashes", "versions", "hardware", "execution")
_VARIES_BY_OCCASION = {"started", "seconds", "peak_memory_mib", "status"}
_MEASURED = re.compile(r"(?:^|_)(?:seconds|minutes|ms|time|memory|mib|gib|speedup)(?:$|_)|per_second", re.IGNORECASE)


class Mismatch(NamedTuple):
    """An entry in which two runs differ.

    Attributes:
        section, name: where it stands.
        first, second: its value in each run; None: not there.
    """

    section: str
    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
        verdict: "equal", "within spread", "different" or "different, spread unknown".
        made_with: entries of the two records that differ.
        results: metrics, and tables with the number of their first differing line, that differ.
    """

    verdict: str
    made_with: list[Mismatch]
    results: list[Mismatch]

    @property
    def same_platform(self) -> bool:
        """Equal bits are promised for the same versions, hardware and thread count."""
        return not any(one.section in ("versions", "hardware") or one.name == "threads" for one in self.made_with)

    @property
    def reproduced(self) -> bool:
        """Equal; on another platform within spread is enough."""
        return self.verdict == "equal" or (self.verdict == "within spread" and not self.same_platform)

    def describe(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"{one.section:12} {one.name}: {_shown(one.first)} | {_shown(one.second)}"
            for one in [*self.made_with, *self.results]
        ]
        return "\n".join([*(lines or ["nothing differs"]), f"results: {self.verdict}", f"  ({RULE})"])


def _shown(value: Any) -> str:
    return "not there" if value is None else str(value)


# --- comparing -----------------------------------------------------------------------------------------------------------------


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two run folders by the module's rule.

    Raises:
        InputError: a file of one of the runs is not what the run wrote, or one has no results.
    """
    a, b = _whole(first), _whole(second)
    made_with = [
        Mismatch(section, *entry)
        for section in _COMPARED
        for entry in _differing(provenance(a).get(section, {}), provenance(b).get(section, {}), _VARIES_BY_OCCASION)
    ]
    metrics = [Mismatch("results", *entry) for entry in _differing(_numbers(a), _numbers(b))]
    tables = [Mismatch("tables", *entry) for entry in _differing_tables(a, b)]
    if not metrics and not tables:
        verdict = "equal"
    else:
        experiment = [
            run
            for run in map(read_run, runs_beside(a.folder))
            if run.experiment == a.experiment and run.folder != b.folder
        ]
        verdict = _judge(metrics, len(_numbers(a)), experiment)
    return Comparison(verdict, made_with, metrics + tables)


def _whole(folder: Path) -> RunFiles:
    run = read_run(folder)
    if run.problems:
        raise InputError(f"{run.notebook}/{run.folder.name} can't be compared: {'; '.join(run.problems)}")
    if not run.results:
        raise InputError(f"{run.notebook}/{run.folder.name} can't be compared: it has no results")
    return run


def _differing(a: Mapping, b: Mapping, ignored: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*a, *b]):
        if name not in ignored and a.get(name) != b.get(name):
            yield name, a.get(name), b.get(name)


def _numbers(run: RunFiles) -> dict[str, float]:
    return {row["metric"]: float(row["value"]) for row in run.results if not _MEASURED.search(row["metric"])}


def _differing_tables(a: RunFiles, b: RunFiles) -> Iterator[tuple[str, str | None, str | None]]:
    """(name, the first differing line of the one, that of the other); measured columns and rows are left out."""
    ours, theirs = (
        {path.name: _lines(path) for path in sorted((run.folder / "tables").glob("*.csv"))} for run in (a, b)
    )
    for name, _, _ in _differing(ours, theirs):
        pairs = zip(ours.get(name, []), theirs.get(name, []), strict=False)
        number = next((number for number, (x, y) in enumerate(pairs, start=1) if x != y), None)
        if number is None:
            first, second = (f"{len(found[name])} lines" if name in found else None for found in (ours, theirs))
            yield name, first, second
        else:
            first, second = (f"line {number}: {','.join(found[name][number - 1])}" for found in (ours, theirs))
            yield name, first, second


def _lines(path: Path) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    kept = [index for index, name in enumerate(rows[0]) if not _MEASURED.search(name)] if rows else []
    return [[row[index] for index in kept if index < len(row)] for row in rows if row and not _MEASURED.search(row[0])]


def _judge(metrics: Sequence[Mismatch], count: int, experiment: Sequence[RunFiles]) -> str:
    """The verdict on differing metrics out of `count`, given the runs of the first one's experiment."""
    for one in metrics:
        if one.first is None or one.second is None:
            return "different"
        values = [found[one.name] for found in map(_numbers, experiment) if one.name in found]
        if len(values) < MIN_RUNS:
            return "different, spread unknown"
        low, high = prediction_interval(values, 1 - 0.05 / count)
        if not low <= one.second <= high:
            return "different"
    return "within spread"


# --- verifying -----------------------------------------------------------------------------------------------------------------
