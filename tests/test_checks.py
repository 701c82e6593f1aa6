"""kdnb.checks: named statements, judged where they were stated for."""

import csv

import pytest

from kdnb.checks import Checks
from kdnb.errors import UnexpectedResult
from kdnb.runs import start_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    return start_run("demo", {"seed": 0, "threads": 1})


def test_statements_that_hold_print_lines_without_numbers(run, capsys):
    checks = Checks(run)
    capsys.readouterr()
    assert checks.expect("the student is right", True, 0.987654321) is True
    assert checks.expect("the teacher too", lambda: 1) is True
    checks.done()
    assert capsys.readouterr().out == "ok   the student is right\nok   the teacher too\n"


def test_a_statement_that_does_not_hold_is_named_with_its_number(run, capsys):
    checks = Checks(run)
    checks.expect("above 0.9", 0.5 > 0.9, 0.5)
    checks.expect("finite", True)
    with pytest.raises(UnexpectedResult, match=r"^1 of 2 checks do not hold: above 0.9 \(found 0.5\)$"):
        checks.done()
    assert "FAIL above 0.9 (found 0.5)\nok   finite\n" in capsys.readouterr().out


def test_a_number_that_is_none_does_not_hold(run):
    checks = Checks(run)
    checks.expect("above 0.9", float("nan") > 0.9, float("nan"))
    with pytest.raises(UnexpectedResult, match="found nan"):
        checks.done()


def test_a_statement_of_another_setting_is_not_judged_and_says_why(run):
    checks = Checks(run)
    p = {"dataset": "cifar100", "epochs": 3}
    elsewhere = checks.where(p, dataset="digits", epochs=(20, 40))
    assert elsewhere.expect("at least 0.95", lambda: 1 / 0, None) is None
    assert checks.where(p, dataset=("cifar10", "cifar100")).expect("above chance", True) is True
    checks.done()
    assert checks.lines() == [
        "--   at least 0.95: not judged here, because dataset is cifar100 and epochs is 3",
        "ok   above chance",
    ]


def test_the_run_keeps_every_check_as_a_table_also_where_one_does_not_hold(run):
    checks = Checks(run)
    checks.expect("a", False, 0.25)
    checks.where({"seed": 0}, seed=1).expect("b", True)
    with pytest.raises(UnexpectedResult):
        checks.done()
    rows = list(csv.reader((run.folder / "tables" / "checks.csv").open()))
    assert rows == [
        ["check", "outcome", "value", "because"],
        ["a", "unexpected", "0.25", ""],
        ["b", "not judged", "", "seed is 0"],
    ]


def test_a_statement_twice_an_unknown_parameter_and_no_statement_are_refused(run):
    checks = Checks(run)
    with pytest.raises(ValueError, match="no check was made"):
        checks.done()
    checks.expect("a", True)
    with pytest.raises(ValueError, match="'a' is there twice"):
        checks.expect("a", True)
    with pytest.raises(ValueError, match="no parameter datset here; there are seed"):
        checks.where({"seed": 0}, datset="digits")
