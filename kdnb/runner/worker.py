"""One run in a process of its own, as a sweep starts it: `python -m kdnb.runner.worker REQUEST`, REQUEST being JSON.

Standard input is a lifeline: where it closes, the sweep is gone, and the run is stopped as by SIGTERM, so that it can go on later.
The exit code is that of `inv run`.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

from kdnb.errors import InputError
from kdnb.reports.outcome import EXIT_CODES, Outcome
from kdnb.reports.page import write_run_page
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import Plan, plan
from kdnb.runner.sweep_files import SweepRun
from kdnb.storage.paths import PROJECT


def execute_plan(planned: Plan, limit: float | None = None, again: bool = False) -> Outcome:
    """Execute a planned run, unless it has finished, and write its report."""
    outcome = run_notebook(planned, limit, again)
    write_run_page(outcome.folder)
    return outcome


def request(run: SweepRun, limit: float | None = None, again: bool = False) -> str:
    """What a worker is told: all parameters as they were resolved, so that it plans the same run wherever it stands."""
    asked = {"experiment": run.experiment, "profile": run.profile, "overrides": run.plan.parameters}
    return json.dumps(asked | {"limit": limit, "again": again})


def command(asked: str) -> list[str]:
    """The command line that executes a request."""
    return [sys.executable, "-m", "kdnb.runner.worker", asked]


def environment() -> dict[str, str]:
    """That of this process, with this checkout first where modules are looked for."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}


def main(request: dict[str, Any]) -> int:
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    try:
        planned = plan(request["experiment"], request["profile"], request["overrides"])
        outcome = execute_plan(planned, request["limit"], request["again"])
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_CODES["bad_input"]
    except KeyboardInterrupt:
        return EXIT_CODES["interrupted"]
    print(outcome.describe(), file=sys.stderr)
    return outcome.exit_code


def _stop_with_the_sweep() -> None:
    while os.read(0, 1):  # nothing is ever written: this returns when the other end is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
