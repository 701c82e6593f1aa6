"""The kernel behind a headless run: how it is started, watched and, if need be, stopped."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.execute import execute_notebook
from papermill.iorw import papermill_io

from kdnb.progress import describe_reuse
from kdnb.runner.bar import Bar
from kdnb.storage.files import atomic_write
from kdnb.storage.paths import outputs_root

_POLL = 0.5  # seconds between two looks at the kernel
_GRACE = 10.0  # seconds an interrupted kernel has before it is killed
_MAX_SOCKET = 80  # characters; a Unix socket's path has room for about 100
_SCHEME = "kdnb-run:"


class Watch:
    """What is known about a running notebook: the cell it is in, memory, time. A thread of its own looks at the kernel and stops it."""

    def __init__(self, title: str, limit: float | None):
        self.title, self.limit = title, limit
        self.folder = Path(tempfile.mkdtemp(prefix="kdnb-"))  # sockets, progress lines, stderr of the kernel
        self.progress = self.folder / "progress"
        self.process: Any = None
        self.cell: int | None = None
        self.source = ""
        self.peak_memory_mib: int | None = None
        self.timed_out = self.stopped = False
        self._started = time.monotonic()
        self._patience = float("inf")  # when the kernel is killed, on the clock of `_started`
        self._done = threading.Event()
        self.bar = Bar(title, self.progress)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def cell_starts(self, cell: Any, cell_index: int) -> None:
        self.cell, self.source = (self.cell or 0) + 1, cell.source
        self.progress.unlink(missing_ok=True)

    def cell_ends(self, cell: Any, cell_index: int) -> None:
        self._measure()
        self.bar.done += 1

    def stop(self) -> None:
        """End the run on request: the kernel has `_GRACE` seconds; on a second request it is killed at once."""
        if self.stopped:
            self._kill()
        self.stopped, self._patience = True, time.monotonic() + _GRACE

    @property
    def reused(self) -> str:
        """What the kernel took from the cache or went on with, in one line."""
        return describe_reuse(self.progress)

    def close(self) -> None:
        """Stop looking, make sure that nothing of the kernel is left, tidy up."""
        self._done.set()
        self._thread.join()
        self._kill()
        self.bar.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def death(self) -> str:
        """Why the kernel process is gone, in one sentence."""
        code = self.process.poll() if self.process else None
        memory = f"; its memory had reached {self.peak_memory_mib} MiB" if self.peak_memory_mib else ""
        if code is None or code >= 0:
            return f"the kernel ended by itself{'' if code is None else f' with exit code {code}'}{memory}"
        name = signal.Signals(-code).name
        cause = ", often for lack of memory (a smaller batch_size may help)" if name == "SIGKILL" else ""
        return f"the kernel was killed by {name}{cause}{memory}"

    def _look(self) -> None:
        while not self._done.wait(_POLL):
            self._measure()
            now = time.monotonic()
            if self.limit is not None and now - self._started > self.limit and self.process and not self.timed_out:
                self.timed_out, self._patience = True, now + _GRACE
                self.process.send_signal(signal.SIGINT)
            if now > self._patience:
                self._kill()

    def _measure(self) -> None:
        """High-water mark of the kernel's resident memory, where the system tells."""
        try:
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_memory_mib = int(line.split()[1]) // 1024
        except (OSError, AttributeError):  # no kernel yet or any more, or no /proc
            pass

    def _kill(self) -> None:
        """The kernel leads a process group of its own; its children go with it."""
        if self.process is not None and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError, AttributeError):
                self.process.kill()


def kernel_class(watch: Watch, environment: dict[str, str], cwd: Path) -> type[AsyncKernelManager]:
    """A kernel manager for one run.

    The kernel is the interpreter that runs this code, whatever kernel specs a user has installed. It speaks over Unix sockets in a
    folder of its own: TCP ports are chosen before the kernel binds them, so that kernels started at once take each other's.
    """

    class Kernel(AsyncKernelManager):
        def __init__(self, **kwargs: Any):
            super().__init__(connection_file=str(watch.folder / "k.json"), **kwargs)
            if os.name == "posix" and len(str(watch.folder)) <= _MAX_SOCKET:
                self.transport = "ipc"

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
            )

        async def _async_pre_start_kernel(self, **kwargs: Any):
            kwargs |= {"env": environment, "cwd": str(cwd), "stderr": open(watch.folder / "kernel.log", "ab")}
            return await super()._async_pre_start_kernel(**kwargs)

        async def _async_post_start_kernel(self, **kwargs: Any) -> None:
            provisioner: Any = self.provisioner  # a local one, which has a process
            watch.process = provisioner.process
            await super()._async_post_start_kernel(**kwargs)

    return Kernel


class _WholeNotebooks:
    """Where papermill saves after every cell: whole files only, and without papermill's metadata, whose status can't be trusted."""

    def write(self, text: str, path: str) -> None:
        notebook = json.loads(text)
        for holder in (notebook, *notebook["cells"]):
            holder["metadata"].pop("papermill", None)
        atomic_write(
            Path(path.removeprefix(_SCHEME)), (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        )

    def pretty_path(self, path: str) -> str:
        return path.removeprefix(_SCHEME)


@cache
def _set_up_papermill() -> None:
    """papermill writes through `_WholeNotebooks`, and says nothing on stderr: what it would say is in the outcome."""
    papermill_io.register(_SCHEME, _WholeNotebooks())
    logging.getLogger("papermill").setLevel(logging.CRITICAL)


def environment_for(plan: Any, watch: Watch) -> dict[str, str]:
    found = dict(os.environ) | {
        "KDNB_PROFILE": plan.profile,
        "KDNB_RUN": str(plan.folder),
        "KDNB_OUTPUTS": str(outputs_root()),
        "KDNB_PROGRESS": str(watch.progress),
    }
    if threads := plan.parameters.get("threads"):
        found |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return found


def execute(plan: Any, watch: Watch) -> None:
    """Run all cells; raises what papermill and nbclient raise, and `EarlyExit` for a notebook that left by `sys.exit(0)`."""
    _set_up_papermill()
    notebook = nbformat.read(plan.path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    watch.bar.total = len(code) + bool(plan.changed)
    target = str(plan.folder / "notebook.ipynb").replace("{", "{{").replace("}", "}}")  # papermill formats paths
    try:
        done = execute_notebook(
            notebook,
            _SCHEME + target,
            parameters=plan.changed,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=120,
            iopub_timeout=60,
            kernel_manager_class=kernel_class(watch, environment_for(plan, watch), plan.path.parent),
            on_cell_execute=watch.cell_starts,
            on_cell_complete=watch.cell_ends,
        )
    finally:
        _keep_log(watch.folder / "kernel.log", plan.folder / "kernel.log")
    if any(output.output_type == "error" for cell in done.cells for output in cell.get("outputs", [])):
        raise EarlyExit


class EarlyExit(Exception):
    """papermill takes `sys.exit(0)` in a cell for success; the cells after it did not run."""


def _keep_log(log: Path, target: Path) -> None:
    """What the kernel process wrote outside the notebook (a fatal error, a library's complaint), if anything."""
    target.unlink(missing_ok=True)
    if log.is_file() and log.stat().st_size:
        shutil.copyfile(log, target)
