"""A headless run before it starts: which notebook, which parameters, are the files there? No kernel, no torch, well under a second."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdnb.data import dataset_spec
from kdnb.data.check import check_files
from kdnb.errors import InputError, check_name
from kdnb.parameters import PARAMETERS, Parameters, resolve
from kdnb.runner.cell import read_cell
from kdnb.storage.files import read_record
from kdnb.storage.header import check_classes
from kdnb.storage.naming import run_folder, run_name
from kdnb.storage.paths import PROJECT

_TAG = "tag:yaml.org,2002:"
_MAX_YAML = 65_536  # bytes of a parameter file
# a date that is none, a number of 5000 digits or brackets without end raise nearly anything in the YAML reader
_MALFORMED = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def notebooks_folder() -> Path:
    """`KDNB_NOTEBOOKS`, else `notebooks/` of the checkout."""
    return Path(os.environ.get("KDNB_NOTEBOOKS") or PROJECT / "notebooks").absolute()


def params_folder() -> Path:
    """`KDNB_PARAMS`, else `params/` of the checkout."""
    return Path(os.environ.get("KDNB_PARAMS") or PROJECT / "params").absolute()


def notebook_names() -> list[str]:
    """All notebooks, in reading order."""
    return [path.stem for path in sorted(notebooks_folder().glob("*.ipynb"))]


def experiments(profile: str) -> list[str]:
    """What a profile runs: a name for each of its parameter files; for quick also every notebook without one."""
    files = {file.stem for file in (params_folder() / _profile(profile)).glob("*.yaml")}
    return sorted(files | set(notebook_names())) if profile == "quick" else sorted(files)


def _profile(name: str) -> str:
    return check_name(
        "profile", name, dict.fromkeys(["quick", *sorted(path.name for path in params_folder().glob("*/"))])
    )


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        notebook, path: its name and its file.
        profile: name of a folder of parameter files.
        parameters: every parameter of the notebook, resolved.
        changed: those that differ from the notebook's own defaults; they are injected.
        folder: where the run will be kept.
    """

    notebook: str
    path: Path
    profile: str
    parameters: Parameters
    changed: dict[str, Any]
    folder: Path


def plan(notebook: str, profile: str = "quick", overrides: Mapping[str, Any] | None = None) -> Plan:
    """Check a run without starting anything.

    Args:
        notebook: `01_teacher`, with or without folder and ending; `01_teacher.VARIANT` uses params/PROFILE/01_teacher.VARIANT.yaml.
        profile: folder under params/; "quick" falls back to the notebook's defaults.
        overrides: values over those of the file.
    Raises:
        InputError: an unknown notebook, profile, variant or parameter, a value out of range, missing or damaged data, a teacher
            for another number of classes.
    """
    base, _, variant = Path(notebook).name.removesuffix(".ipynb").partition(".")
    path = notebooks_folder() / f"{check_name('notebook', base, notebook_names())}.ipynb"
    cell = read_cell(path)
    given = read_params(base, profile, variant) | dict(overrides or {})
    for name, value in given.items():
        check_name(f"parameter of {base}", name, cell)
        if value is None and not cell[name].type.startswith("Optional["):
            raise InputError(f"{name} must be {PARAMETERS[name].allowed}, got None")
    defaults = resolve({name: line.default for name, line in cell.items()})
    values = resolve(defaults | given)
    _check_outside(values)
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return Plan(base, path, profile, values, changed, run_folder(profile, base, values))


def plan_again(folder: Path) -> Plan:
    """The plan of a run that exists, from its own record: the same notebook and parameters, so the same folder.

    Args:
        folder: a run folder, as `kdnb.reports.run_files.find_run` gives it.
    Raises:
        InputError: no whole record, a record of another run, a notebook whose parameters are others by now, or what `plan` refuses.
    """
    values = resolve(_recorded_parameters(folder))
    profile, base = folder.parent.parent.name, folder.parent.name
    path = notebooks_folder() / f"{check_name('notebook', base, notebook_names())}.ipynb"
    cell = read_cell(path)
    if other := sorted(set(cell) ^ set(values)):
        raise InputError(
            f"{base} has other parameters now than when this run was made ({', '.join(other)}); start a new run"
        )
    _check_outside(values)
    if run_name(values) != folder.name:
        raise InputError(f"the record in {folder.name} is of a run with other parameters; start a new run")
    defaults = resolve({name: line.default for name, line in cell.items()})
    return Plan(
        base, path, profile, values, {name: value for name, value in values.items() if value != defaults[name]}, folder
    )


def _recorded_parameters(folder: Path) -> dict[str, Any]:
    """From run.json; from execution.json where the run ended before it wrote one, or where that file is damaged."""
    problems = []
    for name in ("run.json", "execution.json"):
        try:
            return dict(read_record(folder / name)["parameters"])
        except InputError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError):
            problems.append(f"{name} holds no parameters")
    raise InputError(f"{folder.name} can't be run again: {'; '.join(problems)}")


def read_params(notebook: str, profile: str, variant: str = "") -> dict[str, Any]:
    """The values in params/PROFILE/NOTEBOOK[.VARIANT].yaml: a flat mapping, each name once."""
    folder = params_folder() / _profile(profile)
    path = folder / f"{notebook}{'.' + variant if variant else ''}.yaml"
    if not path.is_file():
        if profile == "quick" and not variant:
            return {}
        there = [file.stem for file in sorted(folder.glob("*.yaml"))]
        raise InputError(
            f"profile {profile} has no parameters for {path.stem}; it has them for {', '.join(there) or 'nothing yet'}"
        )
    where = f"params/{profile}/{path.name}"
    if path.stat().st_size > _MAX_YAML:
        raise InputError(f"{where} is larger than {_MAX_YAML} bytes; it is no parameter file")
    return _flat_yaml(path, where)


def _flat_yaml(path: Path, where: str) -> dict[str, Any]:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if node is None:
            return {}
        pairs = (
            node.value if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map" else None
        )  # `!!set {}` is another
        if pairs is None or not all(
            isinstance(key, yaml.ScalarNode) and key.tag == f"{_TAG}str" and _is_flat(value) for key, value in pairs
        ):
            raise InputError(f"{where} must be a flat list of lines `name: value`")
        keys = [key.value for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise InputError(f"{where} gives {twice[0]} twice")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except _MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())}") from error


def _is_flat(node: yaml.Node) -> bool:
    """A scalar or a list of scalars."""
    return isinstance(node, yaml.ScalarNode) or (
        isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value)
    )


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["epochs=5", "lr=1e-2"]` as a dict; values are read as in a parameter file, those of text parameters as they stand."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"a parameter is given as name=value, got {pair!r}")
        is_text = name in PARAMETERS and PARAMETERS[name].annotation == "str"
        try:
            if not is_text and (node := yaml.compose(text, Loader=yaml.SafeLoader)) is not None and not _is_flat(node):
                raise ValueError("nested")
            found[name] = text if is_text else yaml.safe_load(text)
        except _MALFORMED:
            raise InputError(f"{name} can't be read: {text[:80]!r}") from None
    return found


def parse_limit(text: str | None) -> float | None:
    """A time limit in seconds; None for none."""
    try:
        if text is None or 0 < float(text) < float("inf"):
            return None if text is None else float(text)
    except ValueError:
        pass
    raise InputError(f"limit must be a number of seconds above 0, got {text!r}")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _classifiers(values: Parameters) -> list[tuple[str, str]]:
    """Files of weights, each with the data set that its classes are of. A network of some classes only (`num_known`) is none of them."""
    if "dataset" not in values or "num_known" in values:
        return []
    first, second = values["dataset"], values.get("next_dataset") or values["dataset"]
    paths = [values.get("teacher_checkpoint"), *values.get("teacher_checkpoints", [])]
    found = [(path, first) for path in paths] + [(values.get("next_teacher_checkpoint"), second)]
    return [(path, dataset) for path, dataset in found if path]


def _check_outside(values: Parameters) -> None:
    """What the values point to: data files, weights, folders. Paths become absolute, because the kernel works in another folder."""
    for name in ("teacher_checkpoint", "next_teacher_checkpoint", "prior_folder", "reuse_path"):
        if values.get(name):
            values[name] = _absolute(values[name])
    if values.get("teacher_checkpoints"):
        values["teacher_checkpoints"] = [_absolute(path) for path in values["teacher_checkpoints"]]
    for name in ("dataset", "next_dataset"):
        if values.get(name):
            check_files(values[name])
    for path, dataset in _classifiers(values):
        check_classes(Path(path), dataset_spec(dataset).num_classes, dataset)
    for name in ("reuse_path", "teacher_checkpoint"):
        if values.get(name) and not Path(values[name]).is_file():
            raise InputError(f"{name} {Path(values[name]).name} does not exist or is no file")
    if values.get("prior_folder") and not Path(values["prior_folder"]).is_dir():
        raise InputError(f"prior_folder {Path(values['prior_folder']).name} is not a folder")
