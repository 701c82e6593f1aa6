"""The training loop: plain training and every distillation method go through `fit`, and through nothing else.

A killed `fit` continues from its last checkpoint and ends with the same bits as an undisturbed one: the learning rate is a function
of the step, the order of an epoch and every augmentation are functions of (seed, epoch, step), and the rest is in the checkpoint.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from kdnb import methods
from kdnb.checkpoints import Checkpointer, artifact, state_hash
from kdnb.data.augmentation import augment, strong_augment
from kdnb.data.tensors import Dataset, Split
from kdnb.errors import InputError, check_name
from kdnb.models import build
from kdnb.progress import progress
from kdnb.randomness import generator_for, random_state, seed_everything, set_random_state

SCHEDULES = ("one_cycle", "multistep", "cosine", "constant")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_SAVE_EVERY = 20.0  # seconds between checkpoints; what a kill can cost. Results do not depend on it.


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD, its schedule and its augmentation.

    Attributes:
        epochs, batch_size: passes over the data and images per step; a last batch of one image is dropped (batch norm).
        lr, momentum, nesterov, weight_decay: SGD.
        schedule: "one_cycle" (cosine up over the first quarter, cosine down to lr/250,000), "multistep", "cosine" (per epoch), "constant".
        milestones, lr_gamma: multistep: epochs (zero-based) from which on the rate is multiplied by lr_gamma.
        final_lr: end of the cosine.
        warmup_epochs: linear warm-up over so many epochs, for multistep and cosine.
        crop_padding, flip: augmentation, in pixels and as a yes or no.
        clip_norm: global gradient norm limit, None for none.
        precision: "fp32", "bf16" or "fp16" autocast.
        layout: "contiguous" or "channels_last" (faster for stages of 8 channels and more; crashes torch 2.15 on a CPU below that).
        compile: torch.compile the student.
        ema_decay: evaluate an exponential moving average of the weights of student and adapters; None for none.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
    milestones: tuple[int, ...] = ()
    lr_gamma: float = 0.1
    final_lr: float = 0.0
    warmup_epochs: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    clip_norm: float | None = None
    precision: str = "fp32"
    layout: str = "contiguous"
    compile: bool = False
    ema_decay: float | None = None
    eval_every: int = 1

    def __post_init__(self):
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("precision", self.precision, PRECISIONS)
        check_name("layout", self.layout, LAYOUTS)
        if self.epochs < 1 or self.batch_size < 2 or self.lr <= 0 or self.eval_every < 1:
            raise InputError(f"a recipe needs epochs >= 1, batch_size >= 2, lr > 0 and eval_every >= 1, got {self.epochs}, "
                             f"{self.batch_size}, {self.lr}, {self.eval_every}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InputError(f"milestones must rise, got {list(self.milestones)}")


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (zero-based): a pure function, so there is no scheduler state to lose."""
    total = recipe.epochs * steps_per_epoch
    epoch = step // steps_per_epoch
    if recipe.schedule == "one_cycle":
        start, end = recipe.lr / 25, recipe.lr / 25 / 1e4
        rise = max(0.25 * total - 1, 0.0)
        if step < rise:
            return _cosine(start, recipe.lr, step / rise)
        return _cosine(recipe.lr, end, (step - rise) / max(total - 1 - rise, 1e-9))
    rate = recipe.lr
    if recipe.schedule == "multistep":
        rate *= recipe.lr_gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        rate = _cosine(recipe.lr, recipe.final_lr, epoch / recipe.epochs)
    if step < recipe.warmup_epochs * steps_per_epoch:
        rate *= (step + 1) / (recipe.warmup_epochs * steps_per_epoch)
    return rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


# --- evaluation ----------------------------------------------------------------------------------------------------------------

@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, predict: Callable | None = None, batch_size: int = 500) -> dict[str, float]:
    """Accuracy of a model in eval mode on a labelled split; the model's mode is put back.

    Args:
        predict: maps the model's `Features` to logits (SimKD predicts through the teacher's classifier); None: the model's own logits.
    Returns:
        {"top1", "top5"} as fractions and {"loss"} as mean cross-entropy in nats.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, device=split.device, dtype=torch.float64)
    for images, labels in split.batches(batch_size):
        logits = predict(model(images, return_features=True)) if predict else model(images)
        logits = logits.float()
        k = min(5, logits.shape[1])
        hits = logits.topk(k, dim=1).indices == labels[:, None]
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), F.cross_entropy(logits, labels, reduction="sum")]).double()
    model.train(training)
    top1, top5, loss = (sums / len(split)).tolist()
    return {"top1": top1, "top5": top5, "loss": loss}


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits of many images in eval mode, (N, K)."""
    training = model.training
    model.eval()
    parts = [model(images[start: start + batch_size]) for start in range(0, len(images), batch_size)]
    model.train(training)
    return torch.cat(parts).clone()


# --- the loop ------------------------------------------------------------------------------------------------------------------

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
    student.to(device, memory_format=memory_format).train()
    method.to(device).train()
    if teacher is not None:
        teacher.to(device, memory_format=memory_format)
    forward = torch.compile(student) if recipe.compile else student
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov)
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
        row |= {f"train_{name}": (value / steps_per_epoch).item() for name, value in position.sums.items() if name != "_bad_step"}
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


def _check_layout(student: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """torch 2.15 on a CPU kills the process in the backward pass of a narrow 1 x 1 convolution with stride in channels_last."""
    narrow = any(isinstance(module, nn.Conv2d) and module.in_channels < 8 and module.kernel_size == (1, 1) and module.stride != (1, 1)
                 for module in student.modules())
    if narrow and recipe.layout == "channels_last" and device.type == "cpu":
        raise InputError("layout must be contiguous for a student with stages under 8 channels on a CPU: channels_last crashes there")


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
        return features._replace(logits=features.logits.clone(), pooled=features.pooled.clone(), feats=[], final_map=None)
    feats = [feature.clone() for feature in features.feats]
    return features._replace(logits=features.logits.clone(), pooled=features.pooled.clone(), feats=feats, final_map=features.final_map.clone())


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
        raise FloatingPointError(f"{description}: {', '.join(names)} became infinite or NaN at step {step}; the last checkpoint is from before. "
                                 "Lower lr, or clip gradients with clip_norm.")


def _snapshot(position: Position, parts: dict[str, Any]) -> dict:
    return {"position": dataclasses.asdict(position), "random": random_state()} | {name: part.state_dict() for name, part in parts.items()}


def _restore(state: dict, parts: dict[str, Any]) -> Position:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    set_random_state(state["random"])
    device = next(parts["student"].parameters()).device
    position = Position(**state["position"])
    position.sums = {name: value.to(device) for name, value in position.sums.items()}
    return position


# --- trained networks from the cache -------------------------------------------------------------------------------------------

_ONE_CYCLE = Recipe(epochs=20, batch_size=64, lr=0.1, nesterov=True)
_CIFAR_SCRATCH = Recipe(epochs=200, batch_size=256, lr=0.1, weight_decay=1e-4, schedule="multistep", milestones=(120, 150, 180), lr_gamma=0.2)
TEACHER_RECIPES = {
    "digits": _ONE_CYCLE,
    "fashion_mnist": dataclasses.replace(_ONE_CYCLE, epochs=10, batch_size=128),
    "cifar10": _CIFAR_SCRATCH,   # as CMI and AEAHL-RG train theirs
    "cifar100": _CIFAR_SCRATCH,
}


def teacher_recipe(data: Dataset, **changes) -> Recipe:
    """How teachers of this data set are trained here: the table's recipe with the data set's own augmentation, and the given changes."""
    recipe = TEACHER_RECIPES.get(data.name, _CIFAR_SCRATCH)
    return dataclasses.replace(recipe, crop_padding=data.crop_padding, flip=data.spec.flip, **changes)


@dataclass(frozen=True)
class Trained:
    """A trained classifier, in eval mode, with its history and the hash of its weights."""

    model: nn.Module
    history: list[dict]
    hash: str

    @property
    def top1(self) -> float:
        return self.history[-1]["top1"]


def fresh(model: str, data: Dataset, seed: int) -> nn.Module:
    """An untrained classifier for a data set, on its device; its weights depend on the seed alone."""
    seed_everything(seed)
    return build(model, **data.normalization).to(data.test.device)


def train_or_load(model: str, data: Dataset, recipe: Recipe, *, seed: int = 0, split: str = "private", description: str | None = None) -> Trained:
    """A classifier trained on one split of a data set, or the one an identical recipe gave before.

    Args:
        model: name of `kdnb.models.MODELS`.
        split: "private" (the teacher's), "judge" (the public images with labels, for evaluation only) or "train" (both).
    """
    part: Split = getattr(data, split)
    key = {"model": model, "dataset": data.name, "image_size": data.image_size, "split": split, "data": part.hash,
           "recipe": dataclasses.asdict(recipe), "seed": seed}

    def make(progress_folder: Path) -> dict:
        net = fresh(model, data, seed)
        found = fit(net, part, data.test, recipe, seed=seed, folder=progress_folder, description=description or f"training {model}")
        return {"model": net.state_dict(), "history": found.history}

    state = artifact("classifier", key, make)
    net = build(model, **data.normalization)
    net.load_state_dict(state["model"])
    return Trained(net.to(part.device).eval(), state["history"], state_hash(state["model"]))
