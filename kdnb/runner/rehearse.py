"""Rehearse an experiment: all of it, as it would run, each loop cut to its first and last step; then say what the whole would take.

The networks, priors, image sizes, classes and batches are the real ones. Data sets whose files are missing are replaced by noise in
their own formats, which is said. Outcomes are not judged. Everything lies under outputs/rehearsal, apart from real runs and their cache.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdnb.data import DATASETS
from kdnb.data.check import check_files
from kdnb.errors import InputError
from kdnb.reports.outcome import Outcome
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import plan, resolve_experiment
from kdnb.storage.files import write_record
from kdnb.storage.paths import outputs_root

_MOST_VALUES = 5_000_000  # of the images of a batch, on a processor that stands in for a GPU: 33 of 3 x 224 x 224


@dataclass
class Rehearsal:
    """What a rehearsal found.

    Attributes:
        name, profile, outcome: of the experiment; the outcome of the cut execution.
        loops: the outermost loops: name, items of the whole, each and reckoned as (seconds, bytes).
        notes: what was not as it would be: noise for data, a processor for a GPU.
    """

    name: str
    profile: str
    outcome: Outcome
    loops: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the whole experiment, nothing taken from the cache."""
        return self.outcome.seconds + sum(loop["reckoned"][0] - loop["measured"][0] for loop in self.loops)

    @property
    def bytes(self) -> float:
        """On disk after the whole experiment."""
        kept = sum(path.stat().st_size for path in self.outcome.folder.rglob("*") if path.is_file())
        return kept + sum(loop["reckoned"][1] for loop in self.loops)

    def describe(self) -> str:
        """For a terminal: notes, a line a loop, the whole."""
        lines = [f"{self.profile}/{self.name}: {self.outcome.describe()}", *(f"  note: {note}" for note in self.notes)]
        for loop in sorted(self.loops, key=lambda loop: -loop["reckoned"][0])[:12]:
            each, whole = loop["each"][0], loop["reckoned"][0]
            lines.append(f"  {loop['name']:<48.48} {loop['items']:>9,} x {_time(each):>8} = {_time(whole):>8}")
        memory = self.outcome.peak_memory_mib
        lines.append(
            f"  the whole: about {_time(self.seconds)} on this machine, {_size(self.bytes)} on disk, "
            f"at least {memory or '?'} MiB of memory; outcomes were not judged"
        )
        return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def rehearse(
    name: str,
    profile: str = "quick",
    overrides: Mapping[str, Any] | None = None,
    limit: float | None = None,
    fresh: bool = True,
) -> Rehearsal:
    """Rehearse one experiment.

    Args:
        name, profile, overrides: as `plan`.
        limit: seconds, as `run_notebook`.
        fresh: empty the rehearsal's own cache first; else what an earlier rehearsal made is not made, and not counted, again.
    Raises:
        InputError: what `plan` refuses, but for data that are not there.
    """
    with _apart(fresh) as root:
        given, notes = dict(overrides or {}), []
        values = resolve_experiment(name, profile, given)
        if "dataset" in values:
            notes += _provide(values["dataset"], root / "data")
        if str(values.get("device", "cpu")) != "cpu" and not _has_device(values["device"]):
            notes.append(f"no {values['device']} here: rehearsed on the processor, whose times it shows")
            given["device"] = "cpu"
            notes += _smaller_batch(values, given)
        planned = plan(name, profile, given)
        notes += planned.notes
        costs = root / "costs.jsonl"
        costs.unlink(missing_ok=True)
        os.environ["KDNB_REHEARSE"] = str(costs)
        outcome = run_notebook(planned, limit)
        loops = [json.loads(line) for line in costs.read_text().splitlines()] if costs.exists() else []
        found = Rehearsal(name, profile, outcome, loops, notes)
        write_record(
            planned.folder / "rehearsal.json", {"seconds": found.seconds, "bytes": found.bytes}
        )  # for `inv plan`
        return found


@contextmanager
def _apart(fresh: bool) -> Iterator[Path]:
    """Outputs, cache and synthetic data of rehearsals; the environment is put back."""
    root = outputs_root() / "rehearsal"
    if fresh:
        for part in root.glob("*"):
            if part.name != "data":
                shutil.rmtree(part) if part.is_dir() else part.unlink()
    root.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in ("KDNB_OUTPUTS", "KDNB_CACHE", "KDNB_REHEARSE", "KDNB_STAND_IN")}
    os.environ |= {"KDNB_OUTPUTS": str(root), "KDNB_CACHE": str(root / "cache"), "KDNB_STAND_IN": str(root / "data")}
    try:
        yield root
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _provide(dataset: str, folder: Path) -> list[str]:
    """Real files where they are found, else noise in their place."""
    spec = DATASETS.get(dataset)
    if spec is None or spec.embedded:
        return []
    stand_in = os.environ.pop("KDNB_STAND_IN")
    try:
        check_files(dataset)
        return []
    except InputError:
        from kdnb.data.synthetic import write_synthetic

        write_synthetic(dataset, folder)
        few = "; 8 pictures a class stand for about 1,280, so its epochs are longer by that" * (dataset == "imagenet")
        return [f"{dataset} was not found: NOISE in its formats stands in for it{few}"]
    finally:
        os.environ["KDNB_STAND_IN"] = stand_in


def _smaller_batch(values: Mapping[str, Any], given: dict[str, Any]) -> list[str]:
    """A GPU's batches of large pictures neither fit into a small machine's memory nor come to an end there."""
    spec, batch = DATASETS.get(values.get("dataset", "")), values.get("batch_size", 0)
    if spec is None:
        return []
    most = max(2, _MOST_VALUES // (spec.channels * (values.get("image_size") or spec.image_size) ** 2))
    if batch <= most:
        return []
    given["batch_size"] = most
    return [
        f"batches of {most} in place of {batch}: the memory is that of a smaller batch, the seconds are of all images"
    ]


def _has_device(device: str) -> bool:
    import torch

    return torch.backends.mps.is_available() if device == "mps" else torch.cuda.is_available()
