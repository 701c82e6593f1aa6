"""What every stored notebook keeps to, so that it reads well on the web, runs headless and can be compared."""

import re
from pathlib import Path

import nbformat
import pytest

from kdnb.parameters import PARAMETERS, resolve
from kdnb.runner.cell import read_cell
from kdnb.runner.keep import MAX_BYTES, clean, problems
from kdnb.runner.plan import experiments, param_files, plan, profiles, read_params, resolve_experiment

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request, monkeypatch):
    monkeypatch.delenv("KDNB_NOTEBOOKS", raising=False)
    monkeypatch.delenv("KDNB_PARAMS", raising=False)
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_names_give_the_reading_order(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)


def test_it_is_a_valid_notebook_of_python3(path, notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}


def test_it_is_stored_clean_and_in_order(path, notebook):
    assert path.stat().st_size <= MAX_BYTES
    assert problems(notebook) == []
    assert clean(notebook) == notebook, "store it with `inv record`"


def test_every_code_cell_was_run(path, notebook):
    assert all(cell.execution_count for cell in code(notebook) if cell.source.strip()), "store it with `inv record`"


def test_some_cell_is_compared_and_every_compared_cell_shows_something(path, notebook):
    compared = tagged(notebook, "nbval-check-output")
    assert compared and all(cell.outputs for cell in compared)


def test_its_parameters_are_annotated_explained_and_of_the_table(path):
    cell = read_cell(path)  # refuses what is not annotated or has no comment
    assert cell and all(line.help for line in cell.values())
    for name, line in cell.items():
        kind = PARAMETERS[name].annotation
        assert line.type == kind or (PARAMETERS[name].optional and line.type == f"Optional[{kind}]"), name
    resolve({name: line.default for name, line in cell.items()})


def test_papermill_sees_every_parameter(path):
    from papermill.inspection import inspect_notebook

    assert set(inspect_notebook(str(path))) == set(read_cell(path))


def test_the_quick_parameter_file_repeats_the_defaults(path):
    assert read_params(path.stem, "quick") == {name: line.default for name, line in read_cell(path).items()}


def test_every_parameter_file_fits_its_notebook(path):
    for profile in profiles():
        for name in experiments(profile):
            if name.partition("/")[0] == path.stem:
                resolve_experiment(name, profile)


def test_it_can_be_planned(path):
    assert plan(path.stem).notebook == path.stem


def test_it_defines_nothing_long_and_imports_no_notebook(path, notebook):
    for cell in code(notebook):
        assert not re.search(r"^class |^%run ", cell.source, re.M)
        assert len(cell.source.splitlines()) <= (40 if "parameters" in cell.metadata.get("tags", []) else 30)


def test_it_reports_its_own_name(path, notebook):
    assert any(f'start_run("{path.stem}"' in cell.source for cell in code(notebook))


def test_every_parameter_file_belongs_to_a_notebook():
    names = {path.stem for path in NOTEBOOKS}
    for profile in profiles():
        assert {name.partition("/")[0] for name in experiments(profile)} <= names, profile


def test_every_parameter_file_is_an_experiment_or_the_base_of_one():
    files = {path.relative_to(ROOT / "params").as_posix() for path in (ROOT / "params").rglob("*.yaml")}
    files = {name for name in files if not name.startswith("sweeps/")}  # tests/runner/test_sweep_files.py reads those
    used = {file for profile in profiles() for name in experiments(profile) for file, _ in param_files(name, profile)}
    assert files == used
