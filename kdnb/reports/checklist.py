"""What a run was made with, and whether its numbers can carry a claim: the two tables of a reproducibility report."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kdnb.choices import BASELINES
from kdnb.reports.run_files import RunFiles

HEADLINE_SEEDS = 3  # for a headline; a claim about half a point needs 5
_EXECUTION = (
    "profile",
    "by_hand",
    "threads",
    "commit",
    "started",
    "seconds",
    "peak_memory_mib",
    "status",
    "notebook_hash",
)
_NO_HASH = {
    "notebook",
    "profile",
    "by_hand",
    "parameters",
    "seeds",
    "threads",
    "versions",
    "hardware",
    "commit",
    "started",
    "files",
    "replaces",
}


class Item(NamedTuple):
    """One line of the checklist.

    Attributes:
        statement: what is asked.
        met: None where the statement does not apply.
        detail: what was found.
    """

    statement: str
    met: bool | None
    detail: str = ""


def provenance(run: RunFiles) -> dict[str, dict[str, Any]]:
    """Everything that a run recorded, by section: parameters, seeds, hashes, versions, hardware, execution, files."""
    record, outcome = run.record, run.outcome
    execution = {name: (outcome | record).get(name) for name in _EXECUTION}
    sections = {
        "parameters": run.parameters,
        "seeds": record.get("seeds"),
        "hashes": hashes(run),
        "versions": record.get("versions"),
        "hardware": record.get("hardware"),
        "execution": {name: value for name, value in execution.items() if value is not None},
        "files": {name: str(digest)[:16] for name, digest in (record.get("files") or {}).items()},
    }
    return {name: dict(section) for name, section in sections.items() if section}


def hashes(run: RunFiles) -> dict[str, Any]:
    """What the notebook noted about data and networks, nested entries under dotted names."""
    return dict(_flat({name: value for name, value in run.record.items() if name not in _NO_HASH}))


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def checklist(run: RunFiles, others: Iterable[RunFiles]) -> list[Item]:
    """The statistics checklist of a run.

    Args:
        others: runs among which those of the same experiment (all parameters but the seed) are counted.
    """
    same = {
        other.seed
        for other in [run, *others]
        if (other.notebook, other.experiment) == (run.notebook, run.experiment) and other.results
    }
    seeds = max(len(same), len(run.parameters.get("seeds") or []))
    commit = str(run.record.get("commit", "unknown"))
    values = [float(row["value"]) for row in run.results]
    return [
        Item("the notebook ran as it is stored, from the first cell to the last", not run.by_hand, run.status),
        Item("the run ended well", run.outcome.get("status") == "ok", run.status),
        Item("every file is as the run wrote it", not run.problems, "; ".join(run.problems)),
        Item("the code is that of a commit", commit != "unknown" and not commit.endswith("+"), commit),
        Item("data and networks are named by their hashes", bool(hashes(run)), f"{len(hashes(run))} entries"),
        Item(
            "every result is a finite number",
            all(map(math.isfinite, values)) if values else None,
            f"{len(values)} results",
        ),
        Item(
            f"at least {HEADLINE_SEEDS} seeds",
            seeds >= HEADLINE_SEEDS,
            f"n = {seeds}; a claim about half a point needs 5",
        ),
        _last_epoch(run),
        _baselines(run),
    ]


def _last_epoch(run: RunFiles) -> Item:
    """A best epoch was chosen on the test set: it may stand beside the last one, never for it."""
    names = [row["metric"] for row in run.results]
    best = [name for name in names if name.startswith("best_")]
    alone = [name for name in best if name.removeprefix("best_") not in names]
    return Item(
        "numbers are of the last epoch; a best epoch only stands beside it",
        None if not names else not alone,
        ", ".join(alone or best),
    )


def _baselines(run: RunFiles) -> Item:
    """Tables that compare settings show the student alone and plain KD under the same recipe."""
    tables = [
        _settings(path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted((run.folder / "tables").glob("*.csv"))
    ]
    shown = set().union(*tables)
    missing = [name for name in BASELINES if name not in shown]
    return Item(
        "both baselines are shown",
        not missing if shown else None,
        f"missing: {', '.join(missing)}" if shown and missing else "" if shown else "no table compares settings",
    )


def _settings(text: str) -> set[str]:
    try:
        return {row["setting"] for row in csv.DictReader(io.StringIO(text)) if row.get("setting")}
    except csv.Error:
        return set()
