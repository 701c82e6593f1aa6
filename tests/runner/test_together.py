"""kdnb.runner.together: what several processes make ahead is what the notebook asks the cache for."""

import json

import pytest

from kdnb.errors import InputError
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan
from kdnb.runner.together import NOTEBOOKS, make_ahead
from kdnb.storage.paths import cache_root
from kdnb.studies.ahead import AHEAD


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))


def made() -> dict[str, str]:
    """Every artifact with what it was made from."""
    found = {path.parent.name: json.loads(path.read_text())["kind"] for path in cache_root().glob("*/*/made_from.json")}
    assert all((cache_root() / kind / key / "state.safetensors").is_file() for key, kind in found.items())
    return found


SHORT = {
    "01_teacher": ({"epochs": 1}, ["classifier"] * 2),
    "04_distillation": ({"epochs": 1, "seeds": [0], "ablations": False, "lr": 0.01}, ["classifier"] + ["student"] * 4),
}


@pytest.mark.parametrize("name", ["01_teacher", pytest.param("04_distillation", marks=pytest.mark.slow)])
def test_the_notebook_finds_all_it_trains(name):
    overrides, kinds = SHORT[name]
    planned = plan(name, overrides=overrides)
    assert make_ahead(planned, 2) == ""
    ahead = made()
    assert sorted(ahead.values()) == kinds
    outcome = run_notebook(planned)
    assert outcome.status in ("ok", "unexpected") and made() == ahead, outcome.describe()
    assert f"{kinds.count('classifier')} classifier" in outcome.reused


def test_what_is_not_divided_is_refused():
    assert set(NOTEBOOKS) == set(AHEAD)
    with pytest.raises(InputError, match="05_reusable_generator runs in one process"):
        make_ahead(plan("05_reusable_generator"), 2)
    with pytest.raises(InputError, match="a batch of 2 images can't be divided among 3 processes"):
        make_ahead(plan("01_teacher", overrides={"batch_size": 2}), 3)
