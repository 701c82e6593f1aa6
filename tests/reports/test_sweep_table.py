"""kdnb.reports.sweep_table: seeds are averaged by experiment, paired with the baseline's, and never across recipes."""

import math

import pytest

from kdnb.errors import InputError
from kdnb.reports.run_files import read_run
from kdnb.reports.sweep_table import cells, rows_to_show, sweep_table, to_csv
from kdnb.storage.files import write_record


def made(tmp_path, value: float, code: str = "c", kdnb: str = "1", hashes: str = "h", **parameters):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    record = {"notebook": "n", "parameters": parameters, "versions": {"kdnb": kdnb}, "data_hashes": hashes}
    write_record(folder / "run.json", record)
    write_record(folder / "execution.json", {"status": "ok", "notebook_hash": code})
    (folder / "results.csv").write_text(f"notebook,metric,value,seed\nn,top1,{value},{parameters.get('seed', 0)}\n")
    return read_run(folder)


def test_means_deviations_and_paired_differences_by_hand(tmp_path):
    runs = [made(tmp_path, value, seed=seed, method="kd") for seed, value in enumerate((0.1, 0.2, 0.3))]
    runs += [made(tmp_path, value, seed=seed, method="dkd") for seed, value in ((0, 0.3), (1, 0.4), (5, 0.8))]
    base, other = sweep_table(runs, {"method": "kd"})
    assert cells(base) == ["n", "method=kd", "top1", "3", "0.2", "0.1", "", "", "", ""]
    assert other.summary.mean == pytest.approx(0.5) and other.difference.n == 2  # seed 5 has no partner
    assert other.difference.mean == pytest.approx(0.2) and other.difference.low == pytest.approx(0.2)
    assert rows_to_show([base, other])[2][4:] == ["50.0 ± 26.5 %", "+20.0 points (+20.0 to +20.0, 2)"]
    assert to_csv([base, other]).decode().splitlines()[0].startswith("notebook,experiment,metric,n,mean,sd,difference")


def test_the_baseline_shares_everything_else(tmp_path):
    settings = [("kd", 1, 0.1), ("dkd", 1, 0.2), ("kd", 2, 0.3), ("dkd", 2, 0.7), ("dkd", 3, 0.9)]
    runs = [made(tmp_path, value, seed=0, method=method, scale=scale) for method, scale, value in settings]
    found = [line.difference and round(line.difference.mean, 6) for line in sweep_table(runs, {"method": "kd"})]
    assert found == [None, 0.1, None, 0.4, None]
    assert (
        math.isnan(sweep_table(runs, {"method": "kd"})[1].difference.low) and cells(sweep_table(runs, {})[1])[6] == ""
    )


def test_runs_of_one_student_seed_each_are_repetitions(tmp_path):
    runs = [made(tmp_path, value, seed=0, seeds=[seed], method="kd") for seed, value in ((0, 0.1), (4, 0.3))]
    runs.append(made(tmp_path, 0.9, seed=0, seeds=[0, 1], method="kd"))
    one, both = sweep_table(runs, {})
    assert one.summary.values == [("0/0", 0.1), ("0/4", 0.3)] and len(both.summary.values) == 1


@pytest.mark.parametrize("other", [{"code": "d"}, {"kdnb": "2"}, {"hashes": "i"}])
def test_other_code_or_other_data_are_not_averaged(tmp_path, other):
    runs = [made(tmp_path, 0.1, seed=0), made(tmp_path, 0.2, seed=1, **other)]
    with pytest.raises(InputError, match="0 and 1 of n can't be averaged: they differ in"):
        sweep_table(runs, {})
    assert len(sweep_table([made(tmp_path, 0.1, seed=0, x=1), made(tmp_path, 0.2, seed=1, x=2, **other)], {})) == 2
