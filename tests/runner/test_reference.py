"""kdnb.runner.reference: the tables of the documentation say what the tables in the code say."""

import pytest

from kdnb.methods import METHODS
from kdnb.models import MODELS
from kdnb.parameters import PARAMETERS
from kdnb.runner import reference
from kdnb.storage.paths import PROJECT


@pytest.mark.parametrize("page", reference.PAGES)
def test_no_table_is_stale(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    assert "<!-- end of " in text
    assert reference.filled(text) == text, f"{page} has a stale table; `uv run inv docs` writes it anew"


def test_every_method_model_and_parameter_has_its_row():
    for table, names in (("methods", METHODS), ("models", MODELS), ("parameters", PARAMETERS)):
        text = reference.TABLES[table]()
        assert all(f"`{name}`" in text for name in names) and text.count("\n") == len(names) + 1
    assert all(f"`{name}`" in reference.methods_list() for name in METHODS)


def test_only_what_stands_between_the_marks_is_written():
    text = "before\n<!-- models -->\nold\n<!-- end of models -->\nafter"
    found = reference.filled(text)
    assert found.startswith("before\n<!-- models -->\n| model |") and found.endswith("<!-- end of models -->\nafter")
    assert "old" not in found and reference.filled(found) == found


def test_a_method_is_filed_by_what_it_reads():
    assert [reference.family(name) for name in ("kd", "fitnet", "lsr")] == ["logits", "features", "no teacher"]
