"""The loop of data-free distillation, whatever makes the images.

for every round:  made = synthesizer(rng);  supply.take(made)
                  from round `warmup` on:  x = supply(count, rng);  student <- SGD on the loss of x
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.data.splits import OrderedSplit
from kdnb.errors import InputError
from kdnb.progress import progress
from kdnb.randomness import generator_for
from kdnb.rehearsal import rehearsing
from kdnb.samplers.supply import Supply
from kdnb.training.evaluation import evaluate
from kdnb.training.resume import Resumable
from kdnb.training.schedules import cosine
from kdnb.training.student_phase import student_phase


@dataclass(frozen=True)
class LoopConfig:
    """The student's schedule.

    Attributes:
        epochs: rounds; each is one call of the synthesiser.
        warmup: rounds before the student starts.
        student_steps: SGD steps a round.
        lr, final_lr, momentum, weight_decay: SGD with a cosine over the rounds that have a student phase.
        eval_every: rounds between evaluations; the last is always evaluated.
    """

    epochs: int = 200
    warmup: int = 0
    student_steps: int = 400
    lr: float = 0.1
    final_lr: float = 2e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    eval_every: int = 1

    def __post_init__(self):
        for name, least in {"epochs": 1, "warmup": 0, "student_steps": 0, "eval_every": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.lr <= 0:
            raise InputError(f"lr must be above 0, got {self.lr}")


def student_rate(config: LoopConfig, epoch: int) -> float:
    """Learning rate of the student in a round (zero-based): a cosine from `lr` at round `warmup` towards `final_lr` after the last."""
    share = (epoch - config.warmup) / max(config.epochs - config.warmup, 1)
    return cosine(config.lr, config.final_lr, share)


class GeneratorResult(NamedTuple):
    """What a loop of synthesis and distillation leaves.

    Attributes:
        history: one row a round.
        inner: one row an inner step with the unweighted losses.
        images, labels: of the supply, oldest first; the labels are those asked for.
        seconds: by phase.
    """

    history: list[dict]
    inner: list[dict]
    images: Tensor
    labels: Tensor
    seconds: dict[str, float]


class Meter:
    """What a run has cost so far: images through the teacher, and processor seconds of this process.

    Args:
        teacher: counted are the images of every forward pass of it, whoever asks: the synthesiser, the student's loss, an attacker.
        spent: (images, seconds) of the run before it was resumed.
    """

    def __init__(self, teacher: nn.Module, spent: tuple[int, float] = (0, 0.0)):
        self.images, self._before, self._started = spent[0], spent[1], time.process_time()
        self._hook = teacher.register_forward_pre_hook(self._count)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, _: nn.Module, arguments: tuple) -> None:
        self.images += len(arguments[0])

    @property
    def seconds(self) -> float:
        return self._before + time.process_time() - self._started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the seconds of what is done inside."""
        started = time.process_time()
        yield
        self._started += time.process_time() - started


def distil_from_synthesizer(
    teacher: nn.Module,
    student: nn.Module,
    synthesizer,
    supply: Supply,
    loss: Callable[[torch.Generator], Tensor],
    test: OrderedSplit,
    config: LoopConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str = "data-free distillation",
    parts: Mapping | None = None,
) -> GeneratorResult:
    """Train a student on what a synthesiser makes; it is left as after the last round, in eval mode.

    Args:
        teacher: in eval mode; its forward passes are counted. student: on the device of `test`.
        synthesizer: `call(rng) -> Synthesis`, `state_dict`, `load_state_dict`.
        supply: told of every batch; `loss` draws from it with the generator it is given and returns a scalar.
        test: for evaluation only. config: rounds and the student's schedule. seed: of every draw.
        folder: of the checkpoints; None: the work can't be resumed.
        log: called with each row of the history as keywords.
        parts: further things with `state_dict` and `load_state_dict` that the work changes, by name.
    Returns:
        `GeneratorResult`. A row has the means over the inner steps of each loss, unweighted, `loss` (weighted), `loss_first` (where the
        synthesiser has losses), `stored`, `images` made so far, from the warm-up on `lr` and `train`, at evaluations `top1`, `top5`;
        spent so far, evaluation left out: `elapsed` and processor seconds `cpu`, and `teacher_images`, images through the teacher.
    Raises:
        FloatingPointError: the student's loss became infinite or NaN.

    A killed run goes on from `folder` with the same bits: synthesiser, supply, student, optimiser, `parts` and the random state are in
    the checkpoint, and all other draws are functions of (seed, round, step). Seed torch before the networks are built.
    """
    device = test.device
    optimizer = torch.optim.SGD(student.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    parts = {"synthesizer": synthesizer, "student": student, "optimizer": optimizer, "supply": supply, **(parts or {})}
    start = {"history": [], "inner": [], "seconds": {"synthesis": 0.0, "student": 0.0}}
    work = Resumable(folder, parts, start)
    history, inner, seconds = work["history"], work["inner"], work["seconds"]
    spent = (history[-1]["teacher_images"], history[-1]["cpu"]) if history else (0, 0.0)

    rounds = range(work.done, config.epochs)
    if rehearsing():
        rounds = rounds[-1:]  # the first ones have no student phase
    with Meter(teacher, spent) as meter:
        for epoch in progress(rounds, description, config.epochs, work.done):
            started = time.monotonic()
            made = synthesizer(rng=generator_for(seed, "synthesis", epoch, device=device))
            supply.take(made)
            row, steps = _losses(made.losses, epoch)
            inner += steps
            synthesized = time.monotonic()
            seconds["synthesis"] += synthesized - started

            row |= {"stored": len(supply), "images": (history[-1]["images"] if history else 0) + len(made.images)}
            if epoch >= config.warmup and config.student_steps:
                row["lr"] = student_rate(config, epoch)
                row["train"] = student_phase(
                    student, optimizer, loss, steps=config.student_steps, rate=row["lr"], seed=seed, epoch=epoch
                )
            seconds["student"] += time.monotonic() - synthesized
            row |= {"elapsed": sum(seconds.values()), "cpu": meter.seconds, "teacher_images": meter.images}
            with meter.pause():
                if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                    row |= {name: value for name, value in evaluate(student, test).items() if name != "loss"}
                history.append(row)
                if log:
                    log(**row)
                work.save(epoch + 1, last=epoch + 1 == config.epochs)

    student.eval()
    return GeneratorResult(history, inner, *supply.contents(), seconds)


def _losses(losses: dict[str, Tensor], epoch: int) -> tuple[dict, list[dict]]:
    """The row of a round and those of its inner steps, in one copy from the device."""
    row = {"epoch": epoch + 1}
    if not losses:
        return row, []
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    steps = [
        row | {"step": step} | {name: series[step] for name, series in values.items()}
        for step in range(len(values["total"]))
    ]
    means = {name: sum(series) / len(series) for name, series in values.items() if name != "total"}
    return row | {"loss": sum(values["total"]) / len(steps), "loss_first": values["total"][0]} | means, steps
