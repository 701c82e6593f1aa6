"""Run folders as they are found on disk: which there are, and what each says about itself."""

import csv
import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError, check_name
from kdnb.reports.outcome import read_outcome
from kdnb.storage.files import read_record
from kdnb.storage.naming import BY_HAND, plain_name
from kdnb.storage.paths import outputs_root

COLUMNS = ("notebook", "metric", "value", "seed")


class RunFiles(NamedTuple):
    """What a run folder holds; what is missing or damaged is empty, and `problems` says so."""

    folder: Path
    notebook: str
    record: dict[str, Any]  # run.json
    outcome: dict[str, Any]  # execution.json
    results: list[dict[str, str]]  # rows of results.csv
    problems: list[str]

    @property
    def parameters(self) -> dict[str, Any]:
        return self.record.get("parameters") or self.outcome.get("parameters") or {}

    @property
    def seed(self) -> str:
        return str(self.parameters.get("seed", ""))

    @property
    def by_hand(self) -> bool:
        """Whether a person ran the cells, in JupyterLab or elsewhere."""
        return self.folder.name.endswith(BY_HAND)

    @property
    def recipe(self) -> dict[str, Any]:
        """All parameters but the seed: what makes runs one experiment. What was done by hand is never one with what was not."""
        found = {name: value for name, value in self.parameters.items() if name != "seed"}
        return found | {"by_hand": True} if self.by_hand else found

    @property
    def status(self) -> str:
        """How it ended, in a word or two."""
        return "by hand" if self.by_hand else self.outcome.get("status", "not recorded")


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; a file that is not the one its run wrote is a problem, not an error."""
    folder, problems = Path(folder), []
    records: dict[str, dict] = {"run.json": {}, "execution.json": {}}
    for name in records:
        try:
            records[name] = read_record(folder / name)
        except InputError as error:
            if (folder / name).exists():
                problems.append(str(error))
    replaces = records["run.json"].get("replaces", {})  # of a process killed while it replaced a file
    for name, digest in records["run.json"].get("files", {}).items():
        try:
            whole = hashlib.sha256((folder / name).read_bytes()).hexdigest() in (digest, replaces.get(name))
        except OSError:
            whole = False
        if not whole:
            problems.append(f"{name} is missing, damaged or was edited: it is not what the run wrote")
    return RunFiles(
        folder, folder.parent.name, records["run.json"], read_outcome(folder), _rows(folder / "results.csv"), problems
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error):
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
    return _run_folders(outputs_root() / plain_name("profile", profile))


def _run_folders(profile: Path) -> list[Path]:
    return sorted({path.parent for path in profile.glob("*/*/*.json") if path.name in ("run.json", "execution.json")})


def runs_beside(folder: Path) -> list[Path]:
    """The runs of the same profile and notebook, this one included."""
    return [path for path in _run_folders(folder.parent.parent) if path.parent == folder.parent]


def find_run(run: str) -> Path:
    """The folder of a run, given as a path (from here or from the outputs) or by its name alone.

    Raises:
        InputError: there is none, several have that name, or the path leads to anything but PROFILE/NOTEBOOK/RUN in the outputs.
    """
    root = outputs_root().resolve()
    if "/" not in run and "\\" not in run:
        runs = {
            path.relative_to(root).as_posix(): path for profile in root.glob("*/") for path in _run_folders(profile)
        }
        found = [path for path in runs.values() if path.name == run]
        if len(found) > 1:
            raise InputError(
                f"several runs are called {run}; say which: {', '.join(name for name, path in runs.items() if path.name == run)}"
            )
        if not found and not Path(run).is_dir():
            check_name("run", run, [path.name for path in runs.values()])
        return _inside(found[0] if found else Path(run), root, run)
    for path in (Path(run), root / run):
        if path.is_dir():
            return _inside(path, root, run)
    raise InputError(f"there is no run folder {run}")


def _inside(path: Path, root: Path, given: str) -> Path:
    """The path without links and dots, if it is a run folder of the outputs."""
    path = path.resolve()
    if (
        not path.is_relative_to(root)
        or len(path.relative_to(root).parts) != 3
        or path not in _run_folders(path.parent.parent)
    ):
        raise InputError(
            f"{given} is no run: runs are PROFILE/NOTEBOOK/RUN in the outputs folder, with a run.json or execution.json"
        )
    return path
