"""The runs of a sweep on a Ray cluster: Ray schedules them, gives each its CPUs and GPUs, and starts again what is lost.

A run asks for as many CPUs as its `threads`, one at least, and for one GPU if its device is a CUDA one. Where a node sees the outputs of
this machine under the same path, it works in them, and a run that lost its worker or node goes on from its last checkpoint. Elsewhere a
node uses outputs of its own: a run that moves to another node starts from the beginning, and its folder is copied here when it has ended.
"""

import io
import json
import os
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from kdnb.errors import InputError
from kdnb.reports.outcome import EXIT_CODES
from kdnb.runner.plan import plan
from kdnb.runner.sweep import LOST, RETRIES, Job
from kdnb.runner.worker import command, environment, request
from kdnb.storage.files import atomic_write
from kdnb.storage.paths import outputs_root

_POLL = 0.5  # seconds of a wait for the next run to end
_GRACE = 30.0  # seconds that cancelled runs have to record their ending
_FAR = ("KDNB_NOTEBOOKS", "KDNB_PARAMS", "KDNB_DATA", "KDNB_CACHE", "KDNB_QUIET")  # settings that go with the outputs


class Ended(NamedTuple):
    """What comes back from a node.

    Attributes:
        code: the exit code of the run.
        seconds: that its process took.
        shared: whether the node works in our outputs.
        files: the run folder, packed, where it does not.
    """

    code: int
    seconds: float
    shared: bool
    files: bytes


class Lost(Exception):
    """The kernel or the runner was killed: reason to try again."""


class RayWorkers:
    """A Ray cluster as the workers of `kdnb.runner.sweep.run_sweep`.

    Args:
        address: as `ray.init` takes it, `auto` for the cluster this machine is part of; `local` for one of this machine alone.
        limit, again: as `run_notebook`.
        cpus: of a local cluster; None: all.
    Raises:
        InputError: no Ray, or no cluster at this address.
    """

    retries, state = 0, "given out"  # Ray retries and starts

    def __init__(self, address: str, limit: float | None = None, again: bool = False, cpus: int | None = None):
        self._ray = _connected(address, cpus)
        self._limit, self._again = limit, again
        self.count = max(int(self._ray.cluster_resources().get("CPU", 1)), 1)
        self._running: dict[Any, Job] = {}
        self._said: set[bool] = set()
        self._marker = outputs_root() / "sweeps" / f".seen-{uuid.uuid4().hex}"
        atomic_write(self._marker, b"")
        self._task = self._ray.remote(max_retries=RETRIES, retry_exceptions=[Lost])(execute_remotely)

    def free(self) -> bool:
        return True

    def start(self, job: Job) -> None:
        needs = _needs(job)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
            wanted = " and ".join(f"{amount} {name}" for name, amount in needs.items() if amount)
            raise InputError(f"no node of this cluster has {wanted}, which {job.run.name} asks for")
        settings = {name: os.environ[name] for name in _FAR if name in os.environ}
        settings |= {"KDNB_OUTPUTS": str(outputs_root())}
        task = self._task.options(num_cpus=needs["CPU"], num_gpus=needs["GPU"], name=job.run.name)
        self._running[task.remote(request(job.run, self._limit, self._again), str(self._marker), settings)] = job

    def ended(self) -> list[tuple[Job, int, float]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_POLL)
        jobs = [self._running.pop(reference) for reference in ready]
        return [(job, *self._result(reference, job)) for reference, job in zip(ready, jobs, strict=True)]

    def _result(self, reference: Any, job: Job) -> tuple[int, float]:
        try:
            found = Ended(*self._ray.get(reference))
        except (self._ray.exceptions.RayError, Lost) as error:
            job.message = f"lost {RETRIES + 1} times, at last: {' '.join(str(error).split())[:200]}"
            return EXIT_CODES["killed"], 0.0
        if found.shared not in self._said:
            self._said.add(found.shared)
            words = (
                "nodes work in these outputs: what is lost goes on from its last checkpoint"
                if found.shared
                else "nodes have outputs of their own: what is lost starts anew, and results are copied here"
            )
            print(words, file=sys.stderr, flush=True)
        if not found.shared:
            unpack(found.files, job.run.plan.folder)
        return found.code, found.seconds

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_GRACE)
        self._running.clear()
        self._marker.unlink(missing_ok=True)
        self._ray.shutdown()


def _connected(address: str, cpus: int | None) -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("--address needs Ray, which is not installed: uv sync --extra ray") from None
    own = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    search = environment()["PYTHONPATH"]
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": search}},
            **own,
        )
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:200]}") from None
    return ray


def _needs(job: Job) -> dict[str, int]:
    parameters = job.run.plan.parameters
    gpu = str(parameters.get("device", "cpu")).startswith("cuda")
    return {"CPU": max(int(parameters.get("threads", 1)), 1), "GPU": int(gpu)}


def execute_remotely(asked: str, marker: str, settings: dict[str, str]) -> tuple[int, float, bool, bytes]:
    """On a node: the run in a process of its own.

    Args:
        asked: as `kdnb.runner.worker.request`.
        marker: a file in the outputs of the machine that the sweep was started on.
        settings: KDNB variables of that machine; they hold where the marker is seen.
    Returns:
        The fields of `Ended`.
    Raises:
        Lost: the runner or its kernel was killed.
    """
    shared, started = os.path.exists(marker), time.monotonic()
    own = environment() | (settings if shared else {})
    process = subprocess.Popen(
        command(asked), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own
    )
    try:
        code = process.wait()
    except BaseException:  # cancelled
        process.terminate()
        process.wait(_GRACE)
        raise
    names = {number: name for name, number in EXIT_CODES.items()}
    if names.get(code, "killed") in LOST:
        raise Lost(f"the run ended with exit code {code}")
    return code, time.monotonic() - started, shared, b"" if shared else _packed(asked)


def _packed(asked: str) -> bytes:
    """The run folder on this node as a zip archive, without the checkpoints of its progress and locks."""
    values = json.loads(asked)
    folder = plan(values["experiment"], values["profile"], values["overrides"]).folder
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] != "progress" and "lock" not in path.name:
                archive.write(path, inside.as_posix())
    return buffer.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Write the files that a node sent into a run folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"a node sent a file that leads out of its run folder: {name}")
            atomic_write(target, archive.read(name))
