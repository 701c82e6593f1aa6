"""Notebooks as they are kept in the repository: with the outputs of their default parameters and nothing else."""

import re
import sys
import tempfile
from pathlib import Path

import nbformat

from kdnb.errors import InputError
from kdnb.reports.outcome import Outcome
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan
from kdnb.storage.files import atomic_write
from kdnb.storage.paths import PROJECT

MAX_BYTES = 600_000  # of a stored notebook
_KEPT = {"tags", "jupyter"}  # cell metadata that means something to a reader
_REUSED = re.compile(r"^reused: .*\n?", re.MULTILINE)
_CHANGED = re.compile(r"commit [0-9a-f]{10}\+")  # as `kdnb.runs.start_run` says it
_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|usr|var|opt|mnt|private)/\w|\b[A-Z]:\\\\?\w")


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without injected cells, run-time metadata and times; execution counts are 1, 2, ... in order."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.cells = [cell for cell in notebook.cells if not _is_injected(cell)]
    count = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key in _KEPT})
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell.execution_count = count if cell.source.strip() else None
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
            elif output.output_type == "stream":  # what was reused depends on the day
                output.text = _REUSED.sub("", output.text)
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def _is_injected(cell: nbformat.NotebookNode) -> bool:
    return bool({"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", [])))


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Reasons not to keep a notebook: error outputs, paths of a machine, code that is in no commit, size."""
    found = []
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"code cell {number} holds an error")
        if any(_has_path(text) for output in cell.outputs for text in _texts(output)):
            found.append(f"code cell {number} shows a path of this machine")
        if any(_CHANGED.search(text) for output in cell.outputs for text in _texts(output)):
            found.append(
                "kdnb differed from its commit; commit the code first, so that the outputs can say what made them"
            )
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        found.append(f"it has {size} bytes, {MAX_BYTES} are allowed; make figures smaller")
    return found


def _texts(output: nbformat.NotebookNode) -> list[str]:
    """The readable parts of an output; encoded images are no text."""
    data = output.get("data", {})
    return [str(output.get("text", ""))] + [str(value) for kind, value in data.items() if not kind.startswith("image/")]


def _has_path(text: str) -> bool:
    here = {str(PROJECT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}
    return bool(_PATH.search(text)) or any(re.search(rf"(?<![\w.]){re.escape(place)}\b", text) for place in here)


def record_notebook(name: str) -> Outcome:
    """Run one notebook with its defaults and keep the outputs in notebooks/NAME.ipynb.

    Raises:
        InputError: the quick parameter file differs from the defaults, the notebook was edited meanwhile, or `problems` finds any.
    """
    planned = plan(name, "quick")
    if planned.changed:
        raise InputError(
            f"params/quick/{planned.notebook}.yaml and the notebook's defaults differ in {', '.join(planned.changed)}"
        )
    before = planned.path.read_bytes()
    outcome = run_notebook(planned)
    if outcome.status != "ok":
        return outcome
    kept = clean(nbformat.read(outcome.folder / "notebook.ipynb", as_version=4))
    if found := problems(kept):
        raise InputError(f"{planned.notebook} is not stored: {'; '.join(found)}")
    if planned.path.read_bytes() != before:
        raise InputError(f"{planned.notebook} was edited while it ran and is not stored; run again")
    nbformat.validate(kept)
    atomic_write(planned.path, (nbformat.writes(kept, indent=1) + "\n").encode())
    return outcome
