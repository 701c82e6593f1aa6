import base64
import csv
import json
import re

import nbformat
import pytest

from kdnb.errors import InputError
from kdnb.reports.checklist import checklist
from kdnb.reports.page import build_report, differences, group_runs, report
from kdnb.reports.run_files import find_runs, read_run
from kdnb.storage.files import write_record
from tests.material import PIXEL, make_run


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    return tmp_path


def test_several_seeds_are_summed_up_as_mean_and_sample_deviation(outputs):
    runs = [make_run(outputs, seed, value, epochs=2) for seed, value in ((0, 0.90), (1, 0.92), (2, 0.94))]
    (row,) = group_runs(map(read_run, runs))
    assert row.mean == pytest.approx(0.92) and row.std == pytest.approx(0.02)
    assert row.text == "92.0 ± 2.0 %" and [seed for seed, _ in row.values] == ["0", "1", "2"] and row.variant == ""


def test_one_seed_has_no_deviation(outputs):
    (row,) = group_runs([read_run(make_run(outputs, 0, 0.987654))])
    assert row.std is None and row.text == "98.8 %"


def test_experiments_that_differ_are_kept_apart_and_named_by_the_difference(outputs):
    runs = [make_run(outputs, seed, 0.5, method=method, epochs=2) for method in ("kd", "dkd") for seed in (0, 1)]
    rows = group_runs(map(read_run, runs))
    assert [(row.variant, len(row.values)) for row in rows] == [("method=kd", 2), ("method=dkd", 2)]


def test_the_csv_holds_every_single_value(outputs):
    runs = [make_run(outputs, 0, 0.9), make_run(outputs, 1, 0.8), make_run(outputs, 0, 0.7, notebook="02_synthesis")]
    build_report(runs, outputs / "demo", "demo")
    rows = list(csv.reader((outputs / "demo" / "results.csv").open()))
    assert rows == [
        ["notebook", "metric", "value", "seed"],
        ["01_teacher", "top1", "0.9", "0"],
        ["01_teacher", "top1", "0.8", "1"],
        ["02_synthesis", "top1", "0.7", "0"],
    ]


def test_the_page_shows_numbers_figures_versions_and_links_that_exist(outputs):
    page = build_report([make_run(outputs, 0, 0.9, epochs=5)], outputs / "demo", "demo")
    html = page.read_text()
    assert (
        "90.0 %" in html and "epochs" in html and "<td>torch</td><td>2.0</td>" in html and "peak memory 700 MiB" in html
    )
    assert base64.b64encode(PIXEL).decode() in html
    (linked,) = (page.parent / "notebooks").glob("*.html")
    assert f'href="notebooks/{linked.name}"' in html and "the end" in linked.read_text()


def test_the_page_loads_nothing_from_elsewhere(outputs):
    html = build_report([make_run(outputs, 0, 0.9)], outputs / "demo", "demo").read_text()
    assert not re.search(r"https?:|<link|src=(?!.data:)|@import|url\(", html) and html.count("<script>") == 1


def test_markup_from_a_run_stays_text(outputs):
    hostile = "<script>alert(1)</script>"
    folder = make_run(outputs, 0, 0.9, model=hostile.replace("/", ""))
    write_record(folder / "execution.json", {"status": "failed", "message": hostile})
    (folder / "results.csv").write_text(f"notebook,metric,value,seed\n{hostile},{hostile},0.5,{hostile}\n")
    html = build_report([folder], outputs / "demo", hostile).read_text()
    assert html.count("<script") == 1 and "alert(1)</script>" not in html and html.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize(
    "name, content",
    [
        ("run.json", "{"),
        ("execution.json", ""),
        ("results.csv", "a,b\n1,2\n"),
        ("results.csv", "notebook,metric,value,seed\nx,y,high,0\n"),
        ("notebook.ipynb", "{"),
        ("figures/curves.png", ""),
    ],
)
def test_damaged_files_of_a_run_do_not_stop_the_report(outputs, name, content):
    folder = make_run(outputs, 0, 0.9)
    (folder / name).write_text(content)
    assert build_report([folder], outputs / "demo", "demo").is_file()


def test_a_failed_run_is_shown_as_such(outputs):
    folder = make_run(outputs, 0, 0.9)
    write_record(folder / "execution.json", {"status": "killed", "message": "the kernel was killed by SIGKILL"})
    assert (
        "killed</span>: the kernel was killed by SIGKILL"
        in build_report([folder], outputs / "demo", "demo").read_text()
    )


def test_a_profile_is_reported_with_all_its_runs(outputs):
    folders = [make_run(outputs, 1, 0.8, notebook="02_b"), make_run(outputs, 0, 0.9, notebook="01_a")]
    make_run(outputs, 0, 0.1, profile="standard")
    page = report("quick")
    assert find_runs("quick") == folders[::-1]  # the report's own folder is no run
    assert page == outputs / "quick" / "report" / "index.html"
    assert len(list(csv.reader((page.parent / "results.csv").open()))) == 3


def test_a_profile_without_runs_is_refused(outputs):
    with pytest.raises(InputError, match="no runs of profile quick found"):
        report("quick")


def test_values_survive_a_json_round_trip(outputs):
    run = read_run(make_run(outputs, 0, 0.9, epochs=5))
    assert json.loads(json.dumps(run.parameters)) == {"seed": 0, "epochs": 5}


def test_differences_to_a_baseline_are_paired_by_seed(outputs):
    values = {
        "kd": (0.90, 0.91, 0.93),
        "dkd": (0.92, 0.92, 0.96, 0.1),
    }  # differences 0.02, 0.01, 0.03; the fourth seed has no partner
    runs = [
        make_run(outputs, seed, value, method=method)
        for method, row in values.items()
        for seed, value in enumerate(row)
    ]
    (row,) = differences(group_runs(map(read_run, runs)), "method=kd")
    assert (row.variant, row.metric, row.n) == ("method=dkd", "top1", 3)
    assert row.mean == pytest.approx(0.02) and row.high - row.mean == pytest.approx(
        4.302653 * 0.01 / 3**0.5
    )  # t of two degrees of freedom
    html = build_report(runs, outputs / "demo", "demo", "method=kd").read_text()
    assert "+0.02" in html and "-0.004841 to +0.04484" in html


def test_one_shared_seed_has_a_difference_but_no_interval(outputs):
    runs = [make_run(outputs, 0, value, method=method) for method, value in (("kd", 0.9), ("dkd", 0.95))]
    assert "needs two seeds" in build_report(runs, outputs / "demo", "demo", "method=kd").read_text()


def test_an_unknown_baseline_is_refused_with_the_nearest(outputs):
    runs = [make_run(outputs, 0, 0.9, method=method) for method in ("kd", "dkd")]
    with pytest.raises(InputError, match="unknown baseline 'method=kdd'; did you mean 'method="):
        build_report(runs, outputs / "demo", "demo", "method=kdd")


def test_the_page_says_which_file_was_changed(outputs):
    folder = make_run(outputs, 0, 0.9)
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("abc", "abd"))
    html = build_report([folder], outputs / "demo", "demo").read_text()
    assert "run.json is damaged or was edited" in html


def test_a_report_is_not_written_outside_of_the_outputs(outputs):
    with pytest.raises(InputError, match="name of a profile"):
        report("../elsewhere")


def test_a_run_by_hand_is_badged_and_counts_with_no_other(outputs):
    clean = make_run(outputs, 0, 0.9, epochs=2)
    hand = make_run(outputs, 1, 0.1, epochs=2)
    hand = hand.rename(hand.with_name(f"{hand.name}-by-hand"))
    rows = group_runs(map(read_run, (clean, hand)))
    assert [(row.variant, row.mean) for row in rows] == [("", 0.9), ("by hand", 0.1)]
    page = build_report([clean, hand], outputs / "demo", "demo")
    assert page.read_text().count('class="badge">by hand') == 1 and "perhaps edited" in page.read_text()
    lines = (page.parent / "results.csv").read_text().splitlines()
    assert lines[1:] == ["01_teacher,top1,0.9,0", "01_teacher (by hand),top1,0.1,1"]
    (seeds,) = (item for item in checklist(read_run(clean), [read_run(hand)]) if "seeds" in item.statement)
    assert seeds.detail.startswith("n = 1")
    assert checklist(read_run(hand), [])[0].met is False


def test_the_answer_and_the_picture_come_before_everything_else(outputs):
    folder = make_run(outputs, 0, 0.9, "03_fast_ad")
    rows = "".join(f"03_fast_ad,{name},{value},0\n" for name, value in (("student_top1", 0.94), ("teacher_top1", 0.99)))
    (folder / "results.csv").write_text("notebook,metric,value,seed\n" + rows)
    record = json.loads((folder / "run.json").read_text())
    write_record(folder / "run.json", record | {"captions": {"curves": "students: accuracy by round"}})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 03 · When does it pay?")])
    nbformat.write(notebook, folder / "notebook.ipynb")
    html = build_report([folder], outputs / "demo", "demo").read_text()
    order = [
        "Top-1 accuracy: student 94.0 %, teacher 99.0 %.",
        "students: accuracy by round",
        'class="bars"',
        "<table",
        "<h2>03 · When",
    ]
    assert [html.find(text) for text in order] == sorted(html.find(text) for text in order) and order[0] in html
    assert html.count(base64.b64encode(PIXEL).decode()) == 1  # the picture on top is not shown twice
    assert 'class="limit" style="width: 99.00%"' in html and '<abbr title="student_top1">' in html
