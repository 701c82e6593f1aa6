"""Many executions: one after another and at once, none of them fails and none leaves a process or a folder behind."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan
from tests.material import FIXTURES

CONSECUTIVE, AT_ONCE, ROUNDS = 200, 8, 20
RUN = """import sys
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan

sys.exit(run_notebook(plan('fine', overrides={'seed': int(sys.argv[1])})).exit_code)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def leftovers() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("kdnb-????????")}


def test_executions_one_after_another_all_end_well(project, record_property):
    before = leftovers()
    for seed in range(CONSECUTIVE):
        outcome = run_notebook(plan("fine", overrides={"seed": seed}))
        assert outcome.status == "ok", (seed, outcome.describe())
    records = [json.loads(path.read_text()) for path in project.glob("outputs/quick/fine/*/execution.json")]
    assert sorted(record["parameters"]["seed"] for record in records) == list(range(CONSECUTIVE))
    assert len(leftovers() - before) <= 2  # other runners on this machine may be at work
    record_property("executions one after another", CONSECUTIVE)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_executions_at_once_all_end_well(project, number, record_property):
    seeds = range(AT_ONCE * number, AT_ONCE * (number + 1))
    runners = [
        subprocess.Popen([sys.executable, "-c", RUN, str(seed)], stderr=subprocess.PIPE, env=os.environ)
        for seed in seeds
    ]
    errors = [runner.communicate()[1].decode() for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * AT_ONCE, "\n".join(errors)
    for seed in seeds:
        assert (
            json.loads((plan("fine", overrides={"seed": seed}).folder / "execution.json").read_text())["status"] == "ok"
        )
    record_property("executions eight at once", AT_ONCE)
