"""What a sweep leaves in outputs/sweeps/NAME: results.csv, runs.csv and a report; its runs lie where runs lie."""

import csv
import io
import os

from kdnb.reports.listing import columns
from kdnb.reports.page import build_report
from kdnb.reports.run_files import read_run
from kdnb.reports.sweep_table import rows_to_show, sweep_table, to_csv
from kdnb.runner.sweep import Job, sweep_folder
from kdnb.runner.sweep_files import Sweep
from kdnb.storage.files import atomic_write
from kdnb.storage.paths import outputs_root

_PER_RUN = ("run", "given", "state", "attempts", "seconds", "overhead_seconds", "message")


def write_results(sweep: Sweep, jobs: list[Job]) -> str:
    """Write the tables and the report of a sweep; the text for a terminal.

    Only runs that went through count: those that ended well, and those with a check that does not hold, which are named.

    Raises:
        InputError: results that can't be averaged (`kdnb.reports.sweep_table`).
    """
    folder = sweep_folder(sweep.name)
    atomic_write(folder / "runs.csv", _runs_csv(jobs))
    through = [job for job in jobs if job.state in ("ok", "unexpected")]
    said = [
        f"{job.run.name}: {job.state}{f', {job.message}' if job.message else ''}" for job in jobs if job.state != "ok"
    ]
    if not through:
        return "\n".join([*said, "no run went through: there is no table"])
    lines = sweep_table([read_run(job.run.plan.folder) for job in through], sweep.baseline)
    atomic_write(folder / "results.csv", to_csv(lines))
    page = build_report([job.run.plan.folder for job in through], folder / "report", f"kdnb sweep {sweep.name}")
    files = [folder / "results.csv", folder / "runs.csv", page]
    return "\n".join([columns(rows_to_show(lines)), *said, *map(os.path.relpath, files)])


def _runs_csv(jobs: list[Job]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_PER_RUN)
    for job in jobs:
        run = os.path.relpath(job.run.plan.folder, outputs_root())
        numbers = (job.attempts, f"{job.seconds:.1f}", f"{job.overhead:.1f}" if job.attempts else "")
        writer.writerow([run, job.run.name, job.state, *numbers, job.message])
    return buffer.getvalue().encode()
