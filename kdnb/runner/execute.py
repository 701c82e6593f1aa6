"""Run notebooks headless: everything that can be refused is refused before a kernel starts, everything else is recorded.

    plan = plan("01_teacher", profile="quick", overrides={"epochs": 5})    under a second; InputError if anything is wrong
    outcome = run_notebook(plan)                                           papermill; never raises for what a notebook does

A run folder gets `notebook.ipynb` (as far as it came), `execution.json` (how it ended) and, where the kernel said something outside
the notebook, `kernel.log`. papermill's own status is not used: it calls a notebook completed whose kernel was killed.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdnb.errors import InputError
from kdnb.reports.outcome import Outcome, read_outcome
from kdnb.reports.run_files import read_run
from kdnb.runner.plan import Plan
from kdnb.storage.files import write_record


def run_notebook(plan: Plan, limit: float | None = None, again: bool = True) -> Outcome:
    """Execute a planned notebook and record how it ended.

    Args:
        limit: seconds after which the run is stopped (first interrupted, then killed); None: no limit.
        again: execute also what has ended well before; without it such a run is returned as it is.
    Returns:
        The outcome; a failing notebook is an outcome, not an exception.
    Raises:
        InputError: the run folder can't be written.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run folder can't be made: {error.strerror}") from error
    with _only_runner(plan):
        if not again and (done := _finished(plan)):
            return done
        from kdnb.runner.kernel import Watch, execute

        watch = Watch(plan.notebook, limit)
        record = {
            "notebook": plan.notebook,
            "profile": plan.profile,
            "parameters": plan.parameters,
            "notebook_hash": notebook_hash(plan.path),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        started, outcome = time.monotonic(), Outcome("ok", plan.folder)
        with _Signals(watch) as signals:
            write_record(plan.folder / "execution.json", record | {"status": "running"})
            try:
                signals.interrupting(lambda: execute(plan, watch))
            except BaseException as error:  # a notebook may end in any way; each has its name
                outcome = _classify(error, watch, plan.folder)
            outcome.reused = watch.reused
            watch.close()
            outcome.seconds, outcome.peak_memory_mib = round(time.monotonic() - started, 1), watch.peak_memory_mib
            write_record(plan.folder / "execution.json", record | outcome.entries())
    if watch.stopped and outcome.status == "ok":
        # asked to stop when all was done: the run is whole, its caller must know
        raise KeyboardInterrupt
    return outcome


def is_finished(plan: Plan) -> bool:
    """Whether the run ended well, is still whole, and its notebook is the same."""
    return read_outcome(plan.folder).get("status") == "ok" and not _stale(plan)


def _stale(plan: Plan) -> str:
    """Why a run that ended well must be executed again, empty if it need not."""
    if read_outcome(plan.folder).get("notebook_hash") != notebook_hash(plan.path):
        return "the notebook's code has changed since this run ended"
    if not (plan.folder / "notebook.ipynb").is_file():
        return "the executed notebook is missing"
    return "; ".join(read_run(plan.folder).problems)


def _finished(plan: Plan) -> Outcome | None:
    """The outcome of a finished run; says on stderr why it is run again if it is stale."""
    record = read_outcome(plan.folder)
    if record.get("status") != "ok":
        return None
    if why := _stale(plan):
        print(f"{plan.notebook}: {why}; running it again", file=sys.stderr, flush=True)
        return None
    run = read_run(plan.folder)
    finished = ", commit ".join(filter(None, (record.get("started"), run.record.get("commit"))))
    return Outcome("ok", plan.folder, record["seconds"], record["peak_memory_mib"], finished=finished or "ok")


def _classify(error: BaseException, watch: Any, folder: Path) -> Outcome:
    """The outcome that an exception out of papermill stands for."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from kdnb.runner.kernel import EarlyExit

    outcome = Outcome(
        "failed", folder, cell=watch.cell, source=watch.source, message=f"{type(error).__name__}: {error}".strip(": ")
    )
    if watch.timed_out:
        outcome.status, outcome.message = "timeout", f"stopped after the limit of {watch.limit:g} s"
    elif watch.stopped or isinstance(error, KeyboardInterrupt):
        outcome.status, outcome.message = "interrupted", "stopped from outside"
    elif isinstance(error, EarlyExit) or (isinstance(error, DeadKernelError) and watch.process.poll() == 0):
        outcome.message = "a cell called exit(); the cells after it did not run"
    elif isinstance(error, DeadKernelError):
        outcome.status, outcome.message = "killed", watch.death()
    elif isinstance(error, PapermillExecutionError):
        outcome.cell, outcome.source = error.exec_count, error.source
        outcome.message = f"{error.ename}: {error.evalue}"
        if error.ename == "InputError":
            outcome.status, outcome.message = "bad_input", error.evalue
        elif error.ename == "UnexpectedResult":
            outcome.status, outcome.message = "unexpected", error.evalue
    return outcome


def notebook_hash(path: Path) -> str:
    """First 16 hex digits of the sha256 over the code of a notebook; text and stored outputs don't count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


@contextmanager
def _only_runner(plan: Plan) -> Iterator[None]:
    """One runner at a time writes into a run folder; a second one waits, and then finds most of the work done."""
    lock = FileLock(plan.folder / "execution.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"another process is running {plan.notebook} with these parameters; waiting for it to end",
            file=sys.stderr,
            flush=True,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Signals:
    """SIGTERM and a closed terminal end a run as Ctrl-C does: the kernel is stopped and the ending is recorded, whenever they come.

    Only the work of `interrupting` is cut short, by one `KeyboardInterrupt`; a second signal kills the kernel at once.
    """

    def __init__(self, watch: Any):
        self._watch, self._armed = watch, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs want it
                    self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interrupting(self, work: Callable[[], None]) -> None:
        """Do the work; a signal during it, or before it, raises `KeyboardInterrupt`."""
        try:
            self._armed = True
            if self._watch.stopped:
                raise KeyboardInterrupt
            work()
        finally:
            self._armed = False

    def _arrived(self, number: int, frame: Any) -> None:
        self._watch.stop()
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt
