"""Parameters and experiments as text for the terminal; nothing is run or imported."""

import shutil
import textwrap

from kdnb.errors import check_name
from kdnb.parameters import PARAMETERS
from kdnb.runner.cell import read_cell
from kdnb.runner.plan import (
    experiments,
    find_experiment,
    notebook_names,
    notebooks_folder,
    param_files,
    profiles,
    resolve_experiment,
)


def list_experiments(profile: str | None = None) -> str:
    """All experiments, by profile and notebook; of one profile if it is given."""
    names = {name: experiments(name) for name in ([profile] if profile else profiles())}
    return "\n".join(line for name, there in names.items() for line in (f"{name}:", *(f"    {one}" for one in there)))


def describe_notebook(notebook: str) -> str:
    """The table of a notebook's parameters: name, type, default, what it is for, what is allowed."""
    cell = read_cell(notebooks_folder() / f"{check_name('notebook', notebook, notebook_names())}.ipynb")
    return _table(
        ("name", "type", "default", "meaning; allowed"),
        *(
            (name, line.type, repr(line.default), f"{line.help}; {PARAMETERS[name].allowed}")
            for name, line in cell.items()
        ),
    )


def describe_experiment(experiment: str, profile: str) -> str:
    """The resolved values of an experiment, each with the file it comes from."""
    name = find_experiment(experiment, profile)[1]
    source = {key: file for file, values in param_files(name, profile) for key in values}
    return _table(
        ("name", "from", "value"),
        *(
            (key, source.get(key, "the notebook"), repr(value))
            for key, value in resolve_experiment(name, profile).items()
        ),
    )


def _table(*rows: tuple[str, ...]) -> str:
    """Columns as wide as their longest cell, the last one wrapped at the terminal's edge."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    edge, indent = shutil.get_terminal_size((120, 24)).columns, sum(widths) + 2 * len(widths)
    lines = []
    for *cells, last in rows:
        start = "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        lines.append(
            textwrap.fill(
                last,
                max(edge, indent + 40),
                initial_indent=start,
                subsequent_indent=" " * indent,
                break_long_words=False,
            )
        )
    return "\n".join(lines)
