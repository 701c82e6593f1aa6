"""kdnb.runs: the run folder says what was done, with what, and what came out."""

import csv
import json
import subprocess
import sys

import pytest
import torch

from kdnb.errors import InputError
from kdnb.reports.run_files import read_run
from kdnb.runs import start_run
from kdnb.storage.checkpoints import Checkpointer
from kdnb.storage.naming import run_folder, run_name


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    return tmp_path


def test_the_same_parameters_find_the_same_folder(outputs):
    a = start_run("demo", {"seed": 1, "lr": 0.1, "threads": 1})
    b = start_run("demo", {"lr": 0.1, "threads": 1, "seed": 1})
    c = start_run("demo", {"seed": 1, "lr": 0.2, "threads": 1})
    assert a.folder == b.folder != c.folder
    assert a.folder.parent == outputs / "quick" / "demo" and a.folder.name.startswith("seed1-")


def test_the_record_holds_parameters_seeds_versions_hardware_and_commit(outputs, capsys):
    run = start_run("demo", {"seed": 4, "threads": 1}, profile="standard")
    run.note(data_hashes={"test": "abc"})
    record = json.loads((run.folder / "run.json").read_text())
    assert record["parameters"] == {"seed": 4, "threads": 1}
    assert record["seeds"]["torch"] == 4 and record["threads"] == 1 == torch.get_num_threads()
    assert {"torch", "numpy", "python", "kdnb"} <= set(record["versions"])
    assert record["hardware"]["cores"] >= 1 and record["commit"] and record["data_hashes"] == {"test": "abc"}
    assert "seed 4" in capsys.readouterr().out


def test_starting_a_run_seeds_torch(outputs):
    start_run("demo", {"seed": 9, "threads": 1})
    first = torch.rand(2)
    start_run("demo", {"seed": 9, "threads": 1})
    assert torch.equal(first, torch.rand(2))


def test_results_are_a_table_with_one_row_a_metric(outputs):
    run = start_run("demo", {"seed": 2, "threads": 1})
    run.result("top1", 0.5)
    run.result("top1", 0.75)
    run.result("loss", 1 / 3)
    rows = list(csv.reader((run.folder / "results.csv").open()))
    assert rows == [
        ["notebook", "metric", "value", "seed"],
        ["demo", "top1", "0.75", "2"],
        ["demo", "loss", "0.333333", "2"],
    ]


def test_the_metric_log_is_one_json_object_a_line(outputs):
    run = start_run("demo", {"seed": 0, "threads": 1})
    run.log("teacher", epoch=1, loss=0.5)
    run.log("teacher", epoch=2, loss=0.25)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]


def test_a_line_that_a_killed_process_left_unfinished_does_not_spoil_the_next(outputs):
    run = start_run("demo", {"seed": 0, "threads": 1})
    run.log("teacher", epoch=1)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"stream": "teach')
    run.log("teacher", epoch=2)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and [json.loads(lines[number])["epoch"] for number in (0, 2)] == [1, 2]


def test_a_run_killed_while_it_replaces_a_table_has_no_damaged_file(outputs, monkeypatch):
    run = start_run("demo", {"seed": 0, "threads": 1})
    run.table("numbers", [{"x": 1}])
    run.table("numbers", [{"x": 2}])
    assert "replaces" not in json.loads((run.folder / "run.json").read_text())
    note, notes = run.note, []
    monkeypatch.setattr(
        run, "note", lambda **entries: note(**entries) if "replaces" in entries else notes.append(entries)
    )
    run.table("numbers", [{"x": 3}])
    assert notes and read_run(run.folder).problems == []
    (run.folder / "tables" / "numbers.csv").write_text("x\n2\n")
    assert read_run(run.folder).problems == []
    (run.folder / "tables" / "numbers.csv").write_text("x\n4\n")
    assert len(read_run(run.folder).problems) == 1


def test_tables_and_figures_land_in_their_folders(outputs):
    import matplotlib.pyplot as plt

    run = start_run("demo", {"seed": 0, "threads": 1})
    frame = run.table("numbers", [{"x": 1, "y": 2.5}])
    assert (run.folder / "tables" / "numbers.csv").read_text() == "x,y\n1,2.5\n" and len(frame) == 1
    assert list(run.table("nothing", [], ["x", "y"]).columns) == ["x", "y"]
    figure, axis = plt.subplots()
    run.figure("empty", figure)
    assert (run.folder / "figures" / "empty.png").read_bytes().startswith(b"\x89PNG")
    first = (run.folder / "figures" / "empty.pdf").read_bytes()
    assert first.startswith(b"%PDF") and run.figure("empty", figure) is figure
    assert (run.folder / "figures" / "empty.pdf").read_bytes() == first
    axis.imshow([[0, 1]])
    run.figure("picture", figure)
    plt.close(figure)
    assert {path.name for path in (run.folder / "figures").iterdir()} == {"empty.png", "empty.pdf", "picture.png"}
    assert read_run(run.folder).problems == []


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x\0y"])
def test_no_table_or_figure_escapes_the_run_folder(outputs, name):
    run = start_run("demo", {"seed": 0, "threads": 1})
    with pytest.raises(ValueError, match="name is made of"):
        run.table(name, [{"x": 1}])


def test_run_names_are_stable_across_versions_of_the_code():
    assert run_name({"seed": 0, "dataset": "digits"}) == run_name({"dataset": "digits", "seed": 0})


def test_a_second_process_waits_for_the_first(outputs):
    run = start_run("demo", {"seed": 0, "threads": 1})
    code = (
        "from filelock import FileLock, Timeout\nimport sys\n"
        "try:\n    FileLock(sys.argv[1]).acquire(timeout=0)\n    print('free')\nexcept Timeout:\n    print('held')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(run.folder / "lock")], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "held"


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(outputs):
    if torch.cuda.is_available():
        with pytest.raises(InputError, match="numbered from 0"):
            start_run("demo", {"seed": 0, "device": "cuda:99"})
    else:
        with pytest.raises(InputError, match="no CUDA device"):
            start_run("demo", {"seed": 0, "device": "cuda"})
    assert list(outputs.iterdir()) == []


def test_what_the_runner_did_not_start_has_a_folder_of_its_own(outputs, monkeypatch, capsys):
    parameters = {"seed": 0, "threads": 1}
    monkeypatch.setenv("KDNB_RUN", str(run_folder("quick", "demo", parameters)))
    headless = start_run("demo", parameters)
    headless.result("top1", 0.9)
    monkeypatch.delenv("KDNB_RUN")
    edited = start_run("demo", parameters)
    edited.result("top1", 0.1)
    assert edited.folder.name == headless.folder.name + "-by-hand"
    assert (read_run(headless.folder).results[0]["value"], read_run(headless.folder).problems) == ("0.9", [])
    assert (read_run(headless.folder).record["by_hand"], read_run(edited.folder).record["by_hand"]) == (False, True)
    assert capsys.readouterr().out.count(", by hand") == 1


def test_other_parameters_than_those_the_runner_started_are_by_hand(outputs, monkeypatch):
    monkeypatch.setenv("KDNB_RUN", str(run_folder("quick", "demo", {"seed": 0})))
    assert start_run("demo", {"seed": 1, "threads": 1}).folder.name.endswith("-by-hand")


# --- networks ------------------------------------------------------------------------------------------------------------------


def test_a_saved_network_is_read_by_plain_torch_and_by_the_importers(outputs):
    from safetensors.torch import load_file

    from kdnb.models import build
    from kdnb.training.importers import load_classifier

    run, net = start_run("demo", {"seed": 0}), build("resnet8w4", num_classes=3, in_channels=1, mean=[0.5], std=[0.5])
    path = run.save_network("virtual, released", net.eval())
    assert path == run.folder / "checkpoints" / "virtual_released.safetensors"

    plain = build("resnet8w4", num_classes=3, in_channels=1, mean=[0.5], std=[0.5]).eval()
    plain.load_state_dict(load_file(path))

    images = torch.randn(4, 1, 8, 8)
    imported = load_classifier(path, "resnet8w4", num_classes=3, in_channels=1, mean=[0.5], std=[0.5]).model
    assert torch.equal(plain(images), net(images)) and torch.equal(imported(images), net(images))


def test_a_saved_network_belongs_to_the_record_of_its_run(outputs):
    run = start_run("demo", {"seed": 0})
    path = run.save_network("student", torch.nn.Linear(2, 2))
    assert read_run(run.folder).problems == []
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "student.safetensors" in str(read_run(run.folder).problems)


# --- the card of a live notebook -----------------------------------------------------------------------------------------------


def card(monkeypatch, capsys, parameters) -> str:
    monkeypatch.setattr("kdnb.runs.interactive", lambda: True)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda thing: shown.append(thing.data))
    start_run("01_teacher", parameters)
    assert capsys.readouterr().out == ""
    return "".join(shown)


def test_a_person_sees_a_card_that_links_to_the_runs_own_folder(outputs, monkeypatch, capsys):
    shown = card(monkeypatch, capsys, {"seed": 3})
    assert "seed3-" in shown and "-by-hand" in shown and "<a href=" in shown and "none, starts anew" in shown


def test_the_card_says_where_an_interrupted_run_goes_on(outputs, monkeypatch, capsys):
    progress = start_run("01_teacher", {"seed": 3}).progress
    for step in (2, 7):
        Checkpointer(progress / "student").save(step, {"value": 1})
    capsys.readouterr()
    assert "student continues at step 7" in card(monkeypatch, capsys, {"seed": 3})
