"""What a notebook trains, made ahead by several processes: `python -m kdnb.studies.ahead REQUEST RANK COUNT MEETING_POINT`.

The networks go into the artifact cache under the keys that the notebook asks for, so that the notebook then finds them. Started by
`kdnb.runner.together`. Standard input is a lifeline: where it closes, the launcher is gone and the process ends.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import torch

from kdnb import parameters
from kdnb.data import load
from kdnb.data.tensors import Dataset
from kdnb.processes import join
from kdnb.studies import distillation
from kdnb.training.distil import Setting, student_recipe
from kdnb.training.teachers import teacher_for, teacher_recipe, train_or_load


def _teacher_and_judge(p: parameters.Parameters, data: Dataset) -> None:
    given = {"epochs": p.epochs, "batch_size": p.batch_size, "weight_decay": p.weight_decay}
    train_or_load(p.model, data, teacher_recipe(data, lr=p.lr, **given), seed=p.seed, description="teacher")
    judge = teacher_recipe(data, lr=p.lr / 2, **given)
    train_or_load(p.judge, data, judge, seed=p.seed, split="judge", description="judge")


def _teacher_and_students(p: parameters.Parameters, data: Dataset) -> None:
    asked = {name: p[name] for name in ("scales", "temperature", "ce_weight", "kd_weight")}
    settings = {p.method: Setting.make(p.method, **asked)} | {text: Setting.read(text) for text in p.others}
    data = replace(data, train=getattr(data, p.split))
    teacher = teacher_for(p.teacher, data, p.teacher_checkpoint, p.seed, split=p.split)
    recipe = student_recipe(
        data,
        p.milestones,
        **{name: p[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "clip_norm", "layout")},
        **{"eval_every": 2} | parameters.group(p, "training"),
    )
    distillation.compare(settings, p.student, teacher, data, recipe, p.seeds, omitted_class=p.omitted_class)


AHEAD: dict[str, Callable[[parameters.Parameters, Dataset], None]] = {
    "01_teacher": _teacher_and_judge,
    "04_distillation": _teacher_and_students,
}


def main(request: str, rank: int, count: int, meeting_point: str) -> None:
    asked = json.loads(request)
    p = parameters.resolve(asked["parameters"])
    device = f"cuda:{rank}" if p.device.startswith("cuda") else p.device
    if p.threads:
        torch.set_num_threads(p.threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    size = {"image_size": p.image_size} if "image_size" in p else {}
    with join(rank, count, meeting_point, device):
        AHEAD[asked["notebook"]](p, load(p.dataset, device=device, **size))


def _end_with_the_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
