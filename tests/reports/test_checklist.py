"""kdnb.reports.checklist: what a report says a run was made with and what its numbers rest on."""

import pytest

from kdnb.reports.checklist import checklist, hashes, provenance
from kdnb.reports.page import write_run_page
from kdnb.reports.run_files import read_run
from kdnb.storage.files import write_record


def make(folder, seed=0, commit="abc", results="top1,0.9", table="", status="ok", **parameters):
    folder = folder / "quick" / "01_teacher" / f"seed{seed}-{len(parameters)}"
    (folder / "tables").mkdir(parents=True)
    record = {
        "notebook": "01_teacher",
        "profile": "quick",
        "parameters": {"seed": seed} | parameters,
        "seeds": {"torch": seed},
        "threads": 1,
        "versions": {"torch": "2"},
        "hardware": {"cores": 2},
        "commit": commit,
        "started": "now",
        "data_hashes": {"private": "aa", "test": "bb"},
        "teacher_hash": "cc",
        "files": {},
    }
    write_record(folder / "run.json", record)
    write_record(
        folder / "execution.json", {"status": status, "seconds": 3.5, "peak_memory_mib": 700, "notebook_hash": "dd"}
    )
    lines = "".join(f"01_teacher,{line},{seed}\n" for line in results.split())
    (folder / "results.csv").write_text("notebook,metric,value,seed\n" + lines)
    if table:
        (folder / "tables" / "students.csv").write_text(table)
    return read_run(folder)


def met(run, others=()):
    return {item.statement.split()[-1]: item.met for item in checklist(run, others)}


def test_everything_that_was_recorded_has_its_section(tmp_path):
    found = provenance(make(tmp_path, epochs=5))
    assert list(found) == ["parameters", "seeds", "hashes", "versions", "hardware", "execution"]
    assert found["hashes"] == {"data_hashes.private": "aa", "data_hashes.test": "bb", "teacher_hash": "cc"}
    assert found["execution"] == {
        "profile": "quick",
        "threads": 1,
        "commit": "abc",
        "started": "now",
        "seconds": 3.5,
        "peak_memory_mib": 700,
        "status": "ok",
        "notebook_hash": "dd",
    }


def test_a_good_run_of_three_seeds_meets_every_line(tmp_path):
    runs = [
        make(tmp_path, seed, results="top1,0.9 best_top1,0.91", table="setting,top1\nstudent alone,0.8\nplain KD,0.9\n")
        for seed in range(3)
    ]
    assert set(met(runs[0], runs).values()) == {True}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"status": "killed"}, "well"),
        ({"commit": "abc+"}, "commit"),
        ({"commit": "unknown"}, "commit"),
        ({"results": "top1,nan"}, "number"),
        ({"results": "best_top1,0.9"}, "it"),
        ({"table": "setting,top1\nplain KD,0.9\n"}, "shown"),
    ],
)
def test_each_line_can_fail(tmp_path, change, word):
    assert met(make(tmp_path, **change))[word] is False


def test_seeds_of_other_experiments_do_not_count_and_seeds_within_a_notebook_do(tmp_path):
    runs = [make(tmp_path, seed) for seed in range(2)] + [make(tmp_path, 2, epochs=3)]
    assert met(runs[0], runs)["seeds"] is False
    assert met(make(tmp_path, 7, seeds=[0, 1, 2]))["seeds"] is True


def test_what_does_not_apply_is_said_to(tmp_path):
    found = met(make(tmp_path, results=""))
    assert found["number"] is None and found["shown"] is None and found["it"] is None


def test_a_changed_file_is_on_the_list(tmp_path):
    run = make(tmp_path)
    write_record(run.folder / "run.json", run.record | {"files": {"results.csv": "0" * 64}})
    (item,) = [item for item in checklist(read_run(run.folder), []) if item.statement.startswith("every file")]
    assert item.met is False and "results.csv is missing, damaged or was edited" in item.detail


def test_a_run_that_noted_nothing_has_no_hashes(tmp_path):
    run = make(tmp_path)
    write_record(run.folder / "run.json", {"parameters": {"seed": 0}})
    assert hashes(read_run(run.folder)) == {}


def test_the_page_of_a_run_lies_in_its_folder_and_escapes_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    hostile = "<img src=x onerror=alert(1)>"
    run = make(tmp_path, **{"model": hostile, hostile: 1}, commit=hostile, table=f"setting\n{hostile}\n")
    page = write_run_page(run.folder)
    text = page.read_text()
    assert page == run.folder / "report.html" and "<img src=x" not in text and text.count("&lt;img src=x") >= 3
    assert "n = 1" in text and "inv verify quick/01_teacher/seed0-2" in text and "data_hashes.private" in text
