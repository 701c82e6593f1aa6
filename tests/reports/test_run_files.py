"""kdnb.reports.run_files: which runs there are; no argument leads out of the outputs."""

import os

import pytest

from kdnb.errors import InputError
from kdnb.reports.run_files import find_run, find_runs, read_run
from kdnb.runner.plan import plan_again
from kdnb.runs import start_run
from kdnb.storage.files import write_record
from kdnb.storage.naming import run_folder
from tests.material import FIXTURES


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    root = tmp_path / "outputs"
    monkeypatch.setenv("KDNB_OUTPUTS", str(root))
    monkeypatch.chdir(tmp_path)
    for name in ("quick/fine/seed0-a", "quick/fine/seed1-b", "standard/fine/seed0-a", "standard/other/seed2-c"):
        (root / name).mkdir(parents=True)
        write_record(root / name / "execution.json", {"status": "ok", "parameters": {"seed": 0}})
    return root


def test_a_run_is_found_by_its_name_or_by_its_path_from_here_or_from_the_outputs(outputs):
    folder = (outputs / "standard/other/seed2-c").resolve()
    for given in (
        "seed2-c",
        "standard/other/seed2-c",
        "outputs/standard/other/seed2-c",
        str(folder),
        "quick/../standard/other/seed2-c/",
    ):
        assert find_run(given) == folder


def test_from_inside_the_folder_a_name_alone_will_do(outputs, monkeypatch):
    monkeypatch.chdir(outputs / "quick" / "fine")
    assert find_run("seed1-b") == (outputs / "quick/fine/seed1-b").resolve()


def test_a_name_that_several_runs_have_is_refused_with_all_of_them(outputs):
    with pytest.raises(
        InputError, match="several runs are called seed0-a; say which: quick/fine/seed0-a, standard/fine/seed0-a"
    ):
        find_run("seed0-a")


@pytest.mark.parametrize("given", ["seed2", "seed2-c", "other/seed2", "oth/seed2-c", "standard/other/se"])
def test_the_beginning_of_a_name_will_do_with_its_notebook_or_without(outputs, given):
    assert find_run(given) == (outputs / "standard/other/seed2-c").resolve()


def test_a_beginning_that_several_runs_share_is_refused_unless_it_is_the_name_of_one(outputs):
    with pytest.raises(InputError, match="several runs are called fine/seed; say which: quick/fine/seed0-a, quick/"):
        find_run("fine/seed")
    (outputs / "quick/fine/seed1-bb").mkdir()
    write_record(outputs / "quick/fine/seed1-bb/execution.json", {"status": "ok"})
    assert find_run("seed1-b").name == "seed1-b"


def test_a_copy_elsewhere_is_found_only_to_be_read(outputs):
    copy = outputs.parent / "copy"
    copy.mkdir()
    write_record(copy / "run.json", {"notebook": "fine", "parameters": {"seed": 0}})
    assert find_run(str(copy), outside=True) == copy.resolve() and read_run(copy).notebook == "fine"
    with pytest.raises(InputError, match="is no run"):
        find_run(str(copy))


def test_an_unknown_name_gets_the_nearest_one(outputs):
    with pytest.raises(InputError, match="unknown run 'seed2-d'; did you mean 'seed2-c'"):
        find_run("seed2-d")


@pytest.mark.parametrize(
    "given",
    [
        "..",
        ".",
        "../..",
        "../secret/nb/run",
        "quick/fine",
        "quick",
        "/",
        "/etc",
        "outputs/../secret/nb/run",
        "link/fine/run",
        "quick/fine/link",
        "nowhere/x/y",
        "",
        "a\0b",
        "quick/fine/seed0-a/tables",
    ],
)
def test_no_argument_leads_out_of_the_outputs(outputs, given):
    secret = outputs.parent / "secret" / "nb" / "run"
    secret.mkdir(parents=True)
    write_record(secret / "run.json", {})
    (outputs / "quick/fine/seed0-a/tables").mkdir()
    os.symlink(outputs.parent / "secret", outputs / "link")
    os.symlink(secret, outputs / "quick" / "fine" / "link")
    with pytest.raises(InputError):
        find_run(given)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "x\0", "a b", "x\\y"])
def test_no_profile_or_notebook_name_makes_a_folder_elsewhere(outputs, name):
    with pytest.raises(InputError, match="name of a profile"):
        run_folder(name, "fine", {})
    with pytest.raises(InputError, match="name of a notebook"):
        start_run(name, {"seed": 0})
    with pytest.raises(InputError, match="name of a profile"):
        find_runs(name)
    with pytest.raises(InputError, match="name of a run"):
        run_folder("quick", "fine", {"seed": f"/{name}"})


def test_a_changed_file_of_a_run_is_a_problem_that_names_it(outputs):
    run = start_run("demo", {"seed": 0, "threads": 1})
    run.result("top1", 0.5)
    run.table("numbers", [{"x": 1}])
    assert read_run(run.folder).problems == [] and read_run(run.folder).results[0]["value"] == "0.5"
    (run.folder / "results.csv").write_text("notebook,metric,value,seed\ndemo,top1,0.9,0\n")
    (run.folder / "tables" / "numbers.csv").unlink()
    assert [problem.split()[0] for problem in read_run(run.folder).problems] == ["results.csv", "tables/numbers.csv"]


# --- a plan from a record ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fixtures(outputs, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(outputs.parent / "params"))
    return outputs


def recorded(name="run.json", notebook="raises", profile="quick", **parameters):
    values = {"seed": 0, "epochs": 2} | parameters
    folder = run_folder(profile, notebook, values)
    write_record(folder / name, {"parameters": values})
    return folder


@pytest.mark.parametrize("name", ["run.json", "execution.json"])
def test_a_run_is_planned_again_from_its_own_record(fixtures, name):
    folder = recorded(name, profile="gone", epochs=7)
    made = plan_again(folder)
    assert (made.notebook, made.profile, made.folder, made.changed) == ("raises", "gone", folder, {"epochs": 7})
    assert made.parameters == {"seed": 0, "epochs": 7}


def test_a_damaged_record_falls_back_to_the_other_and_without_one_is_refused(fixtures):
    folder = recorded()
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="can't be run again: run.json is damaged .*; execution.json can't be read"):
        plan_again(folder)
    recorded("execution.json")
    assert plan_again(folder).parameters == {"seed": 0, "epochs": 2}


def test_a_record_in_the_folder_of_another_run_is_refused(fixtures):
    other = recorded(epochs=9)
    other.rename(other.parent / "seed0-0123456789")
    with pytest.raises(InputError, match="of a run with other parameters"):
        plan_again(other.parent / "seed0-0123456789")


def test_a_run_by_hand_is_not_planned_again(fixtures):
    folder = run_folder("quick", "raises", {"seed": 0, "epochs": 2}, by_hand=True)
    write_record(folder / "run.json", {"parameters": {"seed": 0, "epochs": 2}})
    with pytest.raises(InputError, match="was made by hand"):
        plan_again(folder)


def test_a_notebook_with_other_parameters_than_the_record_is_refused(fixtures):
    with pytest.raises(InputError, match=r"raises has other parameters now .*\(lr\); start a new run"):
        plan_again(recorded(lr=0.1))
    with pytest.raises(InputError, match="epochs must be"):
        plan_again(recorded(epochs=0))
    with pytest.raises(InputError, match="unknown notebook 'gone'"):
        plan_again(recorded(notebook="gone"))
