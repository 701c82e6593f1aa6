"""The command line as a user meets it: README commands parse, bad input is one sentence and exit code 2."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoke import Collection, Context
from invoke.parser import Parser

import tasks
from kdnb.reports.outcome import read_outcome
from kdnb.storage.checkpoints import save_state
from tests.material import FIXTURES

ROOT = Path(__file__).parent.parent
CONTEXTS = Collection.from_module(tasks).to_contexts()
PAGES = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "params" / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("python", "sweeps")),
    )
    if path.is_file()
]


def commands(page: Path) -> list[str]:
    """Lines of indented or fenced code that call invoke, without comments and variables before them."""
    found = []
    for line in page.read_text().splitlines():
        text = re.sub(r"\s+#.*", "", line.strip().removeprefix("$ "))
        text = re.sub(r"^([A-Z_]+=\S+ )+", "", text)
        if re.match(r"(uv run (--\S+ (\S+ )?)*)?inv( |$)", text):
            found.append(text)
    return found


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_every_command_in_the_docs_names_a_task_with_valid_options(page, command):
    words = shlex.split(command[command.index("inv") :])[1:]
    if words[:1] in (["--list"], ["-l"], ["--help"]):
        return
    assert len(Parser(contexts=CONTEXTS).parse_argv(words)) == 1, "one task a line"


def test_the_search_finds_commands_and_the_parser_refuses_wrong_ones(tmp_path):
    page = tmp_path / "x.md"
    page.write_text(
        "text inv run\n\n    uv run inv run 01_teacher -p lr=1  # comment\n```\n$ KDNB_DATA=x uv run --extra ray inv all\ninvoke\n```\n"
    )
    assert commands(page) == ["uv run inv run 01_teacher -p lr=1", "uv run --extra ray inv all"]
    for words in (["run", "x", "--no-such-option"], ["no_such_task"]):
        with pytest.raises(Exception, match="no[-_]such"):
            Parser(contexts=CONTEXTS).parse_argv(words)


def test_every_task_is_explained_in_one_line():
    for task in Collection.from_module(tasks).tasks.values():
        first = (task.__doc__ or "").strip().splitlines()[0]
        assert first.endswith(".") or "`" in first, task.name


def test_the_tasks_import_nothing_heavy():
    code = "import sys, tasks; sys.exit(bool({'torch', 'papermill', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- bad input -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path):
    """Run an invoke command with folders of its own; returns the finished process."""

    def run(*words):
        folders = {
            "KDNB_NOTEBOOKS": str(FIXTURES),
            "KDNB_PARAMS": str(tmp_path / "params"),
            "KDNB_OUTPUTS": str(tmp_path / "outputs"),
            "KDNB_DATA": str(tmp_path / "data"),
        }
        return subprocess.run(
            [sys.executable, "-m", "invoke", *words], cwd=ROOT, env=os.environ | folders, capture_output=True, text=True
        )

    (tmp_path / "params" / "standard").mkdir(parents=True)
    return run


def assert_refused(done, tmp_path, message):
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ("run fien", "unknown notebook 'fien'; did you mean 'fine'"),
        ("run fine --profile standrad", "unknown profile 'standrad'; did you mean 'standard'"),
        ("run fine --profile standard", "profile standard has no fine; these have it: quick"),
        ("run fine/long", "unknown experiment of profile quick 'fine/long'"),
        ("params fin", "unknown notebook 'fin'; did you mean 'fine'"),
        ("params fine/long", "unknown experiment of profile quick 'fine/long'"),
        ("experiments --profile standrad", "unknown profile 'standrad'; did you mean 'standard'"),
        ("run fine -p epoch=3", "unknown parameter of fine 'epoch'; did you mean 'epochs'"),
        ("run fine -p epochs", "name=value, got 'epochs'"),
        ("run fine -p epochs=0", "epochs must be a whole number from 1"),
        ("run fine -p epochs=yes", "epochs must be a whole number"),
        ("run fine --limit never", "limit must be a number of seconds"),
        ("run needs_data -p dataset=digit", "unknown dataset 'digit'; did you mean 'digits'"),
        ("run needs_data -p teacher=resnet_8", "teacher: unknown model 'resnet_8'; did you mean 'resnet8'"),
        ("run needs_data -p dataset=cifar10", "no complete copy of cifar10 found"),
        ("run needs_data -p teacher_checkpoint=none.safetensors", "none.safetensors does not exist"),
        ("all --profile standrad", "unknown profile"),
        ("record -n fien", "unknown notebook 'fien'"),
        ("runs", "no runs found; start one with `inv run NOTEBOOK`"),
        ("runs --profile standard", "no runs of profile standard found"),
        ("show nowhere", "unknown run 'nowhere'"),
        ("show tests", "tests is no run"),
        ("report", "no runs of profile quick found"),
        ("run nowhere --resume", "unknown run 'nowhere'"),
        ("run ../x/y --resume", "there is no run folder"),
        ("run x --resume -p epochs=3", "a resumed run keeps its parameters"),
        ("compare a b", "unknown run 'a'"),
        ("verify ../..", "is no run: runs are PROFILE/NOTEBOOK/RUN in the outputs"),
        ("report --profile ../x", "name of a profile is made of"),
        ("export nowhere", "unknown run 'nowhere'"),
        ("push nowhere --repo me/pet", "unknown run 'nowhere'"),
        ("plan nothing", "unknown sweep 'nothing'"),
        ("plan tests/none.yaml", "there is no sweep file tests/none.yaml"),
        ("sweep nothing", "unknown sweep 'nothing'"),
        ("sweep nothing --workers 0", "workers must be a whole number from 1 on, got 0"),
        ("run fine --processes 0", "processes must be a whole number from 1 on, got 0"),
        ("run fine --processes 2", "--processes is for 01_teacher and 04_distillation; fine runs in one process"),
        ("download digitz", "unknown data set to download 'digitz'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(call, tmp_path, words, message):
    assert_refused(call(*words.split()), tmp_path, message)


def test_an_old_name_of_an_experiment_is_answered_with_the_new_one(call, tmp_path):
    (tmp_path / "params" / "standard" / "fine").mkdir()
    (tmp_path / "params" / "standard" / "fine" / "long.yaml").write_text("epochs: 3\n")
    assert_refused(call("run", "fine.long", "--profile", "standard"), tmp_path, "^fine.long is now fine/long$")


def test_parameters_are_shown_with_where_they_come_from(call, tmp_path):
    folder = tmp_path / "params" / "standard" / "fine"
    folder.mkdir()
    (folder / "_base.yaml").write_text("epochs: 3\n")
    (folder / "long.yaml").write_text("extends: standard/fine/_base.yaml\nlr: 1e-2\n")
    assert call("experiments", "--profile", "standard").stdout == "standard:\n    fine/long\n"
    assert (
        "quick:\n    fails_at_import\n    fine\n" in call("experiments").stdout
        or "    fine\n" in call("experiments").stdout
    )
    table = call("params", "fine").stdout
    assert re.search(r"(?m)^epochs +int +2 +\S.*; a whole number", table)
    shown = call("params", "fine/long", "--profile", "standard").stdout
    assert re.search(r"(?m)^epochs +standard/fine/_base.yaml +3$", shown)
    assert re.search(r"(?m)^lr +standard/fine/long.yaml +0.01$", shown)
    assert re.search(r"(?m)^seed +the notebook +0$", shown)


def test_a_truncated_data_file_is_refused(call, tmp_path):
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        (folder / name).write_bytes(b"\x80\x02" + bytes(50))
    assert_refused(call("run", "needs_data", "-p", "dataset=cifar100"), tmp_path, "data file train is truncated")


def test_a_teacher_for_another_number_of_classes_is_refused(call, tmp_path):
    import torch

    save_state(tmp_path / "teacher.safetensors", {"model": {"fc.weight": torch.zeros(100, 4)}})
    done = call("run", "needs_data", "-p", f"teacher_checkpoint={tmp_path / 'teacher.safetensors'}")
    assert_refused(done, tmp_path, "for 100 classes, digits has 10")


def test_a_good_run_prints_where_its_outputs_are_and_exits_with_0(call, tmp_path):
    done = call("run", "fine", "-p", "epochs=3", "-p", "lr=1e-3")
    assert done.returncode == 0 and re.search(r"fine: ok in \d+ s", done.stdout) and "outputs: " in done.stdout
    assert "cells" in done.stderr  # the progress bar


def test_a_run_ends_with_its_results_and_its_report_and_is_listed_and_shown(call, tmp_path):
    first = call("run", "che")
    assert first.returncode == 0, first.stderr
    assert re.search(r"^  top1  0\.2$", first.stdout, re.MULTILINE) and re.search(
        r"^report: .*report\.html$", first.stdout, re.M
    )
    (folder,) = (tmp_path / "outputs" / "quick" / "checks").iterdir()
    again = call("run", "che")
    assert "finished before" in again.stdout and "  top1  0.2" in again.stdout and "cells" not in again.stderr
    assert call("run", "checks", "-p", "epochs=4").returncode == 6
    listed = call("runs", "--profile", "quick").stdout.splitlines()
    assert listed[0].split() == ["run", "status", "seconds", "results"] and len(listed) == 3
    assert any(re.match(rf"quick/checks/{folder.name} +ok +\d+ +top1 0\.2$", line) for line in listed)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    for given in (f"checks/{folder.name[:-3]}", str(copy)):
        shown = call("show", given)
        assert shown.returncode == 0, shown.stderr
        for part in (
            "status ok",
            "epochs 2",
            "top1 0.2",
            "ok top1 is positive",
            "results.csv",
            "because seed is 0",
        ):
            assert part in re.sub(" +", " ", shown.stdout), shown.stdout
    assert call("compare", folder.name, str(copy)).returncode == 0
    assert call("run", "--resume", str(copy)).returncode == 2


def test_a_run_whose_output_nobody_reads_ends_well(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    folders = {"KDNB_NOTEBOOKS": str(FIXTURES), "KDNB_PARAMS": str(tmp_path), "KDNB_OUTPUTS": str(tmp_path / "outputs")}
    command = [sys.executable, "-m", "invoke", "run", "fine"]
    assert subprocess.run(command, cwd=ROOT, env=os.environ | folders, stdout=writer, stderr=writer).returncode == 0
    (folder,) = (tmp_path / "outputs" / "quick" / "fine").iterdir()
    assert read_outcome(folder)["status"] == "ok"


def test_every_option_is_explained():
    for context in CONTEXTS:
        assert all(argument.help for argument in context.args.values()), context.name


def test_the_lab_takes_more_options_and_starts_for_root_too(monkeypatch):
    called = []
    monkeypatch.setattr(tasks, "_call", lambda *command: called.append(command))
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        tasks.lab(Context(remainder="--no-browser --port 9999"))
    assert [command[-3:] for command in called] == [("--no-browser", "--port", "9999")] * 2
    assert ["--allow-root" in command for command in called] == [True, False]


def test_a_failing_run_exits_with_the_code_of_its_ending(call, tmp_path):
    done = call("run", "raises")
    assert (
        done.returncode == 1
        and "in cell [3]" in done.stderr
        and "RuntimeError: the reason" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert call("run", "dies").returncode == 4
    refused = call("run", "refuses")
    assert refused.returncode == 2 and refused.stderr.strip().splitlines()[-1] == "epochs must be odd, got 2"


# --- runs that exist -----------------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_compared_and_verified_by_its_name(call, tmp_path):
    assert call("run", "measures", "-p", "epochs=4").returncode == 1  # raises the first time
    (folder,) = (tmp_path / "outputs" / "quick" / "measures").iterdir()
    resumed = call("run", "--resume", folder.name)
    assert resumed.returncode == 0, resumed.stderr
    assert [path.name for path in folder.parent.iterdir()] == [folder.name] and "report.html" in [
        path.name for path in folder.iterdir()
    ]
    assert call("run", "measures", "-p", "seed=1").returncode == 0
    (other,) = (path for path in folder.parent.iterdir() if path.name != folder.name)
    compared = call("compare", folder.name, f"quick/measures/{other.name}")
    assert (
        compared.returncode == 1
        and "top1: 0.4 | 1.2" in compared.stdout
        and "different, spread unknown" in compared.stdout
    )
    assert call("compare", folder.name, folder.name).returncode == 0
    verified = call("verify", other.name)
    assert verified.returncode == 0 and "results: equal" in verified.stdout


# --- the demo, with stand-ins for its four notebooks --------------------------------------------------------------------------

DEMO_CELL = """import os
from kdnb import parameters
from kdnb.storage.naming import run_folder

p = parameters.collect(globals())
folder = run_folder(os.environ["KDNB_PROFILE"], "{name}", p)
(folder / "results.csv").write_text("notebook,metric,value,seed\\n" + "".join(f"{name},{{m}},0.5,{{p.seed}}\\n" for m in {metrics}))"""


def demo_notebooks(folder, metrics):
    import nbformat

    folder.mkdir()
    shares = {
        "01_teacher": metrics[:1],
        "02_synthesis": metrics[-3:-1],
        "03_fast_ad": metrics[1:-3],
        "05_reusable_generator": metrics[-1:],
    }
    for name, share in shares.items():
        names = "seed: int = 0  # seed"
        if name in tasks.DEMO_SHORTER:
            names += '\ndomains: list[str] = ["same", "foreign"]  # more than the demo takes'
        parameters = nbformat.v4.new_code_cell(names, metadata={"tags": ["parameters"]})
        cell = nbformat.v4.new_code_cell(DEMO_CELL.format(name=name, metrics=share))
        nbformat.write(nbformat.v4.new_notebook(cells=[parameters, cell]), folder / f"{name}.ipynb")


def demo(tmp_path, metrics):
    demo_notebooks(tmp_path / "own", metrics)
    folders = {
        "KDNB_NOTEBOOKS": str(tmp_path / "own"),
        "KDNB_PARAMS": str(tmp_path / "params"),
        "KDNB_OUTPUTS": str(tmp_path / "outputs"),
    }
    command = [sys.executable, "-m", "invoke", "demo", "--seed", "3"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | folders, capture_output=True, text=True)


def test_the_demo_prints_its_rows_and_writes_its_report(tmp_path):
    done = demo(tmp_path, tasks.DEMO_METRICS)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(tuple(tasks.DEMO_METRICS))]
    assert rows == [[name, "0.5"] for name in tasks.DEMO_METRICS]
    lines = (tmp_path / "outputs" / "demo" / "results.csv").read_text().splitlines()
    assert (
        lines[0] == "notebook,metric,value,seed"
        and "03_fast_ad,student_top1,0.5,3" in lines
        and len(lines) == 1 + len(tasks.DEMO_METRICS)
    )
    assert (tmp_path / "outputs" / "demo" / "index.html").is_file() and "index.html" in done.stdout


def test_the_demo_fails_where_a_number_is_missing(tmp_path):
    done = demo(tmp_path, [name for name in tasks.DEMO_METRICS if name != "student_top1_noise"])
    assert done.returncode == 1 and re.search(r"student_top1_noise +missing", done.stdout)


@pytest.mark.parametrize("words", [["run", "--help"], ["compare", "--help"], ["evaluate", "-h"]])
def test_a_task_explains_itself_where_help_stands_after_its_name(words):
    found = subprocess.run([sys.executable, "-m", "invoke", *words], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and f"[--core-opts] {words[0]} " in found.stdout and "Options:" in found.stdout


def test_a_rehearsal_by_run_is_the_same_rehearsal(monkeypatch):
    called = []
    monkeypatch.setattr(tasks, "_rehearse", lambda *given: called.append(given))
    tasks.run(Context(), "01_teacher", ["epochs=2"], "standard", "60", rehearse=True)
    tasks.rehearse(Context(), "01_teacher", ["epochs=2"], "standard", "60")
    assert called[0] == called[1][:4] == ("01_teacher", ["epochs=2"], "standard", "60") and not called[1][4]
    with pytest.raises(tasks.Exit, match="leave --resume and --again out"):
        tasks.run(Context(), "01_teacher", again=True, rehearse=True)


def test_the_environment_is_compiled_once_where_python_keeps_no_bytecode(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(tasks.compileall, "compile_dir", lambda folder, **_: compiled.append(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "torch-2.dist-info").mkdir()
    tasks._compile_once()
    tasks._compile_once()
    assert compiled == [tmp_path]
    (tmp_path / "timm-1.dist-info").mkdir()  # a further package
    tasks._compile_once()
    assert len(compiled) == 2
    (tmp_path / ".compiled").unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    tasks._compile_once()
    assert len(compiled) == 2
