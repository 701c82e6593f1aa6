"""A headless run before it starts: which notebook, which parameters, are the files there? No kernel, no torch, well under a second."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdnb.data import DATASETS, class_count
from kdnb.data.check import check_files
from kdnb.errors import InputError, check_name
from kdnb.generators.prior_folder import check_prior_folder
from kdnb.methods import METHODS
from kdnb.models.names import parse_foreign
from kdnb.parameters import GROUPS, PARAMETERS, Parameters, resolve
from kdnb.runner.cell import Cell, read_cell
from kdnb.runner.notes import notes_on
from kdnb.storage.files import read_record
from kdnb.storage.header import check_classes
from kdnb.storage.naming import BY_HAND, run_folder, run_name
from kdnb.storage.paths import PROJECT, inception_weights

_TAG = "tag:yaml.org,2002:"
_MAX_YAML = 65_536  # bytes of a parameter file
_OUTSIDE = (  # parameters that name files, or say how a file must fit
    *(
        "dataset",
        "next_dataset",
        "teacher",
        "next_teacher",
        "teachers",
        "teacher_checkpoint",
        "next_teacher_checkpoint",
    ),
    *("teacher_checkpoints", "prior_folder", "reuse_path"),
)
# a date that is none, a number of 5000 digits or brackets without end raise nearly anything in the YAML reader
MALFORMED = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def notebooks_folder() -> Path:
    """`KDNB_NOTEBOOKS`, else `notebooks/` of the checkout."""
    return Path(os.environ.get("KDNB_NOTEBOOKS") or PROJECT / "notebooks").absolute()


def params_folder() -> Path:
    """`KDNB_PARAMS`, else `params/` of the checkout."""
    return Path(os.environ.get("KDNB_PARAMS") or PROJECT / "params").absolute()


def notebook_names() -> list[str]:
    """All notebooks, in reading order."""
    return [path.stem for path in sorted(notebooks_folder().glob("*.ipynb"))]


def profiles() -> list[str]:
    """Folders of parameter files but `sweeps`; quick is there without one."""
    found = sorted(path.name for path in params_folder().glob("*/") if path.name != "sweeps")
    return list(dict.fromkeys(["quick", *found]))


def experiments(profile: str) -> list[str]:
    """What a profile runs: `NOTEBOOK` or `NOTEBOOK/VARIANT` for each of its parameter files but base files, `_NAME.yaml`.

    For quick also every notebook without a file.
    """
    folder = params_folder() / check_name("profile", profile, profiles())
    files = [file for glob in ("*.yaml", "*/*.yaml") for file in folder.glob(glob) if file.is_file()]
    names = {_relative(file.with_suffix(""), folder) for file in files if not file.name.startswith("_")}
    return sorted(names | set(notebook_names())) if profile == "quick" else sorted(names)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        notebook, path: its name and its file.
        profile: name of a folder of parameter files.
        parameters: every parameter of the notebook, resolved.
        changed: those that differ from the notebook's own defaults; they are injected.
        folder: where the run will be kept.
        notes: sentences on settings that are allowed and hardly meant.
    """

    notebook: str
    path: Path
    profile: str
    parameters: Parameters
    changed: dict[str, Any]
    folder: Path
    notes: tuple[str, ...] = ()


def plan(
    experiment: str, profile: str = "quick", overrides: Mapping[str, Any] | None = None, files: bool = True
) -> Plan:
    """Check a run without starting anything.

    Args:
        experiment: `01_teacher`, also as a path to the notebook; `01_teacher/VARIANT` uses params/PROFILE/01_teacher/VARIANT.yaml.
        profile: folder under params/; "quick" falls back to the notebook's defaults.
        overrides: values over those of the file.
        files: look for the data, weights and folders that the values name; False: they are on another machine.
    Raises:
        InputError: an unknown notebook, profile, experiment or parameter, a value out of range, missing or damaged data, a teacher
            for another number of classes.
    """
    return plan_many(experiment, profile, [overrides or {}], files)[0]


def plan_many(experiment: str, profile: str, overrides: Iterable[Mapping[str, Any]], files: bool = True) -> list[Plan]:
    """Plans of one experiment with different values over its file, which is read once; otherwise as `plan`."""
    base, seen, plans = _base(experiment, profile), set(), []
    own = base.resolve({})
    path = notebooks_folder() / f"{base.notebook}.ipynb"
    for given in overrides:
        values = base.resolve(given)
        _make_absolute(values)
        outside = tuple(str(values.get(name)) for name in _OUTSIDE)
        if files and outside not in seen:
            _check_files(values)
        seen.add(outside)
        folder, notes = run_folder(profile, base.notebook, values), tuple(notes_on(values, own, given))
        plans.append(Plan(base.notebook, path, profile, values, base.changed(values), folder, notes))
    return plans


def resolve_experiment(
    experiment: str, profile: str = "quick", overrides: Mapping[str, Any] | None = None
) -> Parameters:
    """All parameters of an experiment, checked among themselves; `plan` also looks for the files they name."""
    return _base(experiment, profile).resolve(overrides or {})


class _Base(NamedTuple):
    """An experiment before any override.

    Attributes:
        notebook: its name.
        cell: the parameters cell of the notebook.
        defaults: the values in that cell.
        values: those of the parameter files.
    """

    notebook: str
    cell: Mapping[str, Cell]
    defaults: Parameters
    values: Mapping[str, Any]

    def resolve(self, overrides: Mapping[str, Any]) -> Parameters:
        given = {**self.values, **overrides}
        for name, value in given.items():
            _check_own_name(name, value, self.notebook, self.cell)
            if value is None and not self.cell[name].type.startswith("Optional["):
                raise InputError(f"{name} must be {PARAMETERS[name].allowed}, got None")
        return resolve(self.defaults | given)

    def changed(self, values: Parameters) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value != self.defaults[name]}


def _base(experiment: str, profile: str) -> _Base:
    notebook, experiment = find_experiment(experiment, profile)
    cell = read_cell(notebooks_folder() / f"{notebook}.ipynb")
    defaults = resolve({name: line.default for name, line in cell.items()})
    return _Base(notebook, cell, defaults, read_params(experiment, profile))


def _check_own_name(name: str, value: Any, notebook: str, cell: Mapping[str, Cell]) -> None:
    """Refuse a name that is no parameter of this notebook; one that is a setting of a group there gets told how to write it."""
    for text in GROUPS if name not in cell else ():
        if text in cell and name in GROUPS[text]:
            raise InputError(f'{name} is a setting of {text} in {notebook}: write {text}="{name}:{value}"')
    check_name(f"parameter of {notebook}", name, cell)


def plan_again(folder: Path) -> Plan:
    """The plan of a run that exists, from its own record: the same notebook and parameters, so the same folder.

    Args:
        folder: a run folder, as `kdnb.reports.run_files.find_run` gives it.
    Raises:
        InputError: no whole record, a record of another run, a notebook whose parameters are others by now, or what `plan` refuses.
    """
    if folder.name.endswith(BY_HAND):
        raise InputError(
            f"{folder.name} was made by hand, and its cells are not recorded; run the notebook with `inv run`"
        )
    values = resolve(_recorded_parameters(folder))
    profile, base = folder.parent.parent.name, folder.parent.name
    path = notebooks_folder() / f"{check_name('notebook', base, notebook_names())}.ipynb"
    cell = read_cell(path)
    if other := sorted(set(cell) ^ set(values)):
        raise InputError(
            f"{base} has other parameters now than when this run was made ({', '.join(other)}); start a new run"
        )
    _make_absolute(values)
    _check_files(values)
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


def find_experiment(given: str, profile: str) -> tuple[str, str]:
    """Notebook and full name of an experiment of a profile: `04_distillation/kd`, `01_teacher`, or a path to a notebook.

    Raises:
        InputError: an unknown notebook, profile or experiment, with the nearest name or the profiles that have it; an old name,
            `04_distillation.kd`, with the new one.
    """
    notebook, name = _split_name(given)
    there = experiments(profile)
    own = [other for other in there if other.partition("/")[0] == notebook]
    method = name.partition("/")[2]
    if name not in there and method in METHODS and "method" in read_cell(notebooks_folder() / f"{notebook}.ipynb"):
        call = f"{notebook} with --profile digits -p method={method}"
        raise InputError(f"{given} is now {call}; `inv sweep digits_methods` runs all methods")
    if name not in there and ("/" in name or not own):
        if elsewhere := [other for other in profiles() if name in experiments(other)]:
            raise InputError(f"profile {profile} has no {name}; these have it: {', '.join(elsewhere)}")
    check_name(f"experiment of profile {profile}", name, own or there)
    if Path(given.removesuffix(".ipynb")).name.startswith(f"{notebook}."):
        raise InputError(f"{given} is now {name}")
    return notebook, name


def _split_name(given: str) -> tuple[str, str]:
    """Notebook and full name; the folder and the ending of a path to a notebook are dropped, an old name gets its new form."""
    names = notebook_names()
    path = Path(_spelt_out(given.removesuffix(".ipynb"), names))
    if path.parent.name in names:
        return path.parent.name, f"{path.parent.name}/{path.name}"
    notebook, dot, variant = path.name.partition(".")
    if notebook not in names and len(path.parts) == 2 and not os.path.isdir(path.parts[0]):
        notebook = path.parts[0]  # misspelt, before a variant
    check_name("notebook", notebook, names)
    return notebook, f"{notebook}/{variant.replace('.', '-')}" if dot else notebook


def _spelt_out(given: str, names: list[str]) -> str:
    """A beginning that only one notebook's name has stands for it: `01` for `01_teacher`, `04/kd` for `04_distillation/kd`."""
    first, slash, rest = given.partition("/")
    found = [name for name in names if name.startswith(first)]
    return f"{found[0]}{slash}{rest}" if first and first not in names and len(found) == 1 else given


def read_params(experiment: str, profile: str) -> dict[str, Any]:
    """The values of an experiment's parameter file over those of the files it extends."""
    return {name: value for _, values in param_files(experiment, profile) for name, value in values.items()}


def param_files(experiment: str, profile: str) -> list[tuple[str, dict[str, Any]]]:
    """An experiment's own parameter file last, before it those it extends: the path in params/, and the values given there.

    Raises:
        InputError: a file that is too large, no flat mapping, gives a name twice or extends none of the files in params/ or itself.
    """
    file = f"{profile}/{find_experiment(experiment, profile)[1]}.yaml"
    if profile == "quick" and not (params_folder() / file).is_file():
        return []
    found: dict[str, dict[str, Any]] = {}
    while file not in found:
        values = found[file] = _read_file(file)
        if "extends" not in values:
            return [*reversed(found.items())]
        file = _base_of(file, values.pop("extends"))
    raise InputError(f"params/{file} extends itself: {' -> '.join([*found, file])}")


def _base_of(file: str, base: Any) -> str:
    """The file of params/ that another names after `extends`."""
    if not isinstance(base, str):
        raise InputError(f"extends in params/{file} must be the path of a file in params/, got a {type(base).__name__}")
    there = [
        Path(_relative(path, params_folder())) for path in sorted(params_folder().rglob("*.yaml")) if path.is_file()
    ]
    near = [path for path in there if path.parent == Path(base).parent] or [p for p in there if p.name.startswith("_")]
    if Path(base) not in there:
        check_name(f"file of params/ that params/{file} extends:", base, [path.as_posix() for path in near])
    return base


def _read_file(file: str) -> dict[str, Any]:
    path, where = params_folder() / file, f"params/{file}"
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
    except MALFORMED as error:
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
        except MALFORMED:
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


def _check_teachers(values: Parameters) -> None:
    """Files that are there and, where file and data tell, for as many classes; networks that are not ours are compared when loaded.

    A network of some classes only (`num_known`) has another number of them.
    """
    first, second = values.get("dataset"), values.get("next_dataset") or values.get("dataset")
    several = zip(values.get("teachers", []), values.get("teacher_checkpoints", []), strict=False)
    given = [
        ("teacher_checkpoint", values.get("teacher"), values.get("teacher_checkpoint"), first),
        ("next_teacher_checkpoint", values.get("next_teacher"), values.get("next_teacher_checkpoint"), second),
        *(("teacher_checkpoints", model, path, first) for model, path in several),
    ]
    for name, model, path, dataset in given:
        if path and not Path(path).is_file():
            raise InputError(f"{name} {Path(path).name} does not exist or is no file")
        count = class_count(dataset) if path and dataset and "num_known" not in values else None
        if count is not None and dataset and not parse_foreign(model or ""):
            check_classes(Path(path), count, dataset)


def _make_absolute(values: Parameters) -> None:
    """Paths become absolute, because the kernel works in another folder."""
    for name in ("teacher_checkpoint", "next_teacher_checkpoint", "prior_folder", "reuse_path"):
        if values.get(name):
            values[name] = _absolute(values[name])
    if values.get("teacher_checkpoints"):
        values["teacher_checkpoints"] = [_absolute(path) for path in values["teacher_checkpoints"]]


def _check_files(values: Parameters) -> None:
    """What the values point to: data files, weights, folders."""
    for name in ("dataset", "next_dataset"):
        if values.get(name):
            check_files(values[name])
    _check_teachers(values)
    if values.get("reuse_path") and not Path(values["reuse_path"]).is_file():
        raise InputError(f"reuse_path {Path(values['reuse_path']).name} does not exist or is no file")
    if values.get("inception_fid"):
        inception_weights()
    if values.get("prior_folder"):
        _check_prior(Path(values["prior_folder"]), values.get("dataset", ""))


def _check_prior(path: Path, dataset: str) -> None:
    """A file of weights, whose content is compared when it is read, or a folder of diffusers."""
    if not path.exists():
        raise InputError(f"prior_folder {path.name} is not a folder, and no file of weights either")
    if path.is_dir():
        check_prior_folder(path, DATASETS[dataset].channels if dataset in DATASETS else None)
