"""Sweeps on a Ray cluster of two nodes on this machine: workers are killed, a node is taken away, and the table is that of a serial run."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kdnb.errors import InputError
from kdnb.runner.on_ray import RayWorkers
from kdnb.runner.plan import plan
from kdnb.runner.sweep import exit_code, run_sweep, sweep_folder
from kdnb.runner.sweep_files import read_sweep
from kdnb.runner.sweep_results import write_results
from kdnb.runner.worker import execute_plan

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
cluster_utils = pytest.importorskip("ray.cluster_utils")

FIXTURES = Path(__file__).parent.parent / "notebooks"
EVERY, MOST = 5.0, 12  # seconds between two killed workers, and how many

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
    monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two nodes with one each, so that runs are on nodes that can be taken away."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")
    head = {"num_cpus": 0, "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


def workers_at_work() -> dict[str, int]:
    """Processes of Ray that execute a run, by the run's name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::quick/"):
            found[title] = int(path.parent.name)
    return found


class Killer(threading.Thread):
    """Kills a worker every few seconds, at most one of each run and a dozen in all; after half of them it takes a node away."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self._cluster, self.done, self.killed, self.removed = cluster, threading.Event(), set(), False

    def run(self):
        while not self.done.wait(EVERY) and len(self.killed) < MOST:
            new = {name: pid for name, pid in workers_at_work().items() if name not in self.killed}
            if new:
                name, pid = new.popitem()
                os.kill(pid, signal.SIGKILL)
                self.killed.add(name)
            if len(self.killed) == MOST // 2 and not self.removed:
                self._cluster.remove_node(self._cluster.nodes[0], allow_graceful=False)
                self.removed = True


def test_killed_workers_and_a_lost_node_change_nothing_in_the_table(project, cluster, monkeypatch, record_property):
    text = "baseline: {epochs: 3}\nnotebook: steps\ngrid: {epochs: [3, 4, 5], seed: [0, 1, 2, 3, 4, 5, 6, 7]}"
    (project / "many.yaml").write_text(text)
    found = read_sweep(str(project / "many.yaml"))
    assert len(found.runs) == 24
    killer = Killer(cluster)
    killer.start()
    jobs = run_sweep(found, RayWorkers(cluster.address), show=True)
    killer.done.set()
    killer.join()
    assert [job.state for job in jobs] == ["ok"] * 24 and exit_code(jobs) == 0
    assert len(killer.killed) == MOST and killer.removed
    record_property("Ray workers killed", MOST)
    write_results(found, jobs)
    table = (sweep_folder("many") / "results.csv").read_text()

    monkeypatch.setenv("KDNB_OUTPUTS", str(project / "serial"))
    serial = read_sweep(str(project / "many.yaml"))
    for run, job in zip(serial.runs, jobs, strict=True):
        assert execute_plan(run.plan).status == "ok"
        job.run = run
    write_results(serial, jobs)
    assert (sweep_folder("many") / "results.csv").read_text() == table


def test_a_run_that_loses_its_runner_goes_on_from_its_checkpoint(project, cluster, capfd):
    (project / "one.yaml").write_text("notebook: steps\nlist: [{epochs: 5, repeats: 2}]")
    jobs = run_sweep(read_sweep(str(project / "one.yaml")), RayWorkers(cluster.address))
    assert jobs[0].state == "ok" and "goes on from its last checkpoint" in capfd.readouterr().err
    assert (plan("steps", overrides={"epochs": 5, "repeats": 2}).folder / "steps.txt").read_text().split() == list(
        "01234"
    )


def test_a_gpu_that_no_node_has_is_said_before_the_run(project, cluster):
    (project / "one.yaml").write_text("notebook: fine\nlist: [{threads: 64}]")
    with pytest.raises(InputError, match="no node of this cluster has 64 CPU, which quick/fine threads=64 asks for"):
        run_sweep(read_sweep(str(project / "one.yaml")), RayWorkers(cluster.address))


def test_from_the_command_line_on_a_cluster_of_this_machine(project):
    (project / "one.yaml").write_text("notebook: checks\ngrid: {epochs: [1, 2]}")
    root = Path(__file__).parents[2]
    words = ["sweep", str(project / "one.yaml"), "--workers", "2", "--address", "local"]
    call = [sys.executable, "-m", "invoke", "--search-root", str(root), *words]
    done = subprocess.run(call, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epochs=1" in done.stdout and "20.0 %" in done.stdout and "nodes work in these outputs" in done.stderr
