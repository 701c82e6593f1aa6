"""kdnb.reports.compare: equal, within spread or different, by a stated rule; a run executed again from its own record."""

import json
import os

import pytest
from scipy.stats import t

from kdnb.errors import InputError
from kdnb.intervals import prediction_interval
from kdnb.reports.compare import compare_runs
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan
from kdnb.runner.verify import _outputs_in, verify
from kdnb.storage.files import write_record
from kdnb.storage.naming import run_folder
from tests.material import FIXTURES


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    return tmp_path / "outputs"


def make(seed, top1, table="", versions=None, lr=0.1, **metrics):
    folder = run_folder("quick", "demo", {"seed": seed, "lr": lr})
    folder.mkdir(parents=True)
    write_record(
        folder / "run.json",
        {
            "parameters": {"seed": seed, "lr": lr},
            "versions": versions or {"torch": "2"},
            "started": f"at {seed}",
            "teacher_hash": "abc",
        },
    )
    rows = "".join(f"demo,{name},{value},{seed}\n" for name, value in ({"top1": top1} | metrics).items())
    (folder / "results.csv").write_text("notebook,metric,value,seed\n" + rows)
    if table:
        (folder / "tables").mkdir()
        (folder / "tables" / "history.csv").write_text(table)
    return folder


# --- the rule ------------------------------------------------------------------------------------------------------------------


def test_the_prediction_interval_is_the_textbook_one():
    values = [0.90, 0.92, 0.94, 0.96]  # mean 0.93, s = sqrt(0.002 / 3)
    half = t.ppf(0.975, 3) * (0.002 / 3) ** 0.5 * (1 + 1 / 4) ** 0.5
    assert prediction_interval(values) == pytest.approx((0.93 - half, 0.93 + half))


def test_equal_numbers_are_equal_whatever_the_clock_said():
    a = make(0, 0.9, "epoch,loss,seconds\n1,0.5,3.1\nseconds,7,0\n", training_seconds=3, peak_memory_mib=100)
    b = make(0, 0.9, "epoch,loss,seconds\n1,0.5,9.9\nseconds,8,0\n", lr=0.2, training_seconds=4, peak_memory_mib=200)
    found = compare_runs(a, b)
    assert found.verdict == "equal" and found.results == [] and found.reproduced and found.same_platform
    assert [one[:2] for one in found.made_with] == [("parameters", "lr")] and "lr: 0.1 | 0.2" in found.describe()


def test_a_metric_inside_the_interval_of_the_others_seeds_is_within_spread():
    runs = [make(seed, value) for seed, value in enumerate((0.90, 0.92, 0.94))]
    low, high = prediction_interval([0.90, 0.92, 0.94])
    inside, outside = make(0, high - 1e-6, lr=0.2), make(0, high + 1e-6, lr=0.3)
    assert compare_runs(runs[0], inside).verdict == "within spread"
    assert compare_runs(runs[0], outside).verdict == "different"
    assert "95 % for all metrics together" in compare_runs(runs[0], inside).describe()


def test_with_more_metrics_each_has_a_wider_interval_so_that_all_together_keep_95_percent():
    runs = [make(seed, value, loss=value / 2) for seed, value in enumerate((0.90, 0.92, 0.94))]
    (_, alone), (_, high) = (prediction_interval([0.90, 0.92, 0.94], probability) for probability in (0.95, 0.975))
    between, outside = (make(0, value, lr=value, loss=0.46) for value in ((alone + high) / 2, high + 1e-6))
    assert alone < high and compare_runs(runs[0], between).verdict == "within spread"
    assert compare_runs(runs[0], outside).verdict == "different"


def test_a_run_is_not_judged_by_an_interval_that_it_made_itself():
    runs = [make(seed, value) for seed, value in enumerate((0.9, 0.9001, 0.5))]
    assert compare_runs(runs[0], runs[2]).verdict == "different, spread unknown"  # two others are too few
    make(3, 0.9002)
    assert compare_runs(runs[0], runs[2]).verdict == "different"


def test_a_missing_metric_is_different_and_an_equal_metric_with_another_table_within_spread():
    runs = [make(seed, 0.9, "x\n1\n") for seed in range(3)]
    assert compare_runs(runs[0], make(0, 0.9, "x\n1\n", lr=0.2, loss=1.0)).verdict == "different"
    found = compare_runs(runs[0], make(0, 0.9, "x\n2\n", lr=0.3))
    assert found.verdict == "within spread" and found.results == [("tables", "history.csv", "line 2: 1", "line 2: 2")]
    found = compare_runs(runs[0], make(0, 0.9, lr=0.4))
    assert found.results == [("tables", "history.csv", "2 lines", None)] and "not there" in found.describe()


def test_on_another_platform_within_spread_counts_as_reproduced():
    runs = [make(seed, value) for seed, value in enumerate((0.90, 0.92, 0.94))]
    assert not compare_runs(runs[0], make(0, 0.91, lr=0.2)).reproduced
    found = compare_runs(runs[0], make(0, 0.91, lr=0.3, versions={"torch": "3"}))
    assert not found.same_platform and found.reproduced and ("versions", "torch", "2", "3") in found.made_with


def test_damaged_or_unfinished_runs_are_not_compared():
    a, b = make(0, 0.9), make(1, 0.9)
    (b / "run.json").write_bytes((b / "run.json").read_bytes()[:-20])
    with pytest.raises(InputError, match="demo/seed1.* can't be compared: run.json is damaged"):
        compare_runs(a, b)
    (b / "run.json").unlink()
    (b / "results.csv").unlink()
    with pytest.raises(InputError, match="it has no results"):
        compare_runs(a, b)


# --- verify --------------------------------------------------------------------------------------------------------------------


def test_a_run_that_comes_out_again_is_verified_and_leaves_nothing_behind(outputs):
    outcome = run_notebook(plan("measures", overrides={"seed": 3}))
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    again, found = verify(outcome.folder)
    assert again.status == "ok" and found.verdict == "equal" and found.reproduced and found.made_with == []
    assert {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()} == before
    assert not again.folder.exists() and os.environ["KDNB_OUTPUTS"] == str(outputs) and "KDNB_CACHE" not in os.environ


def test_a_run_that_comes_out_otherwise_is_not_verified():
    outcome = run_notebook(plan("measures", overrides={"epochs": 3}))
    again, found = verify(outcome.folder)
    assert found.verdict == "different, spread unknown" and not found.reproduced and found.results[0].name == "top1"


def test_a_run_that_fails_the_second_time_has_no_comparison():
    run_notebook(plan("measures", overrides={"epochs": 4}))  # raises in a folder that it has not seen
    outcome = run_notebook(plan("measures", overrides={"epochs": 4}))
    assert outcome.status == "ok"
    again, found = verify(outcome.folder)
    assert again.status == "failed" and found is None


def test_the_new_execution_makes_its_own_teachers_unless_told_to_reuse(monkeypatch, tmp_path):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    with _outputs_in(tmp_path / "fresh", reuse=False):
        assert os.environ["KDNB_CACHE"] == str(tmp_path / "fresh" / "cache")
    with _outputs_in(tmp_path / "fresh", reuse=True):
        assert os.environ["KDNB_CACHE"] == str(tmp_path / "cache")
    assert os.environ["KDNB_CACHE"] == str(tmp_path / "cache")


def test_the_execution_record_names_the_code_of_the_notebook():
    folder = run_notebook(plan("measures")).folder
    assert len(json.loads((folder / "execution.json").read_text())["notebook_hash"]) == 16
