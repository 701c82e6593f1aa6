"""A live notebook: bad input is one sentence there, and a misspelt parameter is refused.

A misspelt name in the parameters cell would leave the old value in force, unseen. IPython keeps the source of every
cell that ran in `In`. The last cell made of annotated literals is the parameters cell in force; cells of bare literals
after it, as somebody types them in between, are looked at as well, for names that are nearly a parameter's.
"""

import ast
import difflib
import html
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdnb.errors import InputError

_NEARLY = 0.85  # likeness from which a name is taken for a misspelt one: epoch and epochs have 0.91, seed and need 0.75


def one_sentence_errors() -> None:
    """Let IPython show an `InputError` by its sentence alone; outside IPython nothing changes.

    The traceback would say where kdnb noticed, not what to do: that is what the sentence says.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((InputError,), _in_one_sentence)


def _in_one_sentence(
    shell: Any, kind: type, error: BaseException, traceback: Any, tb_offset: int | None = None
) -> list:
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)
    return lines


def show_card(title: str, facts: Mapping[str, Any], folder: Path) -> None:
    """Under the set-up cell of a notebook that a person opened: what this run is, with a link to its folder."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    where = html.escape(os.path.relpath(folder))
    link = f"<tr><th style='text-align:left'>run folder</th><td style='text-align:left'><a href='{where}'>{where}</a></td></tr>"
    from IPython.display import HTML, display

    display(HTML(f"<table><caption><b>{html.escape(title)}</b></caption>{rows}{link}</table>"))


def check_names(namespace: Mapping[str, Any], table: Iterable[str]) -> None:
    """Refuse a name that is assigned as a parameter and is none.

    Args:
        namespace: a notebook's `globals()`; without `In` (plain Python) its annotated names are looked at.
        table: the names of all parameters.
    Raises:
        InputError: the name, and the nearest parameter.
    """
    table = list(table)
    cells = [_Cell(source, table) for source in namespace.get("In") or [] if isinstance(source, str)]
    last = max((number for number, cell in enumerate(cells) if cell.is_parameters), default=None)
    if last is None:
        plain = isinstance(namespace.get("__annotations__"), dict)
        _refuse([name for name in namespace["__annotations__"] if name not in table] if plain else [], table)
        return
    _refuse([name for name in cells[last].names if name not in table], table)
    for cell in cells[last + 1 :]:
        if cell.is_literals:
            _refuse([name for name in cell.names if name not in table and _nearest(name, table, _NEARLY)], table)


class _Cell:
    """What a cell assigns at its top level."""

    def __init__(self, source: str, table: Iterable[str]):
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError):  # magics, and cells that never ran
            body = []
        lines = [node for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
        annotated = [node for node in lines if isinstance(node, ast.AnnAssign)]
        self.names = [target.id for node in lines for target in _targets(node) if isinstance(target, ast.Name)]
        self.is_literals = bool(body) and len(lines) == len(body) and all(_is_literal(node.value) for node in lines)
        known = any(isinstance(node.target, ast.Name) and node.target.id in table for node in annotated)
        self.is_parameters = known or (self.is_literals and bool(annotated))


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _is_literal(node: ast.expr | None) -> bool:
    if node is None:
        return False
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def _nearest(name: str, table: Iterable[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name, table, n=1, cutoff=cutoff)), "")


def _refuse(names: list[str], table: Iterable[str]) -> None:
    for name in names:
        near = _nearest(name, table, 0.5)
        hint = f"; did you mean {near!r}? Correct" if near else "; correct"
        raise InputError(f"there is no parameter {name!r}{hint} the name and run the parameters cell again")
