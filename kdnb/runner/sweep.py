"""A sweep on this machine: worker processes side by side, each with one run; what is lost is started again.

    jobs = run_sweep(read_sweep("digits_methods"), LocalWorkers(2))

A run that has finished is not repeated. A run whose worker or kernel was killed is given out again, `RETRIES` times, and goes on from its
last checkpoint. A run that fails does not stop the others. Teachers and priors that several runs need are made once: the first run of each
is given out first, and the lock of the artifact cache makes the others wait for what is being made.
"""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from kdnb.errors import InputError
from kdnb.reports.outcome import EXIT_CODES, read_outcome
from kdnb.runner.board import Board
from kdnb.runner.execute import is_finished
from kdnb.runner.sweep_files import Sweep, SweepRun
from kdnb.runner.worker import command, environment, request
from kdnb.storage.naming import canonical
from kdnb.storage.paths import outputs_root

RETRIES = 3  # of a run whose worker, kernel or node is gone
LOST = ("killed", "interrupted")  # endings that say nothing about the run itself
_POLL = 0.2  # seconds between two looks at the workers
_GRACE = 30.0  # seconds a worker has to stop its kernel and record the ending
# what runs share in the cache is made from these
_SHARED = (
    "teacher",
    "model",
    "judge",
    "teachers",
    "dataset",
    "image_size",
    "prior",
    "prior_domain",
    "prior_steps",
    "seed",
)


@dataclass
class Job:
    """A run of a sweep on its way.

    Attributes:
        state: waiting, running (given out, where others start it), or the status it ended with.
        started: when it was given out last, seconds of the monotonic clock.
        attempts: how often it was given to a worker.
        seconds: of the execution that ended it, as in its execution.json.
        overhead: further seconds that its worker took: start, imports, report.
        message: of a run that did not end well, one sentence.
    """

    run: SweepRun
    state: str = "waiting"
    attempts: int = 0
    started: float = 0.0
    seconds: float = 0.0
    overhead: float = 0.0
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running", "given out")


class Workers(Protocol):
    """Where runs are executed."""

    count: int  # runs at once
    retries: int  # of a lost run, by being given out again
    state: str  # of what was given out: "running", or "given out" where it may have to wait

    def free(self) -> bool:
        """Whether another run may be given out."""

    def start(self, job: Job) -> None: ...

    def ended(self) -> list[tuple[Job, int, float]]:
        """The runs that ended since the last call, with exit code and seconds of their workers; waits a moment for some."""

    def stop(self) -> None:
        """End whatever still runs; those runs record that they were interrupted."""


class LocalWorkers:
    """Worker processes of this machine.

    Args:
        count: runs at once.
        gpus: devices that workers take in turn, one each; 0: what CUDA_VISIBLE_DEVICES says holds for all.
        logs: folder for what the workers print.
        limit, again: as `run_notebook`.
    """

    retries, state = RETRIES, "running"

    def __init__(self, count: int, gpus: int = 0, logs: Path | None = None, limit: float | None = None, again=False):
        self.count, self._gpus, self._logs, self._limit, self._again = count, gpus, logs, limit, again
        self._running: dict[int, tuple[Job, subprocess.Popen]] = {}  # by place

    def free(self) -> bool:
        return len(self._running) < self.count

    def start(self, job: Job) -> None:
        place = next(place for place in range(self.count) if place not in self._running)
        device = {"CUDA_VISIBLE_DEVICES": str(place % self._gpus)} if self._gpus else {}
        log: Any = subprocess.DEVNULL
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            log = open(self._logs / f"{'-'.join(job.run.plan.folder.parts[-3:])}.log", "ab")
        process = subprocess.Popen(
            command(request(job.run, self._limit, self._again)),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment() | device,
            start_new_session=True,  # Ctrl-C is ours to hand on
        )
        if log != subprocess.DEVNULL:
            log.close()
        self._running[place] = job, process

    def ended(self) -> list[tuple[Job, int, float]]:
        time.sleep(_POLL)
        gone = [place for place, (_, process) in self._running.items() if process.poll() is not None]
        found = [self._running.pop(place) for place in gone]
        for _, process in found:
            process.stdin.close()  # type: ignore[union-attr]
        return [(job, process.returncode, time.monotonic() - job.started) for job, process in found]

    def stop(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for _, process in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def run_sweep(sweep: Sweep, workers: Workers, again: bool = False, show: bool = False) -> list[Job]:
    """Execute all runs of a sweep that have not finished.

    Args:
        again: execute also those that have.
        show: the states on stderr.
    Returns:
        A job for each run, in the order of the file. Where the sweep was stopped (Ctrl-C, SIGTERM) some are left "waiting" or
        "interrupted"; the same call goes on with them.
    Raises:
        InputError: another process works on this sweep.
    """
    jobs = [Job(run) for run in sweep.runs]
    board = Board(jobs, workers.count, silent=not show)
    with _alone(sweep), _stoppable():
        for job in jobs:
            if not again and is_finished(job.run.plan):
                job.state = "ok"
                job.seconds = read_outcome(job.run.plan.folder).get("seconds", 0.0)
        board.begins()
        waiting, running = firsts_first([job for job in jobs if not job.ended]), 0
        try:
            while waiting or running:
                while waiting and workers.free():
                    _give_out(waiting.pop(0), workers, board)
                    running += 1
                for job, code, seconds in workers.ended():
                    running -= 1
                    _close(job, code, seconds)
                    if job.state in LOST and job.attempts <= workers.retries:
                        board.changed(job, f"lost ({job.message}); it goes on from its last checkpoint")
                        job.state = "waiting"
                        waiting.insert(0, job)
                    else:
                        board.changed(job)
                board.draw()
        except KeyboardInterrupt:
            for job in jobs:
                job.state = "interrupted" if job.state == workers.state else job.state
        finally:
            workers.stop()
            board.close()
    return jobs


def _give_out(job: Job, workers: Workers, board: Board) -> None:
    job.state, job.started, job.attempts, job.message = workers.state, time.monotonic(), job.attempts + 1, ""
    workers.start(job)
    board.changed(job)


def _close(job: Job, code: int, seconds: float) -> None:
    """What became of a run whose worker ended: what execution.json says, unless the worker was killed before it wrote that."""
    record = read_outcome(job.run.plan.folder)
    names = {number: name for name, number in EXIT_CODES.items()}
    job.state = names.get(code, "killed")
    if record.get("exit_code") == code:
        job.message, job.seconds = record.get("message", ""), float(record.get("seconds", 0.0))
        job.overhead = max(seconds - job.seconds, 0.0)
    if code and not job.message:
        job.message = f"the worker was killed by {signal.Signals(-code).name}" if code < 0 else "see its log"


def firsts_first(jobs: list[Job]) -> list[Job]:
    """The first run of each set that shares teachers and priors before the others: what is shared is made while nobody waits for it."""
    seen: Counter = Counter()
    order = []
    for job in jobs:
        parameters = job.run.plan.parameters
        key = canonical({name: parameters[name] for name in _SHARED if name in parameters})
        order.append((seen[key] > 0, job))
        seen[key] += 1
    return [job for _, job in sorted(order, key=lambda pair: pair[0])]


def exit_code(jobs: list[Job]) -> int:
    """0 all ended well; 130 the sweep was stopped; 1 some run failed, was lost for good or ran too long; 6 only checks do not hold."""
    states = {job.state for job in jobs}
    if states & {"waiting", "interrupted"}:
        return EXIT_CODES["interrupted"]
    if states - {"ok", "unexpected"}:
        return EXIT_CODES["failed"]
    return EXIT_CODES["unexpected"] if "unexpected" in states else 0


def sweep_folder(name: str) -> Path:
    """outputs/sweeps/NAME: the tables, the report and the logs of a sweep; its runs lie where runs lie."""
    return outputs_root() / "sweeps" / name


@contextmanager
def _alone(sweep: Sweep) -> Iterator[None]:
    folder = sweep_folder(sweep.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the sweep's folder can't be made: {error.strerror}") from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is working on the sweep {sweep.name}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal are Ctrl-C; a second one while workers are being stopped changes nothing."""
    before: dict[int, Any] = {}
    arrived: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if not arrived:
            arrived.append(number)
            print("stopping: runs are interrupted and go on with the next `inv sweep`", file=sys.stderr, flush=True)
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
