"""What a sweep will take, from what its runs took before: `inv plan`."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kdnb.errors import InputError
from kdnb.reports.listing import columns
from kdnb.reports.run_files import RunFiles, experiment_of, find_runs, read_run
from kdnb.runner.execute import is_finished
from kdnb.runner.plan import Plan
from kdnb.runner.sweep_files import Sweep
from kdnb.storage.files import read_record
from kdnb.storage.paths import outputs_root


class Cost(NamedTuple):
    """What one run takes.

    Attributes:
        seconds: of its execution.
        bytes: of its folder.
        source: where both are from, in words.
    """

    seconds: float
    bytes: float
    source: str


class Costs:
    """What runs took that are on this machine, by profile and notebook; each profile is read once."""

    def __init__(self) -> None:
        self._runs: dict[str, list[RunFiles]] = {}

    def of(self, plan: Plan) -> Cost | None:
        """The mean of finished runs that differ in the seed alone, else of all of this notebook and profile, else of its rehearsal."""
        if plan.profile not in self._runs:
            found = map(read_run, find_runs(plan.profile))
            self._runs[plan.profile] = [run for run in found if run.outcome.get("status") in ("ok", "unexpected")]
        siblings = [run for run in self._runs[plan.profile] if run.notebook == plan.notebook]
        same = [run for run in siblings if run.experiment == experiment_of(plan.parameters)]
        for runs, which in ((same, "with other seeds"), (siblings, "of this notebook and profile")):
            if runs:
                seconds = statistics.fmean(run.outcome["seconds"] for run in runs)
                size = statistics.fmean(map(folder_size, (run.folder for run in runs)))
                return Cost(seconds, size, f"{len(runs)} run{'s' * (len(runs) > 1)} {which}")
        return _rehearsed(plan)


def _rehearsed(plan: Plan) -> Cost | None:
    records = (outputs_root() / "rehearsal" / plan.profile / plan.notebook).glob("*/rehearsal.json")
    for path in sorted(records, key=lambda path: (path.parent.name != plan.folder.name, -path.stat().st_mtime)):
        try:
            record = read_record(path)
            return Cost(float(record["seconds"]), float(record["bytes"]), "its rehearsal, all made anew")
        except (InputError, KeyError, TypeError, ValueError):
            continue
    return None


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Line(NamedTuple):
    """One experiment of a plan.

    Attributes:
        label: profile, experiment and device.
        runs, done: all of its runs, and those that have ended.
        costs: of the runs that are not done.
    """

    label: str
    runs: int
    done: int
    costs: list[Cost | None]


def describe_plan(sweep: Sweep, workers: int = 1) -> str:
    """Runs, those already done, device-hours and storage of the rest; `unknown` where nothing of the kind was measured here."""
    costs, lines = Costs(), []
    groups: dict[tuple[str, str, str], list[Plan]] = {}
    for run in sweep.runs:
        device = str(run.plan.parameters.get("device", "cpu"))
        groups.setdefault((run.profile, run.experiment, device), []).append(run.plan)
    for (profile, experiment, device), plans in groups.items():
        waiting = [plan for plan in plans if not is_finished(plan)]
        label = f"{profile}/{experiment} on {device}"
        lines.append(_Line(label, len(plans), len(plans) - len(waiting), [costs.of(plan) for plan in waiting]))
    rows = [(line.label, line.runs, line.done, *_reckoned(line.costs)) for line in lines]
    whole = _Line("all", sum(line.runs for line in lines), sum(line.done for line in lines), [])
    rest = [cost for line in lines for cost in line.costs]
    rows.append((whole.label, whole.runs, whole.done, *_reckoned(rest)))
    text = columns([("runs of", "runs", "done", "device-hours left", "storage", "measured in"), *rows])
    if rest and None not in rest:
        hours = sum(cost.seconds for cost in rest if cost) / 3600
        text += f"\nwith {workers} worker{'s' * (workers > 1)}: about {hours / workers:.2g} h"
    return text + "\nstorage is that of run folders; teachers, priors and students in the cache come to it"


def _reckoned(costs: Iterable[Cost | None]) -> tuple[str, str, str]:
    costs = list(costs)
    known = [cost for cost in costs if cost is not None]
    if not costs:
        return "0", "0 MiB", ""
    if not known:
        return "unknown", "unknown", "nothing; `inv rehearse` measures it"
    hours, size = sum(cost.seconds for cost in known) / 3600, sum(cost.bytes for cost in known) / 2**20
    lacking = f" + {len(costs) - len(known)} unknown" if len(known) < len(costs) else ""
    sources = list(dict.fromkeys(cost.source for cost in known))
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{hours:.2g}{lacking}", f"{size:.0f} MiB{lacking}", sources[0] + more
