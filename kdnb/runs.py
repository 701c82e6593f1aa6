"""A run: one folder that says what was done, with what, and what came out.

    outputs/PROFILE/NOTEBOOK/RUN/
        lock              held while a process works on the run
        run.json          resolved parameters, seeds, versions, hardware, git commit, content hashes of data, models and the files below
        metrics.jsonl     live log, one JSON object a line; where a line was written twice (after a resume) the later one counts
        results.csv       notebook,metric,value,seed
        tables/*.csv      the data behind every figure
        figures/*.png     and *.pdf of those that are drawn, not pictures
        checkpoints/*.safetensors   trained networks, plain state dicts
        progress/         checkpoints of work that is not finished

RUN is `seedS-HASH`, HASH of the resolved parameters: the same experiment started again finds its folder and goes on. What was not started
by the runner (cells run in JupyterLab, perhaps edited) has a folder of its own, `seedS-HASH-by-hand`: it never touches a headless run.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import kdnb
from kdnb.errors import InputError
from kdnb.live import show_card
from kdnb.progress import interactive
from kdnb.randomness import seed_everything
from kdnb.storage.files import atomic_write, write_record
from kdnb.storage.naming import run_folder
from kdnb.storage.paths import PROJECT

_VERSIONS = ("torch", "torchvision", "numpy", "scipy", "diffusers", "accelerate", "pandas", "scikit-learn", "papermill")


# --- provenance ----------------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kdnb": kdnb.__version__}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    gpus = (
        [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1) if memory else None,
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def git_commit() -> str:
    """Short commit of the checkout, with `+` where files differ from it; `unknown` outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "kdnb")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# --- the run itself ------------------------------------------------------------------------------------------------------------


class Run:
    """What a notebook writes to; made by `start_run`."""

    def __init__(self, notebook: str, profile: str, parameters: Mapping, folder: Path):
        self.notebook, self.profile, self.parameters, self.folder = notebook, profile, dict(parameters), folder
        self.seed = int(parameters.get("seed", 0))
        self.device = torch.device(parameters.get("device", "cpu"))
        self.record: dict[str, Any] = {}
        # one process at a time works in a run folder; the lock goes with the process, and running the set-up cell again is no second one
        self._lock = FileLock(folder / "lock", is_singleton=True)
        self._results: dict[str, float] = {}

    def claim(self) -> None:
        """Wait until no other process works in this folder."""
        if not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                print("another process is working on this very run; waiting for it to end", flush=True)
                self._lock.acquire()

    def note(self, **entries: Any) -> None:
        """Add entries (hashes, counts) to run.json."""
        self.record |= entries
        write_record(self.folder / "run.json", self.record)

    def _keep(self, name: str, data: bytes) -> None:
        """Write one file of the run, and its hash into run.json; between the two, run.json knows the hashes of the old and the new file."""
        files, digest = self.record.get("files", {}), hashlib.sha256(data).hexdigest()
        if name in files:
            self.note(replaces={name: digest})
        atomic_write(self.folder / name, data)
        self.record.pop("replaces", None)
        self.note(files=files | {name: digest})

    def log(self, stream: str, **row: Any) -> None:
        """Append one line to the metric log; `step` or `epoch` identifies it within its stream."""
        with open(self.folder / "metrics.jsonl", "ab+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # a killed process wrote part of a line
            file.write((b"\n" if torn else b"") + json.dumps({"stream": stream, **row}).encode() + b"\n")

    def table(self, name: str, rows: Iterable[Mapping], columns: Sequence[str] | None = None):
        """Save rows as tables/NAME.csv and return them as a pandas DataFrame; `columns` name those of rows that may be none."""
        import pandas as pd

        frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), columns=columns)
        self._keep(f"tables/{_file_name(name)}.csv", frame.to_csv(index=False).encode())
        return frame

    def figure(self, name: str, figure: Any) -> Any:
        """Save a matplotlib figure as figures/NAME.png (144 dpi), and as NAME.pdf if no pictures are in it; return the figure."""
        from matplotlib import rc_context

        name = _file_name(name)
        pictures = any(axis.images for axis in figure.axes)
        kinds: dict[str, dict] = {"png": {"Software": None}} | ({} if pictures else {"pdf": {"CreationDate": None}})
        for kind, metadata in kinds.items():
            buffer = io.BytesIO()
            with rc_context({"pdf.fonttype": 42}):
                figure.savefig(buffer, format=kind, dpi=144, bbox_inches="tight", metadata=metadata)
            self._keep(f"figures/{name}.{kind}", buffer.getvalue())
        captions = self.record.get("captions", {})
        self.note(captions={old: text for old, text in captions.items() if old != name} | {name: _caption(figure)})
        return figure

    def save_network(self, name: str, network: torch.nn.Module) -> Path:
        """Save a network's weights as checkpoints/NAME.safetensors: its plain state dict, so that plain torch reads it too.

            net = build("resnet8w8", num_classes=10, in_channels=1)
            net.load_state_dict(safetensors.torch.load_file(path))

        The header says the architecture, where its name alone does, and the image size: `inv evaluate` needs no more.

        Args:
            name: any text; what no file name can have becomes "_".
        """
        from safetensors.torch import save

        weights = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in network.state_dict().items()
        }
        path = f"checkpoints/{re.sub('[^a-z0-9_.]+', '_', name.lower()).strip('_.')}.safetensors"
        about = {"network": getattr(network, "architecture", ""), "image_size": self.parameters.get("image_size")}
        self._keep(path, save(weights, {"format": "pt", "kdnb": json.dumps(about)}))
        return self.folder / path

    def result(self, metric: str, value: float) -> float:
        """Record one headline number in results.csv; returns it."""
        self._results[metric] = float(value)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["notebook", "metric", "value", "seed"])
        writer.writerows([self.notebook, name, f"{number:.6g}", self.seed] for name, number in self._results.items())
        self._keep("results.csv", buffer.getvalue().encode())
        return value

    @property
    def results(self):
        """The recorded headline numbers as a DataFrame, rounded for reading."""
        import pandas as pd

        return pd.DataFrame([{"metric": name, "value": round(number, 3)} for name, number in self._results.items()])

    @property
    def progress(self) -> Path:
        """Folder for the checkpoints of this run's own long work."""
        return self.folder / "progress"


def _file_name(name: str) -> str:
    """Only names that stay inside their folder."""
    if not name or not all(part.isalnum() or part in "-_." for part in name) or name.startswith("."):
        raise ValueError(f"a table or figure name is made of letters, digits, '-', '_' and '.', got {name!r}")
    return name


def _caption(figure: Any) -> str:
    """What a figure says of itself: its titles, and what is drawn over what."""
    suptitle = figure.get_suptitle()
    titles = [suptitle] if suptitle else [axis.get_title() for axis in figure.axes]
    axes = [
        f"{axis.get_ylabel()} by {axis.get_xlabel()}" if axis.get_xlabel() else axis.get_ylabel()
        for axis in figure.axes
        if axis.get_ylabel()
    ]
    return "; ".join(dict.fromkeys(" ".join(text.split()) for text in titles[:1] + axes if text.strip()))


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"device {device} was asked for and torch sees no CUDA device here; use device=cpu, or a profile made for it"
        )
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise InputError(
            f"device {device} was asked for and there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps was asked for and torch sees no Metal device here; use device=cpu")


def start_run(notebook: str, parameters: Mapping, profile: str | None = None) -> Run:
    """Make or reopen the run folder, seed everything, set the thread count, write run.json and show what the run is:
    a line, or a card in a notebook that a person opened.

    Args:
        notebook: its name without the ending.
        parameters: the resolved parameters; `seed`, `device` and `threads` are used here.
        profile: None: `KDNB_PROFILE`, else "quick".
    """
    check_device(str(parameters.get("device", "cpu")))
    profile = profile or os.environ.get("KDNB_PROFILE", "quick")
    if parameters.get("threads"):
        torch.set_num_threads(int(parameters["threads"]))
    folder = run_folder(profile, notebook, parameters)
    by_hand = os.environ.get("KDNB_RUN") != str(folder)  # the runner says where the run is that it started
    if by_hand:
        folder = run_folder(profile, notebook, parameters, by_hand)
    run = Run(notebook, profile, parameters, folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.claim()
    seed_everything(run.seed)
    run.note(
        notebook=notebook,
        profile=profile,
        by_hand=by_hand,
        parameters=run.parameters,
        seeds={"python": run.seed, "numpy": run.seed, "torch": run.seed},
        threads=torch.get_num_threads(),
        versions=versions(),
        hardware=hardware(),
        commit=git_commit(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    made_with = f"kdnb {kdnb.__version__}, torch {torch.__version__}"
    device = f"{run.device} with {torch.get_num_threads()} thread(s)"
    if by_hand and interactive():
        facts = {"profile": profile, "seed": run.seed, "device": device, "made with": made_with}
        facts |= {"commit": run.record["commit"], "earlier work": _earlier_work(run)}
        show_card(notebook, facts, run.folder)
    else:
        print(
            f"{notebook} ({profile} profile, seed {run.seed}): {made_with}, {device}, commit {run.record['commit']}"
            + (", by hand" if by_hand else "")
        )
    return run


def _earlier_work(run: Run) -> str:
    """What this run goes on with: the newest checkpoint of each unfinished part."""
    newest: dict[str, int] = {}
    for path in sorted(run.progress.rglob("step-*.safetensors")):
        newest[path.parent.name] = int(path.stem.removeprefix("step-"))
    return ", ".join(f"{name} continues at step {step}" for name, step in newest.items()) or "none, starts anew"
