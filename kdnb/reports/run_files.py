"""Run folders as they are found on disk: which there are, and what each says about itself."""

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError, check_name
from kdnb.reports.outcome import read_outcome
from kdnb.storage.files import read_record
from kdnb.storage.naming import BY_HAND, plain_name
from kdnb.storage.paths import outputs_root

COLUMNS = ("notebook", "metric", "value", "seed")


class RunFiles(NamedTuple):
    """What a run folder holds; what is missing or damaged is empty.

    Attributes:
        folder, notebook: where it is, and of which notebook.
        record: run.json.
        outcome: execution.json.
        results: rows of results.csv.
        problems: a sentence on each file that is missing or damaged.
    """

    folder: Path
    notebook: str
    record: dict[str, Any]
    outcome: dict[str, Any]
    results: list[dict[str, str]]
    problems: list[str]

    @property
    def parameters(self) -> dict[str, Any]:
        return self.record.get("parameters") or self.outcome.get("parameters") or {}

    @property
    def seed(self) -> str:
        """What tells repetitions of an experiment apart: `seed`, with the one student's seed after a stroke where `seeds` holds one."""
        seeds = self.parameters.get("seeds") or []
        return "/".join(map(str, [self.parameters.get("seed", ""), *(seeds if len(seeds) == 1 else [])]))

    @property
    def by_hand(self) -> bool:
        """Whether a person ran the cells, in JupyterLab or elsewhere."""
        return self.folder.name.endswith(BY_HAND)

    @property
    def experiment(self) -> dict[str, Any]:
        """All parameters but the seed: what makes runs one experiment. What was done by hand is never one with what was not."""
        found = experiment_of(self.parameters)
        return found | {"by_hand": True} if self.by_hand else found

    @property
    def status(self) -> str:
        """How it ended, in a word or two."""
        return "by hand" if self.by_hand else self.outcome.get("status", "not recorded")


def experiment_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that repetitions share: all but `seed`; a list of one of `seeds` stands for any other such list."""
    found = {name: value for name, value in parameters.items() if name != "seed"}
    return found | {"seeds": 1} if len(found.get("seeds", [])) == 1 else found


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
    notebook = str(records["run.json"].get("notebook") or folder.parent.name)  # a copy may lie anywhere
    return RunFiles(
        folder, notebook, records["run.json"], read_outcome(folder), _rows(folder / "results.csv"), problems
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


def all_runs() -> list[Path]:
    """The runs of all profiles."""
    return [path for profile in sorted(outputs_root().glob("*/")) for path in _run_folders(profile)]


def find_run(run: str, outside: bool = False) -> Path:
    """The folder of a run, given as a path (from here or from the outputs), by its name, or by the beginning of it if no other has it.

    Args:
        run: a name may have its notebook before it, or profile and notebook: `01_teacher/seed0`.
        outside: take a folder that is not in the outputs, such as a copy; it will only be read.
    Raises:
        InputError: there is none, several have that name, or the path leads to anything but a run.
    """
    root = outputs_root().resolve()
    for path in (Path(run), root / run) if "/" in run or "\\" in run else (Path(run),):
        if run and path.is_dir():
            return path.resolve() if outside and _is_run(path) else _inside(path, root, run)
    runs = {
        path.relative_to(root).as_posix(): path for path in map(Path.resolve, all_runs()) if path.is_relative_to(root)
    }
    found = _matching(list(runs), run.strip("/").split("/"))
    if len(found) > 1:
        raise InputError(f"several runs are called {run}; say which: {', '.join(found)}")
    if not found and "/" not in run:
        check_name("run", run, [path.name for path in runs.values()])
    if not found:
        raise InputError(f"there is no run folder {run}; `inv runs` lists what there is")
    return runs[found[0]]


def _matching(names: list[str], given: list[str]) -> list[str]:
    """The names whose last parts are the given ones, else those whose last parts begin with them."""
    parts = {name: name.split("/")[-len(given) :] for name in names}
    exact = [name for name in names if parts[name] == given]
    return exact or [
        name
        for name in names
        if len(parts[name]) == len(given) and all(map(str.startswith, parts[name], given)) and all(given)
    ]


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("run.json", "execution.json"))


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
