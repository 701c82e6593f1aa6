"""The training loop: plain training and every distillation method go through `fit`, and through nothing else.

A killed `fit` continues from its last checkpoint and ends with the same bits as an undisturbed one: the learning rate is a function
of the step, the order of an epoch and every augmentation are functions of (seed, epoch, step), and the rest is in the checkpoint.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdnb import methods
from kdnb.data.augmentation import augment, strong_augment
from kdnb.data.tensors import Split
from kdnb.errors import InputError
from kdnb.models.base import Classifier
from kdnb.models.taps import as_classifier
from kdnb.progress import progress
from kdnb.randomness import generator_for, random_state, seed_everything, set_random_state
from kdnb.storage.checkpoints import Checkpointer
from kdnb.training.evaluation import evaluate
from kdnb.training.recipe import LAYOUTS, PRECISIONS, Recipe, learning_rate

_SAVE_EVERY = 20.0  # seconds between checkpoints; what a kill can cost. Results do not depend on it.


@dataclass
class Position:
    """How far a `fit` is: epoch and step within it, running sums of the epoch, rows of finished epochs."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Fit:
    """What `fit` found. The headline is the last epoch; the best one is reported beside it."""

    history: list[dict]
    seconds: float

    @property
    def last(self) -> dict:
        return self.history[-1]

    @property
    def best(self) -> dict:
        return max((row for row in self.history if "top1" in row), key=lambda row: row["top1"])


def fit(
    student: nn.Module,
    train: Split,
    test: Split,
    recipe: Recipe,
    *,
    method: nn.Module | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str = "training",
) -> Fit:
    """Train `student` on `train`, guided by `teacher` through `method`; the student is left with the weights of the last epoch.

    Args:
        student, teacher: classifiers, or any nn.Module from images to logits; that one takes images as they come.
        method: a distillation method of `kdnb.methods`, already bound; None: cross-entropy on the labels.
        teacher: in eval mode, never updated; needed if the method says so.
        seed: of the order, the augmentation and the global random state.
        folder: for checkpoints; None: the work can't be resumed.
        log: called with the row of each finished epoch as keywords.
    Raises:
        InputError: no images, no labels where the method needs them, no teacher where it needs one.
        FloatingPointError: a term became infinite or NaN; the message names term and step.
    """
    method = method or methods.build("ce")
    _check_fit(train, method, teacher, recipe)
    device, memory_format = train.device, LAYOUTS[recipe.layout]
    _check_layout(student, recipe, device)
    student, teacher = _with_features(train, device, student, teacher)
    student.to(device, memory_format=memory_format).train()
    method.to(device).train()
    if teacher is not None:
        teacher.to(device, memory_format=memory_format)
    forward = torch.compile(student) if recipe.compile else student
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    averaged = _averaged(student, method, recipe.ema_decay) if recipe.ema_decay else None
    parts = {"student": student, "method": method, "optimizer": optimizer, "scaler": scaler, "averaged": averaged}
    parts = {name: part for name, part in parts.items() if part is not None}

    steps_per_epoch = len(train) // recipe.batch_size + (len(train) % recipe.batch_size > 1)
    saver, position = Checkpointer(folder), Position()
    seed_everything(seed)
    restored = saver.load()
    if restored:
        position = _restore(restored[1], parts)
    started = saved = time.monotonic()
    spent = position.seconds

    for epoch in progress(range(position.epoch, recipe.epochs), description, recipe.epochs, position.epoch):
        steps = range(position.step, steps_per_epoch)
        for step, (images, labels) in zip(steps, train.epoch(seed, epoch, recipe.batch_size, steps), strict=True):
            total_step = epoch * steps_per_epoch + step
            views = _views(images, recipe, method, generator_for(seed, "augment", total_step, device=device))

            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, total_step, steps_per_epoch)
            with _autocast(recipe, device):
                features_t = _teacher_features(teacher, views, method, memory_format)
                features_s = [forward(view.to(memory_format=memory_format), return_features=True) for view in views]
                terms = method(_single(features_s), _single(features_t), labels, epoch + 1)
                loss = sum(terms.values())
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if recipe.clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if averaged is not None:
                averaged.update_parameters(nn.ModuleList([student, method]))

            _accumulate(position.sums, terms, total_step)
            if folder is not None and time.monotonic() - saved > _SAVE_EVERY:
                _stop_if_not_finite(position.sums, description)
                position.epoch, position.step, position.seconds = epoch, step + 1, spent + time.monotonic() - started
                saver.save(total_step + 1, _snapshot(position, parts))
                saved = time.monotonic()

        _stop_if_not_finite(position.sums, description)
        row = {"epoch": epoch + 1, "lr": learning_rate(recipe, (epoch + 1) * steps_per_epoch - 1, steps_per_epoch)}
        row |= {
            f"train_{name}": (value / steps_per_epoch).item()
            for name, value in position.sums.items()
            if name != "_bad_step"
        }
        if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs:
            judged, by = averaged.module if averaged is not None else (student, method)
            row |= evaluate(judged, test, getattr(by, "predict", None))
        position.history.append(row)
        position.sums, position.step, position.epoch = {}, 0, epoch + 1
        if log:
            log(**row)

    seconds = spent + time.monotonic() - started
    if folder is not None and not (restored and restored[0] == recipe.epochs * steps_per_epoch):
        position.seconds = seconds
        saver.save(recipe.epochs * steps_per_epoch, _snapshot(position, parts))
    if averaged is not None:
        for module, average in zip((student, method), averaged.module, strict=True):
            module.load_state_dict(average.state_dict())
    student.eval()
    method.eval()
    return Fit(position.history, seconds)


def _check_fit(train: Split, method: nn.Module, teacher: nn.Module | None, recipe: Recipe) -> None:
    if len(train) < 2:
        raise InputError(f"training needs at least 2 images, got {len(train)}")
    if method.needs_teacher and teacher is None:
        raise InputError(f"{type(method).__name__} distils from a teacher, and none was given")
    if train.labels is None and method.needs_labels:
        raise InputError(f"{type(method).__name__} uses labels with these weights, and the images have none")


def _with_features(train: Split, device: torch.device, *models: nn.Module | None) -> list[nn.Module | None]:
    """Networks that are not ours are wrapped, after the first image."""
    foreign = [model for model in models if model is not None and not isinstance(model, Classifier)]
    if not foreign:
        return list(models)
    shape = next(train.batches(1))[0].shape[1:]
    return [as_classifier(model.to(device), shape) if model in foreign else model for model in models]


def _check_layout(student: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """torch 2.15 on a CPU kills the process in the backward pass of a narrow 1 x 1 convolution with stride in channels_last."""
    narrow = any(
        isinstance(module, nn.Conv2d)
        and module.in_channels < 8
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        for module in student.modules()
    )
    if narrow and recipe.layout == "channels_last" and device.type == "cpu":
        raise InputError(
            "layout must be contiguous for a student with stages under 8 channels on a CPU: channels_last crashes there"
        )


def _views(images: Tensor, recipe: Recipe, method: nn.Module, generator: torch.Generator) -> list[Tensor]:
    """The augmented batch; for a method of two views the weak one and the strong one."""
    weak = augment(images, recipe.crop_padding, recipe.flip, generator)
    if method.views == 1:
        return [weak]
    return [weak, strong_augment(augment(images, recipe.crop_padding, recipe.flip, generator), generator)]


def _single(items: list) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _autocast(recipe: Recipe, device: torch.device):
    dtype = PRECISIONS[recipe.precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def _teacher_features(teacher: nn.Module | None, views: list[Tensor], method: nn.Module, memory_format) -> list:
    """Teacher outputs as constants. Inference mode is faster than no_grad; its tensors are cloned because a loss must save them."""
    if teacher is None or not method.needs_teacher:
        return [None] * len(views)
    with torch.inference_mode():
        outputs = [teacher(view.to(memory_format=memory_format), return_features=True) for view in views]
    return [_constants(output, method.needs_features) for output in outputs]


def _constants(features, with_maps: bool):
    if not with_maps:
        return features._replace(
            logits=features.logits.clone(), pooled=features.pooled.clone(), feats=[], final_map=None
        )
    feats = [feature.clone() for feature in features.feats]
    return features._replace(
        logits=features.logits.clone(),
        pooled=features.pooled.clone(),
        feats=feats,
        final_map=features.final_map.clone(),
    )


def _averaged(student: nn.Module, method: nn.Module, decay: float) -> AveragedModel:
    """Running averages of student and adapters. What is counted rather than measured (integer buffers) is copied, not averaged."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], _) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, 1 - decay)
        else:
            torch._foreach_copy_(averages, currents)

    return AveragedModel(nn.ModuleList([student, method]), multi_avg_fn=update, use_buffers=True)


def _accumulate(sums: dict[str, Tensor], terms: dict[str, Tensor], step: int) -> None:
    """Add the terms to the epoch's sums on the device, and remember the first step with a value that is not finite: no host sync."""
    for name, value in terms.items():
        value = value.detach().double()
        sums[name] = sums[name] + value if name in sums else value
    bad = ~torch.stack([value.isfinite() for value in sums.values() if value.is_floating_point()]).all()
    first = sums.get("_bad_step", torch.tensor(-1, device=bad.device))
    sums["_bad_step"] = torch.where(bad & (first < 0), step, first)


def _stop_if_not_finite(sums: dict[str, Tensor], description: str) -> None:
    step = int(sums.get("_bad_step", torch.tensor(-1)))
    if step >= 0:
        names = [name for name, value in sums.items() if not value.isfinite()]
        raise FloatingPointError(
            f"{description}: {', '.join(names)} became infinite or NaN at step {step}; the last checkpoint is from before. "
            "Lower lr, or clip gradients with clip_norm."
        )


def _snapshot(position: Position, parts: dict[str, Any]) -> dict:
    return {"position": dataclasses.asdict(position), "random": random_state()} | {
        name: part.state_dict() for name, part in parts.items()
    }


def _restore(state: dict, parts: dict[str, Any]) -> Position:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    set_random_state(state["random"])
    device = next(parts["student"].parameters()).device
    position = Position(**state["position"])
    position.sums = {name: value.to(device) for name, value in position.sums.items()}
    return position
