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
from pathlib import Path

from kdnb.errors import InputError
from kdnb.runner.plan import Plan
from kdnb.runner.worker import environment

NOTEBOOKS = ("01_teacher", "04_distillation")  # as kdnb.studies.ahead.AHEAD, which imports torch
_POLL = 0.2  # seconds between two looks
_LAST_WORDS = 2000  # characters of what a process said at last


def check(plan: Plan, count: int) -> None:
    """Refuse what can't be trained by so many processes.

    Raises:
        InputError: a notebook whose training isn't divided, or batches with fewer images than processes.
    """
    if plan.notebook not in NOTEBOOKS:
        raise InputError(f"--processes is for {' and '.join(NOTEBOOKS)}; {plan.notebook} runs in one process")
    if plan.parameters["batch_size"] < count:
        raise InputError(f"a batch of {plan.parameters['batch_size']} images can't be divided among {count} processes")
    if plan.parameters["device"] == "mps":
        raise InputError("--processes is for cpu and cuda; there is one mps device")


def make_ahead(plan: Plan, count: int) -> str:
    """Train a run's networks in `count` processes, rank r on device cuda:r where the run's device is a CUDA one.

    Returns:
        Nothing if all ended well, else one sentence on the process that did not.
    """
    check(plan, count)
    request = json.dumps({"notebook": plan.notebook, "parameters": plan.parameters})
    with tempfile.TemporaryDirectory(prefix="kdnb-") as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(count)]
        members = []
        try:
            for rank, log in enumerate(logs):
                arguments = [request, str(rank), str(count), str(Path(folder) / "meeting")]
                with open(log, "wb") as output:
                    command = [sys.executable, "-m", "kdnb.studies.ahead", *arguments]
                    members.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.PIPE,
                            stdout=output,
                            stderr=output,
                            env=environment() | _threads(plan),
                        )
                    )
            while any(member.poll() is None for member in members) and not any(member.poll() for member in members):
                time.sleep(_POLL)
            codes = [member.poll() for member in members]
        finally:
            for member in members:
                member.kill()
                member.wait()
                member.stdin.close()  # type: ignore[union-attr]
        gone = next((rank for rank, code in enumerate(codes) if code), None)
        return "" if gone is None else _sentence(gone, codes[gone] or 0, logs[gone])


def _threads(plan: Plan) -> dict[str, str]:
    threads = plan.parameters.get("threads")
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}


def _sentence(rank: int, code: int, log: Path) -> str:
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        words = log.read_text(errors="replace")[-_LAST_WORDS:].strip().splitlines()
        how = f"ended with {words[-1] if words else f'exit code {code}'}"
    return f"process {rank} {how}; the others were ended, and the same command goes on from the last checkpoint"
