"""A notebook's parameters cell, read as text: names, types, defaults and help, without running or importing anything."""

import ast
import io
import json
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError

_MAX_NOTEBOOK = 20_000_000  # bytes; a notebook of ours is under 600 KB


class Cell(NamedTuple):
    """One line of a parameters cell: `name: type = default  # help`.

    Attributes:
        type: the annotation, as text.
        default: its value.
        help: the comment.
    """

    type: str
    default: Any
    help: str


def read_cell(path: Path) -> dict[str, Cell]:
    """Names, types, defaults and help of a notebook's cell tagged `parameters`, without running or importing anything.

    Raises:
        InputError: no such notebook, no or several parameters cells, or a line that is not one annotated literal with a comment.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_NOTEBOOK:
            raise InputError(f"{path.name} is larger than {_MAX_NOTEBOOK} bytes; it is no notebook of this project")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        sources = ["".join(cell["source"]) for cell in tagged]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} can't be read as a notebook: {error}") from error
    if len(sources) != 1:
        raise InputError(f"{path.name} needs one cell tagged 'parameters', it has {len(sources)}")
    return _parse(sources[0], path.name)


def _parse(source: str, notebook: str) -> dict[str, Cell]:
    form = "one annotated literal a line with a comment, as in `epochs: int = 20  # passes over the data`"
    try:
        tree = ast.parse(source)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"the parameters cell of {notebook} is no Python: {error}") from error
    found: dict[str, Cell] = {}
    for node in tree.body:
        try:
            if not isinstance(node, ast.AnnAssign) or node.value is None or node.lineno != node.end_lineno:
                raise ValueError("form")
            if not isinstance(node.target, ast.Name):
                raise ValueError("form")
            found[node.target.id] = Cell(
                ast.unparse(node.annotation), ast.literal_eval(node.value), comments[node.lineno]
            )
        except (ValueError, KeyError, AttributeError):
            raise InputError(f"line {node.lineno} of the parameters cell of {notebook} must be {form}") from None
    return found
