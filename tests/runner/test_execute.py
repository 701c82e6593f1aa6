"""How runs end, with one fixture notebook for each way. Every test that runs a notebook starts a real kernel."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from kdnb.errors import InputError
from kdnb.reports.outcome import EXIT_CODES, Outcome, read_outcome
from kdnb.reports.run_files import read_run
from kdnb.runner import execute, kernel
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan
from kdnb.storage.files import write_record
from kdnb.storage.naming import run_folder
from tests.material import FIXTURES


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs {x}"))  # braces: papermill formats paths
    return tmp_path


def texts(folder: Path) -> str:
    """Everything that the cells of the executed notebook printed."""
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def saved(outcome: Outcome) -> dict:
    return json.loads((outcome.folder / "execution.json").read_text())


# --- a notebook that ends well -------------------------------------------------------------------------------------------------


def test_a_good_run_gets_its_parameters_its_interpreter_its_threads_and_its_folder(project, monkeypatch):
    spec = project / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["false"], "display_name": "another python3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    planned = plan("fine", overrides={"epochs": 7, "lr": "1e-6", "milestones": [3, 5]})
    outcome = run_notebook(planned)
    assert (outcome.status, outcome.exit_code, outcome.message) == ("ok", 0, "")
    interpreter, threads, values = (
        (planned.folder / "seen.txt").read_text().splitlines()
    )  # written where the kernel's own hash points
    assert (interpreter, threads) == (sys.executable, "1")
    assert eval(values) == planned.parameters
    assert "epochs 7" in texts(planned.folder)
    record = saved(outcome)
    assert record["status"] == "ok" and record["parameters"] == planned.parameters and record["peak_memory_mib"] > 10
    assert sorted(path.name for path in planned.folder.iterdir()) == [
        "execution.json",
        "execution.lock",
        "notebook.ipynb",
        "seen.txt",
    ]
    assert "papermill" not in (planned.folder / "notebook.ipynb").read_text()


def test_a_finished_run_returns_its_result_and_executes_nothing(project, monkeypatch):
    planned = plan("checks")
    first = run_notebook(planned)
    before = {path: path.read_bytes() for path in planned.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(kernel, "execute", None)  # nothing may be executed
    second = run_notebook(planned, again=False)
    assert (second.status, second.exit_code, second.seconds) == ("ok", 0, first.seconds)
    assert "nothing was run" in second.describe()
    assert {path: path.read_bytes() for path in planned.folder.rglob("*") if path.is_file()} == before


def own_notebook(project, monkeypatch, name):
    """A copy that may be changed."""
    folder = project / "own"
    folder.mkdir()
    shutil.copy(FIXTURES / f"{name}.ipynb", folder)
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(folder))
    return folder / f"{name}.ipynb"


@pytest.mark.parametrize("change", ["code", "text", "results", "status"])
def test_a_finished_run_is_run_again_where_its_code_or_its_files_changed(project, monkeypatch, capsys, change):
    path = own_notebook(project, monkeypatch, "checks")
    planned = plan("checks")
    planned.folder.mkdir(parents=True)
    write_record(
        planned.folder / "execution.json",
        {
            "status": "failed" if change == "status" else "ok",
            "notebook_hash": execute.notebook_hash(path),
            "seconds": 1.5,
            "peak_memory_mib": 9,
        },
    )
    (planned.folder / "results.csv").write_text("a")
    write_record(planned.folder / "run.json", {"files": {"results.csv": hashlib.sha256(b"a").hexdigest()}})
    (planned.folder / "notebook.ipynb").touch()
    if change == "results":
        (planned.folder / "results.csv").write_text("b")
    elif change in ("code", "text"):
        old, new = ("top1 below 0.3", "below") if change == "code" else ("Measures something", "Measures")
        path.write_text(path.read_text().replace(old, new))
    done, words = execute._finished(planned), capsys.readouterr().err
    assert (done is not None) == (change == "text")
    assert ("code has changed" in words) == (change == "code")
    assert ("results.csv is missing, damaged or was edited" in words) == (change == "results")


def test_what_was_reused_is_said_in_the_notebook_and_in_the_runners_line(project):
    outcome = run_notebook(plan("reuses"))
    said = "2 things, 1 judge from the cache"
    assert f"reused: {said}\n" in texts(outcome.folder) and "reused: student continues at 2/3\n" in texts(
        outcome.folder
    )
    assert outcome.describe().endswith(f"; reused: {said}, student continues at 2/3")


def test_several_runs_started_at_once_do_not_meet(project):
    code = (
        "import sys; from kdnb.runner.execute import run_notebook; from kdnb.runner.plan import plan; "
        "sys.exit(run_notebook(plan('fine', overrides={'epochs': %d})).exit_code)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code % epochs], stderr=subprocess.PIPE) for epochs in (11, 12, 13)]
    assert [run.wait() for run in runs] == [0, 0, 0], b"".join(run.stderr.read() for run in runs).decode()
    for epochs in (11, 12, 13):
        assert f"epochs {epochs}" in texts(plan("fine", overrides={"epochs": epochs}).folder)


# --- every other ending --------------------------------------------------------------------------------------------------------


def test_a_cell_that_raises_is_a_failure_with_its_source(project):
    outcome = run_notebook(plan("raises"))
    assert (outcome.status, outcome.exit_code, outcome.cell) == ("failed", 1, 3)
    assert outcome.message == "RuntimeError: the reason" and 'raise RuntimeError("the reason")' in outcome.describe()
    assert "before" in texts(outcome.folder) and "never" not in texts(outcome.folder)
    assert (
        saved(outcome)["source"] == 'raise RuntimeError("the reason")' and "last checkpoint" in saved(outcome)["next"]
    )


def test_a_cell_that_refuses_its_input_is_bad_input_in_one_sentence(project):
    outcome = run_notebook(plan("refuses"))
    assert (outcome.status, outcome.exit_code) == ("bad_input", 2)
    assert outcome.describe() == "epochs must be odd, got 2"


def test_a_check_that_does_not_hold_is_an_ending_of_its_own_and_keeps_the_results(project):
    outcome = run_notebook(plan("checks", overrides={"epochs": 4}))
    assert (outcome.status, outcome.exit_code) == ("unexpected", 6)
    assert outcome.message == "1 of 3 checks do not hold: top1 below 0.3 (found 0.4)" in outcome.describe()
    assert "--   top1 above 0.9: not judged here, because seed is 0" in texts(outcome.folder)
    found = read_run(outcome.folder)
    assert found.problems == [] and found.results[0]["value"] == "0.4"


def test_leaving_early_is_no_success(project):
    outcome = run_notebook(plan("leaves"))
    assert (outcome.status, outcome.exit_code, outcome.cell) == ("failed", 1, 2)
    assert "exit()" in outcome.message and "never" not in texts(outcome.folder)


def test_a_killed_kernel_is_reported_with_its_signal_and_the_notebook_so_far(project):
    outcome = run_notebook(plan("dies"))
    assert (outcome.status, outcome.exit_code, outcome.cell) == ("killed", 4, 3)
    assert "SIGKILL" in outcome.message and "MiB" in outcome.message and "os.kill" in outcome.source
    assert "before" in texts(outcome.folder)


def test_a_kernel_that_quits_is_reported_with_its_exit_code(project):
    outcome = run_notebook(plan("quits"))
    assert (outcome.status, outcome.cell) == ("killed", 2) and "exit code 3" in outcome.message


def test_a_run_over_its_limit_is_interrupted(project):
    outcome = run_notebook(plan("hangs"), limit=3)
    assert (outcome.status, outcome.exit_code) == ("timeout", 5)
    assert "limit of 3 s" in outcome.message and "before" in texts(outcome.folder)


def test_a_run_that_does_not_listen_is_killed(project, monkeypatch):
    monkeypatch.setattr(kernel, "_GRACE", 0.5)
    outcome = run_notebook(plan("stubborn"), limit=3)
    assert (outcome.status, outcome.exit_code) == ("timeout", 5)


def start_hanging(name: str = "hangs", stderr: int = subprocess.DEVNULL) -> tuple[subprocess.Popen, Path]:
    """A runner in a process group of its own, inside the cell that waits for ever."""
    folder = plan(name).folder
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from kdnb.runner.execute import run_notebook; from kdnb.runner.plan import plan; sys.exit(run_notebook(plan('{name}')).exit_code)"
    ).replace("{name}", name)
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=stderr, start_new_session=True)
    while "before" not in (texts(folder) if (folder / "notebook.ipynb").is_file() else ""):
        assert runner.poll() is None
        time.sleep(0.1)
    return runner, folder


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


in_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")


@in_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_leaves_no_kernel(project, number):
    runner, folder = start_hanging()
    kernels = children(runner.pid)
    os.kill(runner.pid, number)
    assert runner.wait() == 130
    assert read_outcome(folder)["status"] == "interrupted"
    assert kernels and not any(is_running(pid) for pid in kernels)


def unread() -> int:
    """A pipe's end to write to; the reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_run_goes_on_when_nobody_reads_its_output(project):
    code = "from kdnb.runner.execute import run_notebook; from kdnb.runner.plan import plan; run_notebook(plan('fine'))"
    writer = unread()
    assert subprocess.run([sys.executable, "-c", code], stderr=writer).returncode == 0
    os.close(writer)
    assert read_outcome(plan("fine").folder)["status"] == "ok"


@in_proc
@pytest.mark.parametrize("name", ["hangs", "stubborn"])
def test_sigterm_ends_a_run_whose_output_nobody_reads(project, name):
    writer = unread()
    runner, folder = start_hanging(name, writer)
    os.close(writer)
    kernels = children(runner.pid)
    runner.terminate()
    assert runner.wait() == 130
    assert read_outcome(folder)["status"] == "interrupted"
    assert kernels and not any(is_running(pid) for pid in kernels)


class Listener:
    """Stands in for a `Watch`."""

    def __init__(self):
        self.asked = 0

    def stop(self):
        self.asked += 1

    @property
    def stopped(self):
        return self.asked > 0


def test_only_the_work_is_interrupted_and_only_once():
    listener, seen = Listener(), []
    with execute._Signals(listener) as signals:

        def work():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # while it tidies up
                seen.append("tidy")

        with pytest.raises(KeyboardInterrupt):
            signals.interrupting(work)
        os.kill(os.getpid(), signal.SIGTERM)  # while the ending is recorded
    assert listener.asked == 3 and seen == ["tidy"]


def test_a_signal_before_the_work_keeps_it_from_starting():
    with execute._Signals(Listener()) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signals.interrupting(lambda: pytest.fail("it started"))


@in_proc
def test_a_killed_runner_is_seen_by_its_record_and_its_kernel_stops(project):
    runner, folder = start_hanging()
    kernels = children(runner.pid)
    assert read_outcome(folder)["status"] == "running"
    runner.kill()
    runner.wait()
    assert read_outcome(folder)["status"] == "killed" and "before" in texts(folder)
    while any(is_running(pid) for pid in kernels):  # a kernel looks for its parent once a second
        time.sleep(0.1)


# --- records and sentences -----------------------------------------------------------------------------------------------------


def test_no_record_and_a_damaged_record_read_as_nothing(tmp_path):
    assert read_outcome(tmp_path) == {}
    (tmp_path / "execution.json").write_text("{")
    assert read_outcome(tmp_path) == {}


def test_a_running_record_of_a_living_process_stays_running(tmp_path):
    write_record(tmp_path / "execution.json", {"status": "running", "pid": os.getpid()})
    assert read_outcome(tmp_path)["status"] == "running"


def test_every_status_has_its_own_exit_code_and_only_success_is_zero():
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert [status for status, code in EXIT_CODES.items() if code == 0] == ["ok"]
    for status in EXIT_CODES:
        assert bool(Outcome(status, Path()).next_step) == (status != "ok")


def test_an_output_folder_that_cannot_be_made_is_refused(project, monkeypatch):
    (project / "file").write_text("")
    monkeypatch.setenv("KDNB_OUTPUTS", str(project / "file"))
    with pytest.raises(InputError, match="run folder can't be made"):
        run_notebook(plan("fine"))


def test_the_run_folder_is_the_one_that_the_kernel_computes(project):
    planned = plan("fine")
    assert planned.folder == run_folder("quick", "fine", {"milestones": [1], **planned.parameters})
