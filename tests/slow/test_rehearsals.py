"""Every experiment under params/ rehearses: its real networks, sizes and batches, noise where its data are missing.

All of them in the slow part; a few in every ordinary run, others with every commit.
"""

import os

import pytest

from kdnb.runner.plan import experiments, profiles
from kdnb.runner.rehearse import rehearse
from tests.slow.choice import in_this_run, marked

EXPERIMENTS = [(profile, name) for profile in profiles() for name in experiments(profile)]
LIGHT = [index for index, case in enumerate(EXPERIMENTS) if case[0] in ("quick", "digits")]  # seconds, not minutes
ROTATING = {LIGHT[place] for place in in_this_run(len(LIGHT), 2)}


@pytest.fixture(scope="module", autouse=True)
def shared_outputs(tmp_path_factory):
    """One cache for all: what several experiments need is made once, as in real runs."""
    before = os.environ.get("KDNB_OUTPUTS")
    os.environ["KDNB_OUTPUTS"] = str(tmp_path_factory.mktemp("rehearsals"))
    yield
    os.environ["KDNB_OUTPUTS"] = before


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("profile", "name"), marked(EXPERIMENTS, [f"{p}/{n}" for p, n in EXPERIMENTS], ROTATING))
def test_an_experiment_rehearses(profile, name, record_property):
    found = rehearse(name, profile, fresh=False)
    assert found.outcome.status == "ok", found.describe()
    assert found.loops and found.seconds >= 0 and found.bytes > 0
    record_property("experiments rehearsed", 1)
