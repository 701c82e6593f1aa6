"""Every field of a record (a NamedTuple or dataclass) is named under `Attributes:` in its docstring."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdnb"


def undescribed(source: str) -> list[str]:
    """`Class.field` of each public field that is not described."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        made_by = ast.unparse(ast.List([*node.bases, *node.decorator_list]))
        if "NamedTuple" not in made_by and "dataclass" not in made_by:
            continue
        described = (ast.get_docstring(node) or "").partition("Attributes:")[2]
        fields = [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]
        found += [f"{node.name}.{name}" for name in fields if name[0] != "_" and name not in described]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_field_is_described(path):
    assert undescribed(path.read_text()) == []


def test_a_field_that_is_left_out_is_seen():
    source = '@dataclass(frozen=True)\nclass Point:\n    """A place.\n\n    Attributes:\n        x: metres.\n    """\n\n    x: int\n'
    assert undescribed(source) == [] and undescribed(source + "    y: int\n") == ["Point.y"]
    assert undescribed('class Pair(NamedTuple):\n    """first: one."""\n\n    first: int\n') == ["Pair.first"]
