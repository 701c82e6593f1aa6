"""The training loop: plain training and every distillation method go through `fit`, and through nothing else.

A killed `fit` continues from its last checkpoint and ends with the same bits as an undisturbed one: the learning rate is a function
of the step, the order of an epoch and every augmentation are functions of (seed, epoch, step), and the rest is in the checkpoint.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdnb import methods
from kdnb.data.augmentation import augment, strong_augment
from kdnb.data.splits import AnySplit, OrderedSplit, Split
from kdnb.errors import InputError
from kdnb.methods.base import Method
from kdnb.models.frozen import batch_statistics
from kdnb.models.taps import as_classifier, gives_features
from kdnb.processes import parts_of_a_batch, share_batch_norm, sum_gradients, team, together
from kdnb.progress import progress
from kdnb.randomness import generator_for, seed_everything
from kdnb.rehearsal import cut, rehearsing
from kdnb.training.evaluation import evaluate
from kdnb.training.recipe import DTYPES, MEMORY_FORMATS, Recipe, learning_rate
from kdnb.training.resume import Resumable, stop_if_not_finite


@dataclass(frozen=True)
class Fit:
    """What `fit` found. The headline is the last epoch; the best one is reported beside it.

    Attributes:
        history: a row for each epoch: `epoch`, `lr`, the mean of each term, and `top1` where it was evaluated.
        seconds: of the whole training, before a kill included.
    """

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
    train: AnySplit,
    test: OrderedSplit,
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
        teacher: never updated, in eval mode while it is asked; needed if the method says so.
        seed: of the order, the augmentation and the global random state.
        folder: for checkpoints; None: the work can't be resumed.
        log: called with the row of each finished epoch as keywords.
    Raises:
        InputError: no images, images that are no floats around [-1, 1], labels that don't fit the student, no labels or no teacher where
            the method needs them, a method that is not bound.
        FloatingPointError: a term became infinite or NaN; the message names term and step.
    """
    method = method or methods.build("ce")
    _check_fit(student, train, method, teacher, recipe)
    student, teacher = _with_features(train, train.device, student, teacher)
    share_batch_norm(student, teacher)
    trainer = _Trainer(student, teacher, method, recipe, train.device)
    steps = _steps_per_epoch(train, recipe)
    seed_everything(seed)

    def check() -> None:
        _stop_if_not_finite(work["sums"], description)

    work = Resumable(folder, trainer.parts, {"sums": {}, "history": []}, device=train.device, check=check)
    if not work.done:
        method.prepare(student, teacher, train)

    history = work["history"]  # a row for each epoch done; `work.done` counts steps
    for epoch in progress(range(len(history), recipe.epochs), description, recipe.epochs, len(history)):
        for step, terms in trainer.epoch(train, seed, epoch, max(work.done, epoch * steps)):
            _accumulate(work["sums"], terms, step)
            work.save(step + 1)

        check()
        row = {"epoch": epoch + 1, "lr": learning_rate(recipe, (epoch + 1) * steps - 1, steps)}
        row |= {f"train_{name}": (total / steps).item() for name, total in _terms(work["sums"]).items()}
        last = epoch + 1 == recipe.epochs or rehearsing()  # a rehearsal may stop after its first epoch
        if last or (epoch + 1) % recipe.eval_every == 0:
            row |= trainer.evaluate(test)
        history.append(row)
        work["sums"] = {}
        if log:
            log(**row)

    work.save(recipe.epochs * steps, last=True)
    trainer.finish()
    return Fit(history, work.seconds)


def _steps_per_epoch(train: AnySplit, recipe: Recipe) -> int:
    """Batches of a pass; a last batch of one image is left out, batch norm can't use it."""
    return len(train) // recipe.batch_size + (len(train) % recipe.batch_size > 1)


class _Trainer:
    """Student, method and teacher on a device, the optimiser, and one step of them.

    Attributes:
        parts: what a checkpoint must hold, by name.
        modes: of the modules of the teacher, as they were given.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, method: nn.Module, recipe: Recipe, device):
        self.student, self.teacher, self.method, self.recipe, self.device = student, teacher, method, recipe, device
        self.memory_format = MEMORY_FORMATS[recipe.layout]
        student.to(device, memory_format=self.memory_format).train()
        method.to(device).train()
        self.modes = [(module, module.training) for module in teacher.modules()] if teacher is not None else []
        if teacher is not None:  # its batch norms must not learn from the student's batches
            teacher.to(device, memory_format=self.memory_format).eval()
        self.forward = torch.compile(student) if recipe.compile else student
        self.parameters = [*student.parameters(), *method.parameters()]
        self.optimizer = torch.optim.SGD(
            self.parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.averaged = _averaged(student, method, recipe.ema_decay) if recipe.ema_decay else None
        self.parts: dict[str, Any] = {
            "student": student,
            "method": method,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }
        if self.averaged is not None:
            self.parts["averaged"] = self.averaged

    def epoch(self, train: AnySplit, seed: int, epoch: int, first_step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The steps of an epoch from `first_step` on, steps counted from the beginning of the training: number and terms of each."""
        size, count = self.recipe.batch_size, _steps_per_epoch(train, self.recipe)
        steps = range(first_step - epoch * count, count)
        order = _whole(train).permutation(seed, epoch).to(self.device) if self.method.needs_indices else None
        batches = zip(steps, train.epoch(seed, epoch, size, steps), strict=True)
        for step, (images, labels) in cut(batches, "step", len(steps)):
            total_step = epoch * count + step
            indices = None if order is None else order[step * size : (step + 1) * size]
            generator = generator_for(seed, "augment", total_step, device=self.device)
            rate = learning_rate(self.recipe, total_step, count)
            yield total_step, self.step(images, labels, indices, generator, rate, epoch)

    def step(
        self,
        images: Tensor,
        labels: Tensor | None,
        indices: Tensor | None,
        generator: torch.Generator,
        rate: float,
        epoch: int,
    ) -> dict[str, Tensor]:
        """One optimiser step on one batch; the named terms of its loss."""
        views = _views(images, self.recipe, self.method, generator)
        extra = {} if indices is None else {"indices": indices, "generator": generator}
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _autocast(self.recipe, self.device):
            features_s, features_t = self._features(views, len(images))
            terms = self.method(_single(features_s), _single(features_t), labels, epoch + 1, **extra)
            loss = sum(terms.values())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss / team().count).backward()
        sum_gradients(self.parameters)
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(nn.ModuleList([self.student, self.method]))
        return terms

    def _features(self, views: list[Tensor], size: int) -> tuple[list, list]:
        """What student and teacher see in a batch; of several processes each computes a part (`kdnb.processes`)."""
        views, asked = [view[team().part(size)] for view in views], _asked("student", self.method)
        with parts_of_a_batch(size):
            features_t = _teacher_features(self.teacher, views, self.method, self.memory_format)
            features_s = [self.forward(view.to(memory_format=self.memory_format), **asked) for view in views]
        return [together(one, size) for one in features_s], [together(one, size) for one in features_t]

    def evaluate(self, test: OrderedSplit) -> dict[str, float]:
        """Accuracy of the student, or of its average, as the method predicts with it."""
        judged, by = self.averaged.module if self.averaged is not None else (self.student, self.method)
        return evaluate(judged, test, getattr(by, "predict", None))

    def finish(self) -> None:
        """Leave student and adapters as they are judged: averaged where asked for, in eval mode; the teacher in the mode it had."""
        if self.averaged is not None:
            for module, average in zip((self.student, self.method), self.averaged.module, strict=True):
                module.load_state_dict(average.state_dict())
        self.student.eval()
        self.method.eval()
        for module, training in self.modes:
            module.training = training


def _check_fit(
    student: nn.Module, train: AnySplit, method: nn.Module, teacher: nn.Module | None, recipe: Recipe
) -> None:
    name = type(method).__name__
    if len(train) < 2:
        raise InputError(f"training needs at least 2 images, got {len(train)}")
    if method.needs_teacher and teacher is None:
        raise InputError(f"{name} distils from a teacher, and none was given")
    if train.labels is None and method.needs_labels:
        raise InputError(f"{name} uses labels with these weights, and the images have none")
    if isinstance(method, Method) and not method.ready:
        raise InputError(
            f"{name} has adapters and was not bound to its networks; call method.bind(student, teacher, ...)"
        )
    if isinstance(train, Split):
        _check_images(train.images)
        _check_labels(train.labels, student)
    check_layout(student, recipe.layout, train.device)
    if recipe.compile and team().count > 1:
        raise InputError("compile is for training in one process, and there are several")


def _check_images(images: Tensor) -> None:
    if not images.is_floating_point():
        raise InputError(f"images must be floats in [-1, 1], got {images.dtype}; divide by 127.5 and subtract 1")
    low, high = (float(bound) for bound in images.aminmax())
    if high > 16 or low < -16:
        raise InputError(
            f"images must be floats in [-1, 1], got values from {low:g} to {high:g}; divide by 127.5 and subtract 1"
        )


def _check_labels(labels: Tensor | None, student: nn.Module) -> None:
    classes = getattr(getattr(student, "head", None), "out_features", None)
    if labels is None or labels.dim() != 1 or labels.is_floating_point() or classes is None:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        raise InputError(
            f"the student tells {classes} classes apart, 0 to {classes - 1}; the labels go from {low} to {high}"
        )


def _whole(train: Any) -> OrderedSplit:
    """Where images have an index, or networks that are not ours are wrapped, the split must be asked for more than `epoch`."""
    return train


def _with_features(train: AnySplit, device: torch.device, *models: nn.Module | None) -> list[nn.Module | None]:
    """Networks that are not ours are wrapped, after the first image."""
    foreign = [model for model in models if model is not None and not gives_features(model)]
    if not foreign:
        return list(models)
    shape = next(_whole(train).batches(1))[0].shape[1:]
    return [
        as_classifier(model.to(device), shape) if model is not None and model in foreign else model for model in models
    ]


def check_layout(student: nn.Module, layout: str, device: torch.device) -> None:
    """torch 2.15 on a CPU kills the process in the backward pass of a narrow 1 x 1 convolution with stride in channels_last."""
    narrow = any(
        isinstance(module, nn.Conv2d)
        and module.in_channels < 8
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        for module in student.modules()
    )
    if narrow and layout == "channels_last" and device.type == "cpu":
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
    dtype = DTYPES[recipe.precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def _asked(role: str, method: nn.Module) -> dict[str, bool]:
    """What the method wants of a network's forward pass."""
    return {"return_features": True} | ({"preactivations": True} if role in method.needs_preactivations else {})


def _teacher_features(teacher: nn.Module | None, views: list[Tensor], method: nn.Module, memory_format) -> list:
    """Teacher outputs as constants. Inference mode is faster than no_grad; its tensors are cloned because a loss must save them."""
    if teacher is None or not method.needs_teacher:
        return [None] * len(views)
    asked = _asked("teacher", method)
    statistics = batch_statistics(teacher) if method.batch_statistics else nullcontext()
    with torch.inference_mode(), statistics:
        outputs = [teacher(view.to(memory_format=memory_format), **asked) for view in views]
    return [_constants(output, method.needs_features) for output in outputs]


def _constants(features, with_maps: bool):
    if not with_maps:
        return features._replace(
            logits=features.logits.clone(), pooled=features.pooled.clone(), feats=[], final_map=None
        )
    before = features.preactivations
    return features._replace(
        logits=features.logits.clone(),
        pooled=features.pooled.clone(),
        feats=[feature.clone() for feature in features.feats],
        final_map=features.final_map.clone(),
        preactivations=before and [feature.clone() for feature in before],
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
    bad = ~torch.stack([total.isfinite() for total in _terms(sums).values()]).all()
    first = sums["_bad_step"] if "_bad_step" in sums else torch.full_like(bad, -1, dtype=torch.int64)
    sums["_bad_step"] = torch.where(bad & (first < 0), step, first)


def _terms(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: total for name, total in sums.items() if name != "_bad_step"}


def _stop_if_not_finite(sums: dict[str, Tensor], description: str) -> None:
    if sums and (step := int(sums["_bad_step"])) >= 0:
        stop_if_not_finite(description, _terms(sums), f"at step {step}")
