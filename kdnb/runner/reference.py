"""The tables of the documentation, written from the tables in the code: methods, models, parameters.

A page holds them between two marks, `<!-- methods -->` and `<!-- end of methods -->`; `inv docs` fills them, and a test says when they
are stale.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdnb.methods import METHODS
from kdnb.models import MODELS
from kdnb.parameters import PARAMETERS
from kdnb.runner.cell import read_cell
from kdnb.runner.plan import notebook_names, notebooks_folder
from kdnb.storage.paths import PROJECT

PAGES = ("README.md", "docs/methods.md", "docs/models.md", "docs/parameters.md")  # that hold a table


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _class_of(name: str) -> Any:
    entry = METHODS[name]
    return getattr(importlib.import_module(f"kdnb.methods.{entry.module}"), entry.cls)


def family(name: str) -> str:
    """What a method reads: labels alone, the teacher's logits, or its features."""
    if not METHODS[name].needs_teacher:
        return "no teacher"
    return "features" if _class_of(name).needs_features else "logits"


def methods_table(link: str = "../") -> str:
    """Every method: family, what it does, its hyper-parameters with their published values, source."""
    rows = []
    for name, entry in METHODS.items():
        hyper = inspect.signature(_class_of(name)).parameters.values()
        values = ", ".join(f"{one.name} {_value(one.default)}" for one in hyper)
        rows.append(
            [f"[`{name}`]({link}kdnb/methods/{entry.module}.py)", family(name), entry.summary, values, entry.source]
        )
    order = {"logits": 0, "features": 1, "no teacher": 2}
    rows.sort(key=lambda row: order[row[1]])
    return _markdown(["method", "reads", "idea", "hyper-parameters", "source"], rows)


def _value(value) -> str:
    return (
        ",".join(map(_value, value))
        if isinstance(value, tuple | list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def methods_list() -> str:
    """The methods by family, each a link: what the README shows."""
    found: dict[str, list[str]] = {}
    for name, entry in METHODS.items():
        found.setdefault(family(name), []).append(f"[`{name}`](kdnb/methods/{entry.module}.py)")
    rows = [[kind, ", ".join(found[kind])] for kind in ("logits", "features", "no teacher")]
    return _markdown(["reads", "methods"], rows)


def models_table() -> str:
    """Every architecture with its parameters for ten classes of 3-channel images."""
    import torch

    from kdnb.models import build

    rows = []
    for name, spec in MODELS.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build(name, 10).parameters())
        rows.append([f"`{name}`", spec.description, f"{count:,}"])
    return _markdown(["model", "what it is", "parameters (10 classes)"], rows)


def parameters_table() -> str:
    """Every parameter: type, what is allowed, meaning, and the notebooks that have it."""
    cells = {name: read_cell(notebooks_folder() / f"{name}.ipynb") for name in notebook_names()}
    rows = []
    for name, one in PARAMETERS.items():
        having = ", ".join(notebook[:2] for notebook, cell in cells.items() if name in cell)
        allowed = one.allowed if len(one.allowed) <= 160 else one.allowed[:157] + "..."
        rows.append([f"`{name}`", one.annotation, allowed, one.help, having])
    return _markdown(["parameter", "type", "allowed", "meaning", "notebooks"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "methods by family": methods_list,
    "models": models_table,
    "parameters": parameters_table,
}


def filled(page: str) -> str:
    """The text of a page with its tables as the code has them now."""
    made: dict[str, str] = {}

    def table(match: re.Match) -> str:
        name = match[1]
        made.setdefault(name, TABLES[name]())
        return f"<!-- {name} -->\n{made[name]}\n<!-- end of {name} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- end of \1 -->", table, page, flags=re.DOTALL)


def write_pages(root: Path = PROJECT) -> list[str]:
    """Fill the tables of all pages; the names of those that changed."""
    changed = []
    for name in PAGES:
        before = (root / name).read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            (root / name).write_text(after, encoding="utf-8")
            changed.append(name)
    return changed
