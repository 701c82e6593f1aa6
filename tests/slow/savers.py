"""Everything that kdnb stores, saved in its smallest form by a process that dies at a given file operation. A new kind of file is a line in
`SAVERS`.

A file operation is an open, write, flush, fsync, chmod, rename, unlink or mkdir in the saver's folder; a process can die before it, after
it, and inside a write when so many bytes are out.
"""

import builtins
import errno
import io
import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.parameters import Parameters
from kdnb.reports.outcome import read_outcome
from kdnb.reports.run_files import read_run
from kdnb.runner import execute, kernel
from kdnb.runner.execute import run_notebook
from kdnb.runner.plan import Plan
from kdnb.runs import Run
from kdnb.samplers.supply import PoolSupply
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import Checkpointer, load_state, save_state
from kdnb.storage.files import read_record, write_record
from kdnb.studies import bfa_attack, datafree_loop, generator_loop
from kdnb.studies.bfa_attack import attack
from kdnb.studies.label_store import make_store, open_store
from kdnb.training import resume
from tests.material import GENERATOR_LOOP, STORE, STORE_IMAGES, LabelTeacher, fused
from tests.slow.routines import digest, images, network

CUTS = 16  # places inside a write
NOTHING = "nothing"
FULL = 7  # exit code of a process that met a full disk


class Saver(NamedTuple):
    """`save(folder, mark)` calls `mark` whenever what is stored is complete: first for the old state, then after every step. `look(folder)`
    says what a reader finds and may not fail. `sweeps`: half-written files of a killed process are removed by the next save. `heavy`: the work
    takes long, so that writes are cut in fewer places, and the work is done once more after some of the deaths only. `gap`: while one is being
    replaced there may be nothing."""

    save: Callable[[Path, Callable[[], None]], None]
    look: Callable[[Path], str]
    sweeps: bool = False
    heavy: bool = False
    gap: bool = False


def state(value: int) -> dict:
    return {
        "weights": torch.arange(24.0).view(4, 6) + value,
        "history": [{"epoch": value, "loss": 1 / (value + 3)}],
        "pair": (value, None),
    }


def loaded(path: Path) -> str:
    return digest(load_state(path)) if path.exists() else NOTHING


# --- what is saved -------------------------------------------------------------------------------------------------------------


def save_states(folder: Path, mark: Callable[[], None]) -> None:
    for value in (1, 2, 3):
        save_state(folder / "x.safetensors", state(value))
        mark()


def save_checkpoints(folder: Path, mark: Callable[[], None]) -> None:
    saver = Checkpointer(folder)
    saver.save(1, state(1))
    saver.save(2, state(2))
    mark()
    for step in (3, 4):
        saver.save(step, state(step))
        mark()


def look_at_checkpoints(folder: Path) -> str:
    found = Checkpointer(folder).load()
    return digest(found) if found else NOTHING


def make_artifact(folder: Path, mark: Callable[[], None]) -> None:
    def make(progress: Path) -> dict:
        saver = Checkpointer(progress)
        done, _ = saver.load() or (0, None)
        for step in range(done + 1, 3):
            saver.save(step, state(step))
        return state(9)

    mark()
    artifact("thing", {"size": 1}, make, folder)
    mark()


def look_at_artifact(folder: Path) -> str:
    for record in folder.glob("*/*/made_from.json"):
        assert json.loads(record.read_text()) == {"kind": "thing", "size": 1}
    for progress in folder.glob("*/*/progress"):
        Checkpointer(progress).load()
    return next(map(loaded, folder.glob("*/*/state.safetensors")), NOTHING)


def write_records(folder: Path, mark: Callable[[], None]) -> None:
    for value in (1, 2, 3):
        write_record(folder / "run.json", {"value": value, "text": "Größe" * value})
        mark()


def keep_run(folder: Path, mark: Callable[[], None]) -> None:
    run = Run("demo", "quick", {"seed": 0}, folder)
    run.note(parameters=run.parameters)
    run.table("numbers", [{"x": 1}])
    run.result("top1", 0.5)
    mark()
    run.table("numbers", [{"x": 1}, {"x": 2}])
    mark()
    run.result("top1", 0.75)
    mark()
    run.result("loss", 0.25)
    mark()
    run.note(hashes={"data": "abc"})
    mark()


def look_at_run(folder: Path) -> str:
    run = read_run(folder)
    assert run.problems == []
    return digest(
        [
            {name: value for name, value in run.record.items() if name not in ("files", "replaces")},
            run.results,
            [path.read_text() for path in sorted(folder.glob("tables/*.csv"))],
        ]
    )


def keep_log(folder: Path, mark: Callable[[], None]) -> None:
    run = Run("demo", "quick", {"seed": 0}, folder)
    for epoch in range(5):
        run.log("student", epoch=epoch, loss=1 / (epoch + 3))
        mark()


def look_at_log(folder: Path) -> str:
    """The rows by epoch; a line cut short is none."""
    rows = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
            rows[row["epoch"]] = row
        except ValueError:
            continue
    return digest(rows)


def label_store(folder: Path, mark: Callable[[], None], over: bool) -> None:
    """A store, also in place of one of other settings."""
    if over:
        make_store(folder, STORE_IMAGES, LabelTeacher(), STORE, seed=1)
    mark()
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    mark()


def look_at_store(folder: Path) -> str:
    try:
        return read_store(folder)
    except InputError as error:  # one that is being replaced counts as none
        assert "no finished label store" in str(error) or "make the store anew" in str(error)
        return NOTHING


def read_store(folder: Path) -> str:
    store = open_store(folder, STORE_IMAGES)
    return digest(
        {
            "boxes": store.boxes,
            "flips": store.flips,
            "indices": store.indices,
            "probs": store.probs,
            "recipe": store.recipe,
        }
    )


def generator(folder: Path, mark: Callable[[], None]) -> None:
    class Marking(Checkpointer):
        def save(self, step: int, state: Any) -> None:
            super().save(step, state)
            mark()

    resume.Checkpointer = Marking
    resume.time = datafree_loop.time = SimpleNamespace(
        monotonic=lambda: 0.0, process_time=lambda: 0.0
    )  # equal times, equal bits
    config = generator_loop.GeneratorConfig(
        **vars(GENERATOR_LOOP) | {"warmup": 0, "epochs": 2, "inner_steps": 1, "student_steps": 1}
    )
    teacher, student = network(num_classes=3, channels=1, seed=9).eval(), network(num_classes=3, channels=1)
    mark()
    generator_loop.distil_from_generator(
        teacher, student, fused(), 3, Split(images(9, 1, 8), torch.arange(9) % 3), config, seed=5, folder=folder
    )


def look_at_pool(folder: Path) -> str:
    """The checkpoint, and the pool that belongs to it."""
    found = Checkpointer(folder).load()
    if found is None:
        return NOTHING
    supply = PoolSupply(GENERATOR_LOOP.pool_size, (1, 8, 8), "cpu", folder=folder)
    supply.load_state_dict(found[1]["parts"]["supply"])
    return digest([*found, *supply.contents()])


def trail(folder: Path, mark: Callable[[], None]) -> None:
    def save(*arguments, **keywords) -> None:
        save_state(*arguments, **keywords)
        mark()

    bfa_attack.save_state = save
    mark()
    attack(
        network(num_classes=4, channels=1),
        images(8, 1, 8),
        Split(images(8, 1, 8, 5), torch.arange(8) % 4),
        1000,
        max_flips=2,
        folder=folder,
    )


def execution(folder: Path, mark: Callable[[], None]) -> None:
    """Three executions whose kernels do nothing: one ends well, two don't."""
    kernel.Watch = lambda *_: SimpleNamespace(
        close=lambda: None, peak_memory_mib=1, cell=1, source="", timed_out=False, limit=None
    )
    planned = Plan(
        "fine", Path(__file__).parent.parent / "notebooks" / "fine.ipynb", "quick", Parameters(seed=0), {}, folder
    )

    def fail(*_: Any) -> None:
        mark()
        raise KeyboardInterrupt

    for number, ending in enumerate((lambda *_: None, fail, fail)):
        execute.EXIT_CODES["ok"] = number  # tells the three apart
        kernel.execute = ending
        run_notebook(planned)
        mark()


def look_at_execution(folder: Path) -> str:
    found = read_outcome(folder)
    return "unfinished" if found["status"] in ("running", "killed") else f"{found['status']} {found['parameters']}"


SAVERS: dict[str, Saver] = {
    "state": Saver(save_states, lambda folder: loaded(folder / "x.safetensors")),
    "checkpoint": Saver(save_checkpoints, look_at_checkpoints, sweeps=True),
    "artifact": Saver(make_artifact, look_at_artifact, sweeps=True),
    "record": Saver(write_records, lambda folder: digest(read_record(folder / "run.json"))),
    "run": Saver(keep_run, look_at_run),
    "log": Saver(keep_log, look_at_log),
    "label store": Saver(partial(label_store, over=False), look_at_store),
    "label store over another": Saver(partial(label_store, over=True), look_at_store, gap=True),
    "generator pool": Saver(generator, look_at_pool, heavy=True),
    "bit search": Saver(trail, lambda folder: loaded(folder / "trail.safetensors"), heavy=True),
    "execution": Saver(execution, look_at_execution),
}


# --- in a process of its own ---------------------------------------------------------------------------------------------------


def work(name: str, folder: str, at: int, full: bool, answer: str) -> None:
    """Save; at file operation `at` (counted from the first mark on; 0: never) die by SIGKILL, or, with `full`, find that the disk is full from
    there on. `answer` gets what a reader finds at every mark, and the count of operations; a full disk ends with exit code `FULL`."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    looks, count = [], 0

    def mark() -> None:
        looks.append(SAVERS[name].look(Path(folder)))

    def hit(takes_room: bool) -> None:
        nonlocal count
        if not looks:
            return
        count += 1
        if at and count == at and not full:
            os.kill(os.getpid(), signal.SIGKILL)
        if at and count >= at and full and takes_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _watch(folder, hit, 4 if SAVERS[name].heavy else CUTS)
    try:
        SAVERS[name].save(Path(folder), mark)
    except OSError as error:
        os._exit(FULL if error.errno == errno.ENOSPC else 1)
    finally:
        at = 0
    Path(answer).write_text(json.dumps([looks, count]))


class _Torn:
    """A file whose writes come in pieces, each of which reaches the disk before the next."""

    def __init__(self, file: Any, hit: Callable[[bool], None], cuts: int):
        self._file, self._hit, self._cuts = file, hit, cuts

    def write(self, data: Any) -> int:
        for start in range(0, len(data), step := max(1, -(-len(data) // self._cuts))):
            self._hit(True)
            self._file.write(data[start : start + step])
            self._file.flush()
        self._hit(False)
        return len(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _watch(folder: str, hit: Callable[[bool], None], cuts: int) -> None:
    """Call `hit` before and after every file operation in the folder (those without a path: in any)."""

    def watched(original: Callable, takes_room: bool) -> Callable:
        def call(target: Any, *arguments: Any, **keywords: Any) -> Any:
            if not isinstance(target, int) and not str(os.fspath(target)).startswith(folder):
                return original(target, *arguments, **keywords)
            hit(takes_room)
            found = original(target, *arguments, **keywords)
            hit(False)
            return found

        return call

    for name in ("open", "replace", "rename", "chmod", "unlink", "mkdir", "fsync"):
        setattr(os, name, watched(getattr(os, name), name in ("fsync", "mkdir")))
    make, fdopen, opened = tempfile.mkstemp, os.fdopen, builtins.open

    def mkstemp(*arguments: Any, **keywords: Any) -> Any:
        hit(True)
        return make(*arguments, **keywords)

    def torn(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        file = opened(path, mode, *arguments, **keywords)
        return _Torn(file, hit, cuts) if set(mode) & set("wa") and str(path).startswith(folder) else file

    tempfile.mkstemp, builtins.open = mkstemp, torn
    os.fdopen = lambda *arguments, **keywords: _Torn(fdopen(*arguments, **keywords), hit, cuts)
    assert io.open is opened  # readers of pathlib stay as they are
