"""Every long-running routine, killed by a real signal at every kind of place and started again, ends with the bits of an undisturbed one."""

import signal
from functools import cache, partial

import pytest

from tests.slow.children import needs_forkserver, run_child
from tests.slow.choice import in_this_run, marked
from tests.slow.routines import ROUTINES, work

STOPS = ("start", "middle of an epoch", "epoch edge", "last step", "in a save")
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
CASES = [(name, stop, number) for name in ROUTINES for stop in STOPS for number in SIGNALS]
ROTATING = 6

pytestmark = [
    pytest.mark.timeout(3600),
    needs_forkserver,
]


child = partial(run_child, ("tests.slow.routines",), work)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(hash, ticks, saves) of a routine that nothing stops; each is run once, with a folder, and without one for its hash."""

    @cache
    def run(name: str) -> tuple[str, int, int]:
        folder = tmp_path_factory.mktemp("undisturbed")
        assert child(name, None, 0, 0, False, str(folder / "free")) == 0
        assert child(name, str(folder / "kept"), 0, 0, False, str(folder / "answer")) == 0
        (free, *_), (kept, ticks, saves) = ((folder / answer).read_text().split() for answer in ("free", "answer"))
        assert free == kept, "saving changes the result"
        return free, int(ticks), int(saves)

    return run


def place(stop: str, ticks: int, saves: int, epochs: int) -> int:
    """The tick, or the save, at which a routine dies."""
    epoch = ticks // epochs
    edge = epoch + 1 if epochs > 1 else ticks // 3
    return {
        "start": 1,
        "middle of an epoch": min(edge + (epoch + 1) // 2, ticks),
        "epoch edge": edge,
        "last step": ticks,
        "in a save": (saves + 1) // 2,
    }[stop]


@pytest.mark.parametrize(
    ("name", "stop", "number"),
    marked(CASES, [f"{name}-{stop}-{number.name}" for name, stop, number in CASES], in_this_run(len(CASES), ROTATING)),
)
def test_a_killed_routine_resumes_bit_for_bit(name, stop, number, undisturbed, tmp_path, record_property):
    expected, ticks, saves = undisturbed(name)
    at, in_save, folder, answer = (
        place(stop, ticks, saves, ROUTINES[name].epochs),
        stop == "in a save",
        str(tmp_path / "kept"),
        tmp_path / "answer",
    )
    assert child(name, folder, at, number, in_save, str(answer)) == -number
    assert not answer.exists()
    assert child(name, folder, 0, 0, False, str(answer)) == 0
    found, again, _ = answer.read_text().split()
    assert found == expected
    if stop in ("middle of an epoch", "epoch edge", "last step"):
        assert int(again) < ticks, "it started again from nothing"
    record_property("resume cases", 1)


def test_there_are_at_least_a_hundred_cases_and_a_few_of_them_in_every_run():
    assert len(CASES) >= 100 and len(in_this_run(len(CASES), ROTATING)) == ROTATING
