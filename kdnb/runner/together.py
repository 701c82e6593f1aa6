"""One run on several devices: what it trains is made ahead by several processes, then its notebook finds that in the cache.

The processes are subprocesses of a plain module (`kdnb.studies.ahead`), never forks of a kernel that holds a device. They train by the
recipe as it stands (`kdnb.processes`), so the number of processes is no part of it. If one ends before its time, the others are ended too,
and the last checkpoint stays.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kdnb.errors import InputError
from kdnb.runner.plan import Plan
from kdnb.runner.worker import environment

NOTEBOOKS = ("01_teacher", "04_distillation")  # as kdnb.studies.ahead.AHEAD, which imports torch
_POLL = 0.2  # seconds between two looks
_LAST_WORDS = 2000  # characters of what a process said at last


def make_ahead(plan: Plan, count: int) -> str:
    """Train a run's networks in `count` processes, rank r on device cuda:r where the run's device is a CUDA one.

    Returns:
        Nothing if all ended well, else one sentence on the process that did not.
    Raises:
        InputError: a notebook whose training isn't divided, or batches with fewer images than processes.
    """
    _check(plan, count)
    request = json.dumps({"notebook": plan.notebook, "parameters": plan.parameters})
    threads = plan.parameters.get("threads")
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}

    def command(rank: int, meeting_point: Path) -> list[str]:
        return [sys.executable, "-m", "kdnb.studies.ahead", request, str(rank), str(count), str(meeting_point)]

    return run_together(command, count, own)


def _check(plan: Plan, count: int) -> None:
    if plan.notebook not in NOTEBOOKS:
        raise InputError(f"--processes is for {' and '.join(NOTEBOOKS)}; {plan.notebook} runs in one process")
    if plan.parameters["batch_size"] < count:
        raise InputError(f"a batch of {plan.parameters['batch_size']} images can't be divided among {count} processes")
    if plan.parameters["device"] == "mps":
        raise InputError("--processes is for cpu and cuda; there is one mps device")


def run_together(command: Callable[[int, Path], list[str]], count: int, own: dict[str, str] | None = None) -> str:
    """Start processes that need each other; the first that fails, and Ctrl-C, end them all.

    Args:
        command: of a rank and of the path where they meet.
        own: environment variables of theirs.
    Returns:
        Nothing if all ended well, else one sentence on the first that did not.
    """
    with tempfile.TemporaryDirectory(prefix="kdnb-") as folder:
        members: list[subprocess.Popen] = []
        try:
            for rank in range(count):
                with open(Path(folder) / f"{rank}.log", "wb") as log:
                    members.append(
                        subprocess.Popen(
                            command(rank, Path(folder) / "meeting"),
                            stdin=subprocess.PIPE,
                            stdout=log,
                            stderr=log,
                            env=environment() | (own or {}),
                        )
                    )
            while (codes := [member.poll() for member in members]).count(0) < count and not any(codes):
                time.sleep(_POLL)
        finally:
            for member in members:
                member.kill()
                member.wait()
                member.stdin.close()  # type: ignore[union-attr]
        gone = next((rank for rank, code in enumerate(codes) if code), None)
        return "" if gone is None else _sentence(gone, codes[gone] or 0, Path(folder) / f"{gone}.log")


def _sentence(rank: int, code: int, log: Path) -> str:
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        words = log.read_text(errors="replace")[-_LAST_WORDS:].strip().splitlines()
        how = f"ended with {words[-1] if words else f'exit code {code}'}"
    return f"process {rank} {how}; the others were ended, and the same command goes on from the last checkpoint"
