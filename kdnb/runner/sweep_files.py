"""Sweep files: many runs in a few lines, expanded and checked before anything starts.

    baseline: {method: kd}             # optional: what the others are compared with, all else equal
    runs:
      - notebook: 04_distillation      # an experiment, a list of them, or `04_distillation/*` for all that match
        profile: digits                # quick without it
        grid: {method: [kd, dkd], seed: [0, 1, 2]}     # every combination
      - notebook: 01_teacher
        list: [{epochs: 5}, {epochs: 10, lr: 0.05}]    # one run an entry; with a grid, each entry with every combination

A file of one block may leave `runs:` out. A block with neither grid nor list is one run of each of its experiments.
"""

import fnmatch
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdnb.errors import InputError, check_name
from kdnb.runner.plan import MALFORMED, Plan, experiments, params_folder, plan_many
from kdnb.storage.naming import plain_name

MOST_RUNS = 10_000  # without being told that so many are meant
_MAX_FILE = 1_000_000  # bytes
_BLOCK = ("notebook", "profile", "grid", "list")


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        experiment, profile: what `inv run` would be given.
        overrides: values over the experiment's file.
        plan: what these make.
    """

    experiment: str
    profile: str
    overrides: dict[str, Any]
    plan: Plan

    @property
    def name(self) -> str:
        """PROFILE/EXPERIMENT and what is given over its file."""
        given = " ".join(f"{name}={_short(value)}" for name, value in self.overrides.items())
        return f"{self.profile}/{self.experiment} {given}".strip()


class Sweep(NamedTuple):
    """A sweep.

    Attributes:
        name: of its file.
        runs: in the order of the file.
        baseline: the values that mark the baseline.
    """

    name: str
    runs: list[SweepRun]
    baseline: dict[str, Any]


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def sweep_names() -> list[str]:
    """All sweep files of the project."""
    return sorted(path.stem for path in (params_folder() / "sweeps").glob("*.yaml") if path.is_file())


def read_sweep(given: str, overrides: Mapping[str, Any] | None = None, many: bool = False, files: bool = True) -> Sweep:
    """Read a sweep file and plan every run of it.

    Args:
        given: a name of params/sweeps/, or the path of a file.
        overrides: values over those of the file, for every run.
        many: more than `MOST_RUNS` runs are meant.
        files: as `plan`: False for a look at a sweep whose data are on another machine.
    Raises:
        InputError: no such file, a wrong key, a grid without runs, too many of them, or what `plan` refuses, with the place in the file.
    """
    path = _find(given)
    content = _load(path)
    if "runs" not in content:
        content = {"runs": [{name: value for name, value in content.items() if name != "baseline"}]} | {
            name: content[name] for name in ("baseline",) if name in content
        }
    for name in content:
        check_name(f"key of {path.name}", name, ("runs", "baseline"))
    blocks = content["runs"]
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise InputError(f"runs in {path.name} must be a list of one block or more with the keys {', '.join(_BLOCK)}")
    counted = [_counted(block, f"block {number} of {path.name}") for number, block in enumerate(blocks, start=1)]
    if sum(counted) > MOST_RUNS and not many:
        raise InputError(
            f"{path.name} stands for {sum(counted):,} runs; more than {MOST_RUNS:,} are refused unless you say --really"
        )
    runs: dict[Path, SweepRun] = {}  # two blocks may ask for the same run
    for number, block in enumerate(blocks, start=1):
        for run in _planned(block, dict(overrides or {}), files, f"block {number} of {path.name}"):
            runs.setdefault(run.plan.folder, run)
    baseline = content.get("baseline", {})
    if not isinstance(baseline, dict):
        raise InputError(f"baseline in {path.name} must be values by name, such as {{method: kd}}")
    for name in baseline:
        check_name(f"parameter in the baseline of {path.name}", name, runs[next(iter(runs))].plan.parameters)
    return Sweep(plain_name("sweep", path.stem), list(runs.values()), baseline)


def _find(given: str) -> Path:
    path = Path(given)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"there is no sweep file {given}")
        return path
    check_name("sweep", given, sweep_names())
    return params_folder() / "sweeps" / f"{given}.yaml"


def _load(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_FILE:
        raise InputError(f"{path.name} is larger than {_MAX_FILE} bytes; it is no sweep file")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # few of them stand for any amount
            raise InputError(f"{path.name} has an alias (*name), which sweep files don't take")
        _refuse_doubles(yaml.compose(text, Loader=yaml.SafeLoader), path.name)
        content = yaml.safe_load(text)
    except MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must have `runs:`, a list of blocks with the keys {', '.join(_BLOCK)}")
    return content


def _refuse_doubles(node: yaml.Node | None, file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise InputError(f"{file} gives {twice[0]} twice in line {node.start_mark.line + 1} and after")
        for _, value in node.value:
            _refuse_doubles(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_doubles(value, file)


def _experiments(block: dict[str, Any], where: str) -> list[str]:
    """The experiments that a block names, patterns filled in."""
    given = block.get("notebook")
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"notebook in {where} must be the name of an experiment or a list of names (`inv experiments`)"
        )
    found: list[str] = []
    for name in map(str, names):
        there = fnmatch.filter(experiments(block.get("profile", "quick")), name) if "*" in name else [name]
        if not there:
            raise InputError(f"{where}: profile {block.get('profile', 'quick')} has no experiment like {name}")
        found += there
    return found


def _counted(block: dict[str, Any], where: str) -> int:
    """How many runs a block stands for; its form is checked, its values are not."""
    for name in block:
        check_name(f"key in {where}", str(name), _BLOCK)
    grid, entries = block.get("grid", {}), block.get("list", [{}])
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise InputError(f"grid in {where} must be `parameter: [values]`, each list with one value or more")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"list in {where} must be [{{parameter: value}}, ...], with one entry or more")
    if "grid" in block and not grid or "list" in block and not all(entries):
        raise InputError(f"{where} has an empty grid or list; leave it out for one run of the experiment as it is")
    if both := sorted(set(grid) & {name for entry in entries for name in entry}):
        raise InputError(f"{where} gives {both[0]} in its grid and in its list")
    return len(_experiments(block, where)) * len(entries) * math.prod(len(values) for values in grid.values())


def _planned(block: dict[str, Any], overrides: dict[str, Any], files: bool, where: str) -> list[SweepRun]:
    profile, grid, found = block.get("profile", "quick"), block.get("grid", {}), []
    entries = itertools.product(block.get("list", [{}]), itertools.product(*grid.values()))
    given = [entry | dict(zip(grid, values, strict=True)) | overrides for entry, values in entries]
    try:
        for name in _experiments(block, where):
            plans = plan_many(name, profile, given, files)
            found += [SweepRun(name, profile, values, one) for values, one in zip(given, plans, strict=True)]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return found
