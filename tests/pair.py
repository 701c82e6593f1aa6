"""One of several processes that train together, for tests/test_processes.py: `python -m tests.pair CASES FOLDER RANK COUNT MEETING`."""

import os
import signal
import sys
from pathlib import Path

import torch

from kdnb import methods
from kdnb.data.splits import Split
from kdnb.models import build
from kdnb.processes import join, team
from kdnb.randomness import seed_everything
from kdnb.storage.checkpoints import save_state
from kdnb.training import resume
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe

IMAGES, CLASSES, SIZE = 22, 3, 16  # batches of 8, 8 and 6: the last is cut 3 and 3


class Stopped(Exception):
    pass


def train(name: str, folder: Path | None = None, stop_after: int | None = None) -> dict:
    """Train a tiny student in float64 by a method; weights, history and the number of images that the student saw."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 1, SIZE, SIZE, generator=generator, dtype=torch.float64) * 2 - 1
    data = Split(images, torch.randint(CLASSES, (IMAGES,), generator=generator))
    seed_everything(1)
    student, teacher = (build(net, CLASSES, 1).double() for net in ("resnet8w8", "resnet8"))
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, crop_padding=1, clip_norm=5.0, ema_decay=0.9)
    method = methods.build(name)
    method.bind(student, teacher.eval(), (1, SIZE, SIZE), CLASSES, recipe.batch_size, recipe.epochs, num_images=IMAGES)
    seen: list[int] = []

    def count(module, inputs):
        if module is student and student.training:  # not its average
            seen.append(len(inputs[0]))
            if stop_after is not None and len(seen) > stop_after:
                raise Stopped

    student.register_forward_pre_hook(count)
    try:
        found = fit(student, data, data, recipe, method=method.double(), teacher=teacher, seed=3, folder=folder)
    except Stopped:
        return {}
    return {"student": student.state_dict(), "method": method.state_dict(), "history": found.history, "seen": seen}


def run(case: str, folder: Path) -> dict:
    """CASE: a method's name; `resume`, stopped in the middle of the second epoch and then taken up; `dies`, killed there in rank 1."""
    if case not in ("resume", "dies"):
        return train(case)
    resume.SAVE_EVERY = -1.0  # a checkpoint after each step
    if case == "dies" and not (folder / "progress").exists():
        train("dkd", folder / "progress", stop_after=4)
        if team().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        team().wait()
    elif case == "resume":
        assert train("dkd", folder / "progress", stop_after=4) == {}
    return train("dkd", folder / "progress")


def main(cases: str, folder: Path, rank: int, count: int, meeting_point: str) -> None:
    with join(rank, count, meeting_point):
        found = {case: run(case, folder / case) for case in cases.split(",")}
    save_state(folder / f"rank{rank}.safetensors", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
