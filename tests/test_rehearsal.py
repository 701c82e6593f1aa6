"""kdnb.rehearsal: loops are cut, and what the whole would cost is reckoned through loops in loops."""

import json

import pytest

from kdnb import rehearsal
from kdnb.progress import progress
from kdnb.rehearsal import cut


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A rehearsal whose seconds pass only when told; returns (pass_time, lines reported so far)."""
    now = [0.0]
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("KDNB_REHEARSE", str(tmp_path / "costs.jsonl"))

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    def lines() -> list[dict]:
        path = tmp_path / "costs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return pass_time, lines


def test_outside_of_a_rehearsal_a_loop_is_what_it_was_given():
    items = [1, 2, 3]
    assert cut(items, "step") is items and not rehearsal.rehearsing()


def test_a_rehearsal_takes_the_first_and_the_last_step(clock):
    assert list(cut(range(10), "step")) == [0, 9]
    assert list(cut(range(1), "step")) == [0] and list(cut(range(0), "step")) == []
    assert list(cut(range(10), "step", most=1)) == [0]
    assert list(cut(iter("abc"), "step", 3)) == ["a", "b"]
    assert list(progress(range(3, 10), "epochs", 10, 3)) == [3, 9]
    assert list(progress(range(4), "shards", whole=True)) == [0, 1, 2, 3]


def test_loops_in_loops_cost_what_all_of_their_steps_would(clock):
    pass_time, lines = clock
    for _ in cut(range(100), "epoch"):
        for _ in cut(range(50), "step"):
            pass_time(2.0)
        pass_time(7.0)  # an evaluation
    [line] = lines()
    assert (line["name"], line["items"]) == ("epoch", 100)
    assert line["each"][0] == 50 * 2 + 7 and line["reckoned"][0] == 100 * 107
    assert line["measured"][0] == 2 * (2 * 2 + 7)


def test_work_that_few_steps_do_is_reckoned_by_its_share(clock):
    pass_time, lines = clock
    for step in cut(range(1000), "step"):
        pass_time(1.0)
        if step == 999:
            with rehearsal.seldom(1 / 100):
                for _ in cut(range(10), "batch", most=1):
                    pass_time(5.0)
    [line] = lines()
    assert line["reckoned"][0] == pytest.approx(1000 * (1 + 10 * 5 / 100)) and line["measured"][0] == 2 + 5


def test_bytes_are_reckoned_like_seconds(clock):
    _, lines = clock
    for _ in cut(range(10), "round"):
        rehearsal.wrote(1000)
    assert lines()[0]["reckoned"][1] == 10_000


def test_a_first_step_that_takes_long_has_no_second(clock):
    pass_time, lines = clock
    done = []
    for index in cut(range(10), "step"):
        done.append(index)
        pass_time(30.0)
    assert done == [0] and lines()[0]["reckoned"][0] == 300


def test_a_loop_that_is_left_early_leaves_no_trace_in_what_follows(clock):
    pass_time, lines = clock
    for _ in cut(range(10), "broken off"):
        pass_time(1.0)
        break
    for _ in cut(range(10), "whole"):
        pass_time(1.0)
    assert [line["name"] for line in lines()][-1] == "whole" and lines()[-1]["reckoned"][0] == 10
