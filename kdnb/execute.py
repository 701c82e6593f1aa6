"""Run notebooks headless: everything that can be refused is refused before a kernel starts, everything else is recorded.

    plan = execute.plan("01_teacher", profile="quick", overrides={"epochs": 5})    under a second; InputError if anything is wrong
    outcome = execute.run_notebook(plan)                                           papermill; never raises for what a notebook does

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdnb.errors import InputError
from kdnb.files import read_record, write_record
from kdnb.planning import Plan
from kdnb.planning import plan as plan

EXIT_CODES = {"ok": 0, "failed": 1, "bad_input": 2, "killed": 4, "timeout": 5, "interrupted": 130}


@dataclass
class Outcome:
    """How a run ended; the content of execution.json.

    Attributes:
        status: ok, bad_input, failed, killed (the kernel died), timeout or interrupted.
        seconds, peak_memory_mib: of this execution; memory of the kernel process.
        cell, source: number and source of the cell it ended in, where it did not end well.
        message: one sentence on what went wrong.
    """

    status: str
    folder: Path
    seconds: float = 0.0
    peak_memory_mib: int | None = None
    cell: int | None = None
    source: str = ""
    message: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    @property
    def next_step(self) -> str:
        if self.status == "ok":
            return ""
        if self.status == "bad_input":
            return "correct the input and run again"
        if self.status == "failed":
            return "look at notebook.ipynb in the run folder; once the cause is gone, the same command continues from the last checkpoint"
        return "run the same command again; it continues from the last checkpoint"

    def describe(self) -> str:
        """A few lines for a terminal."""
        if self.status == "ok":
            return f"ok in {self.seconds:.0f} s, peak memory {self.peak_memory_mib or '?'} MiB"
        if self.status == "bad_input":
            return self.message
        quoted = "".join(f"\n    | {line}" for line in self.source.splitlines()[:12])
        place = f" in cell [{self.cell}]:{quoted}" if self.cell else ""
        return f"{self.status} after {self.seconds:.0f} s{place}\n  {self.message}\n  next: {self.next_step}"


def run_notebook(plan: Plan, limit: float | None = None) -> Outcome:
    """Execute a planned notebook and record how it ended.

    Args:
        limit: seconds after which the run is stopped (first interrupted, then killed); None: no limit.
    Returns:
        The outcome; a failing notebook is an outcome, not an exception.
    Raises:
        InputError: the run folder can't be written.
    """
    from kdnb.kernel import Watch, execute

    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run folder can't be made: {error.strerror}") from error
    with _only_runner(plan), _terminate_as_interrupt():
        record = {
            "notebook": plan.notebook,
            "profile": plan.profile,
            "parameters": plan.parameters,
            "notebook_hash": notebook_hash(plan.path),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_record(plan.folder / "execution.json", record | {"status": "running"})
        started = time.monotonic()
        watch = Watch(plan.notebook, limit)
        try:
            outcome = Outcome("ok", plan.folder)
            execute(plan, watch)
        except BaseException as error:  # a notebook may end in any way; each has its name
            outcome = _classify(error, watch, plan.folder)
        finally:
            watch.close()
        outcome.seconds, outcome.peak_memory_mib = round(time.monotonic() - started, 1), watch.peak_memory_mib
        ending = {
            "status": outcome.status,
            "exit_code": outcome.exit_code,
            "seconds": outcome.seconds,
            "peak_memory_mib": outcome.peak_memory_mib,
            "cell": outcome.cell,
            "source": outcome.source,
            "message": outcome.message,
            "next": outcome.next_step,
        }
        write_record(plan.folder / "execution.json", record | ending)
    return outcome


def _classify(error: BaseException, watch: Any, folder: Path) -> Outcome:
    """The outcome that an exception out of papermill stands for."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from kdnb.kernel import EarlyExit

    outcome = Outcome(
        "failed", folder, cell=watch.cell, source=watch.source, message=f"{type(error).__name__}: {error}".strip(": ")
    )
    if watch.timed_out:
        outcome.status, outcome.message = "timeout", f"stopped after the limit of {watch.limit:g} s"
    elif isinstance(error, KeyboardInterrupt):
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
    return outcome


def notebook_hash(path: Path) -> str:
    """First 16 hex digits of the sha256 over the code of a notebook; text and stored outputs don't count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def read_outcome(folder: Path) -> dict[str, Any]:
    """What execution.json says, {} without a whole one; a run that is recorded as running by a process that is gone was killed."""
    try:
        record = read_record(folder / "execution.json")
    except InputError:
        return {}
    if record.get("status") == "running" and not _alive(record.get("pid", 0)):
        record |= {"status": "killed", "exit_code": EXIT_CODES["killed"], "message": "the runner was killed"}
    return record


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, so there is one
        return True
    return pid > 0


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


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that it is recorded and the kernel is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
