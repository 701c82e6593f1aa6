"""kdnb.runner.sweep: runs in worker processes, killed and stopped; kdnb.runner.sweep_files and forecast: what is refused and reckoned."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from kdnb.errors import InputError
from kdnb.reports.outcome import read_outcome
from kdnb.reports.run_files import read_run
from kdnb.runner import on_ray, sweep_files, worker
from kdnb.runner.execute import is_finished
from kdnb.runner.forecast import describe_plan
from kdnb.runner.plan import plan
from kdnb.runner.sweep import Job, LocalWorkers, exit_code, firsts_first, run_sweep, sweep_folder
from kdnb.runner.sweep_files import read_sweep
from kdnb.runner.sweep_results import write_results
from kdnb.storage.files import write_record

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "notebooks"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def sweep_of(project: Path, text: str, **options):
    (project / "few.yaml").write_text(text)
    return read_sweep(str(project / "few.yaml"), **options)


# --- files ---------------------------------------------------------------------------------------------------------------------


def test_blocks_become_runs_in_their_order_and_the_same_run_only_once(project):
    found = sweep_of(
        project,
        """
baseline: {epochs: 1}
runs:
  - notebook: [checks, steps]
    grid: {epochs: [1, 2]}
  - notebook: checks
    list: [{epochs: 2}, {seed: 3}]
  - notebook: measures
    list: [{epochs: 1}, {epochs: 5}]
    grid: {seed: [0, 1]}
""",
    )
    assert [run.name.removeprefix("quick/") for run in found.runs] == [
        *("checks epochs=1", "checks epochs=2", "steps epochs=1", "steps epochs=2", "checks seed=3"),
        *(
            "measures epochs=1 seed=0",
            "measures epochs=1 seed=1",
            "measures epochs=5 seed=0",
            "measures epochs=5 seed=1",
        ),
    ]
    assert found.baseline == {"epochs": 1} and found.name == "few"
    assert all(run.plan == plan(run.experiment, "quick", run.overrides) for run in found.runs)


def test_values_from_the_command_line_hold_for_every_run(project):
    found = sweep_of(project, "notebook: checks\ngrid: {seed: [0, 1]}", overrides={"epochs": 7})
    assert [run.plan.parameters["epochs"] for run in found.runs] == [7, 7]


@pytest.mark.parametrize(
    "text, words",
    [
        ("notebook: check\nprofile: quic", "unknown profile 'quic'; did you mean 'quick'"),
        ("notebook: stepps", "unknown notebook 'stepps'; did you mean 'steps'"),
        ("notebook: checks\ngrid: {epoch: [1]}", "block 1 of few.yaml: unknown parameter of checks 'epoch'; did you mean 'epochs'"),
        ("notebook: checks\ngrid: {epochs: [1, 0]}", "epochs must be a whole number from 1 to 100000, got 0"),
        ("notebook: checks\ngrid: {epochs: [{a: 1}]}", "epochs must be a whole number"),
        ("notebook: checks\ngrid: {}", "empty grid or list"),
        ("notebook: checks\nlist: [{}]", "empty grid or list"),
        ("notebook: checks\ngrid: {seed: []}", "each list with one value or more"),
        ("notebook: checks\ngrid: {seed: 1}", "each list with one value or more"),
        ("notebook: checks\nlist: []", "with one entry or more"),
        ("notebook: checks\nlist: [{seed: 1}]\ngrid: {seed: [1]}", "gives seed in its grid and in its list"),
        ("notebok: checks", "unknown key in block 1 of few.yaml 'notebok'; did you mean 'notebook'"),
        ("grid: {seed: [1]}", "must be the name of an experiment"),
        ("runs: []", "list of one block or more"),
        ("runs: [1]", "list of one block or more"),
        ("runs: [{notebook: checks}]\nbaselin: {}", "did you mean 'baseline'"),
        ("notebook: checks\nbaseline: {epoch: 1}", "did you mean 'epochs'"),
        ("notebook: checks\nbaseline: 1", "values by name"),
        ("notebook: checks\nnotebook: steps", "gives notebook twice"),
        ("notebook: &a [checks]\nlist: [*a]", "has an alias"),
        ("- 1", "must have `runs:`"),
        ("", "must have `runs:`"),
        ("a: [", "is no YAML"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_sentence(project, text, words):
    with pytest.raises(InputError) as error:
        sweep_of(project, text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_million_runs_by_accident_are_refused_at_once_unless_they_are_meant(project, monkeypatch):
    seeds = f"[{', '.join(map(str, range(1000)))}]"
    with pytest.raises(
        InputError, match="stands for 1,000,000 runs; more than 10,000 are refused unless you say --really"
    ):
        sweep_of(project, f"notebook: checks\ngrid: {{seed: {seeds}, epochs: [{', '.join(map(str, range(1, 1001)))}]}}")
    monkeypatch.setattr(sweep_files, "MOST_RUNS", 3)
    text = "notebook: checks\ngrid: {seed: [0, 1, 2, 3]}"
    with pytest.raises(InputError, match="4 runs"):
        sweep_of(project, text)
    assert len(sweep_of(project, text, many=True).runs) == 4


def test_a_sweep_is_found_by_its_name(project):
    folder = project / "params" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "all_of_it.yaml").write_text("notebook: checks")
    assert read_sweep("all_of_it").runs[0].experiment == "checks"
    for given, words in (
        ("all_of_this", "did you mean 'all_of_it'"),
        ("none.yaml", "there is no sweep file none.yaml"),
    ):
        with pytest.raises(InputError, match=words):
            read_sweep(given)


# --- what it will take ---------------------------------------------------------------------------------------------------------


def finished(planned, seconds: float, size: int = 1000) -> None:
    planned.folder.mkdir(parents=True)
    record = {"status": "ok", "seconds": seconds, "peak_memory_mib": 1, "parameters": planned.parameters}
    write_record(planned.folder / "execution.json", record)
    (planned.folder / "notebook.ipynb").write_bytes(b"x" * size)


def test_the_rest_is_reckoned_from_runs_with_other_seeds_else_from_the_notebooks_else_unknown(project):
    text = "runs: [{notebook: checks, grid: {seed: [0, 1, 2]}}, {notebook: measures}]"
    assert describe_plan(sweep_of(project, text)).count("unknown") == 6  # hours and storage of two notebooks and of all
    finished(plan("checks", overrides={"epochs": 8}), 7200)
    shown = describe_plan(sweep_of(project, text)).splitlines()
    assert shown[1].split()[3:6] == ["3", "0", "6"] and "of this notebook and profile" in shown[1]
    finished(plan("checks", overrides={"seed": 9}), 3600, size=2**20)
    shown = describe_plan(sweep_of(project, text)).splitlines()
    assert shown[1].split()[3:8] == ["3", "0", "3", "3", "MiB"] and "1 run with other seeds" in shown[1]
    assert "unknown" in shown[2] and "3 + 1 unknown" in shown[3] and "worker" not in "".join(shown)
    only = describe_plan(sweep_of(project, "notebook: checks\ngrid: {seed: [0, 1, 2]}"), workers=2)
    assert "with 2 workers: about 1.5 h" in only


def test_a_rehearsal_stands_in_where_nothing_has_run(project):
    planned = plan("checks")
    folder = project / "outputs" / "rehearsal" / "quick" / "checks" / planned.folder.name
    folder.mkdir(parents=True)
    write_record(folder / "rehearsal.json", {"seconds": 1800.0, "bytes": 3 * 2**20})
    shown = describe_plan(sweep_of(project, "notebook: checks"))
    assert "0.5 " in shown and "3 MiB" in shown and "its rehearsal" in shown


# --- execution -----------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_killed_worker_is_replaced_its_run_goes_on_and_a_failure_stops_nobody(project):
    text = (
        "baseline: {epochs: 3}\nnotebook: steps\nlist: [{epochs: 3}, {epochs: 4}, {epochs: 5, repeats: 2}, {epochs: 9}]"
    )
    found = sweep_of(project, text)
    jobs = run_sweep(found, LocalWorkers(2, logs=project / "logs"))
    assert [job.state for job in jobs] == ["ok"] * 3 + ["failed"] and exit_code(jobs) == 1
    assert [job.attempts for job in jobs] == [1, 1, 2, 1] and "nine steps" in jobs[3].message
    steps = (jobs[2].run.plan.folder / "steps.txt").read_text().split()
    assert steps == ["0", "1", "2", "3", "4"]  # none was done twice: it went on from its checkpoint

    shown = write_results(found, jobs)
    table = rows(sweep_folder("few") / "results.csv")
    assert [(row["metric"], row["n"], row["mean"], row["difference"]) for row in table] == [
        ("sum", "1", "6", ""),
        ("sum", "1", "10", "4"),
        ("sum", "1", "15", ""),  # not as the baseline in all else
    ]
    assert "nine steps" in shown and (sweep_folder("few") / "report" / "index.html").is_file()
    assert [row["state"] for row in rows(sweep_folder("few") / "runs.csv")] == ["ok"] * 3 + ["failed"]
    assert "nine steps" in (project / "logs" / f"quick-steps-{jobs[3].run.plan.folder.name}.log").read_text()

    again = run_sweep(found, LocalWorkers(2))
    assert [job.attempts for job in again] == [0] * 3 + [1], "what has finished is not repeated"


def test_a_run_that_is_lost_each_time_is_given_up(project):
    class Dying(LocalWorkers):
        def start(self, job):
            super().start(job)
            os.kill(self._running[0][1].pid, signal.SIGKILL)

    jobs = run_sweep(sweep_of(project, "notebook: steps"), Dying(1))
    assert (jobs[0].state, jobs[0].attempts) == ("killed", 4) and "SIGKILL" in jobs[0].message


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [more for one in found for more in children(one)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_and_is_continued(project, number):
    (project / "few.yaml").write_text("notebook: hangs")
    call = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), "sweep", str(project / "few.yaml")]
    process = subprocess.Popen(call, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = read_sweep(str(project / "few.yaml")).runs[0].plan.folder
    family: list[int] = []
    while len(family) < 2 or read_outcome(folder).get("status") != "running":  # a runner and its kernel
        assert process.poll() is None
        family = children(process.pid)
        time.sleep(0.1)
    process.send_signal(number)
    output, errors = process.communicate()
    while any(map(alive, family)):
        time.sleep(0.1)
    assert read_outcome(folder)["status"] in ("interrupted", "killed")
    if number == signal.SIGTERM:
        assert process.returncode == 130 and "go on with the next `inv sweep`" in errors
        assert read_outcome(folder)["status"] == "interrupted"


def test_two_processes_do_not_work_on_one_sweep(project):
    from filelock import FileLock

    found = sweep_of(project, "notebook: steps")
    sweep_folder("few").mkdir(parents=True)
    with FileLock(sweep_folder("few") / "lock"):
        with pytest.raises(InputError, match="another process is working on the sweep few"):
            run_sweep(found, LocalWorkers(1))


def test_the_first_run_of_each_shared_teacher_comes_first(monkeypatch):
    monkeypatch.delenv("KDNB_NOTEBOOKS")
    monkeypatch.delenv("KDNB_PARAMS")
    plans = [
        plan("04_distillation", overrides={"seed": seed, "method": name}) for seed in (0, 1) for name in ("kd", "dkd")
    ]
    jobs = [Job(sweep_files.SweepRun("04_distillation", "quick", {}, one)) for one in plans]
    order = [(job.run.plan.parameters["seed"], job.run.plan.parameters["method"]) for job in firsts_first(jobs)]
    assert order == [(0, "kd"), (1, "kd"), (0, "dkd"), (1, "dkd")]


@pytest.mark.parametrize(
    "states, code",
    [
        (["ok"], 0),
        (["ok", "unexpected"], 6),
        (["unexpected", "failed"], 1),
        (["ok", "killed"], 1),
        (["timeout"], 1),
        (["bad_input"], 1),
        (["failed", "waiting"], 130),
    ],
)
def test_exit_codes(states, code):
    run = sweep_files.SweepRun("x", "quick", {}, None)  # type: ignore[arg-type]
    assert exit_code([Job(run, state) for state in states]) == code


# --- on Ray, what needs no cluster (tests/slow/test_ray.py has the rest) ---------------------------------------------------------


def test_without_ray_an_address_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="--address needs Ray, which is not installed: uv sync --extra ray"):
        on_ray.RayWorkers("local")


def test_what_ran_where_the_outputs_are_not_seen_is_brought_here_whole(project, monkeypatch):
    run = sweep_of(project, "notebook: checks").runs[0]
    monkeypatch.setenv("KDNB_OUTPUTS", str(project / "elsewhere"))
    code, _, shared, files = on_ray.execute_remotely(
        worker.request(run), str(project / "no marker"), {"KDNB_OUTPUTS": "x"}
    )
    assert (code, shared) == (0, False) and not run.plan.folder.exists()
    on_ray.unpack(files, run.plan.folder)
    assert is_finished(run.plan) and read_run(run.plan.folder).results[0]["value"] == "0.2"


def test_a_node_can_write_nowhere_but_into_the_run_folder(project):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(InputError, match="leads out of its run folder"):
        on_ray.unpack(buffer.getvalue(), project / "run")
    assert not (project / "outside.txt").exists()
