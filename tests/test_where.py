"""docs/where.md: every part of the systems that kdnb contains is where the table says."""

import re

import pytest

from kdnb.storage.paths import PROJECT

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (PROJECT / "docs" / "where.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| system")
]


@pytest.mark.parametrize(("system", "part", "file", "name"), ROWS, ids=lambda cell: cell)
def test_the_part_is_where_the_table_says(system, part, file, name):
    assert re.search(rf"\b{re.escape(name)}\b", (PROJECT / file).read_text(encoding="utf-8")), f"no {name} in {file}"


def test_no_system_is_missing():
    assert {row[0] for row in ROWS} == {
        "Fast-AD",
        "SDD-LSKD fusion",
        "AEAHL-RG",
        "reading list",
        "own models and data",
        "data-free field",
    }
