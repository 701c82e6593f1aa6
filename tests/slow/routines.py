"""Every long-running routine in its smallest form, for the resume matrix. A new routine is a function and a line in `ROUTINES`.

A routine takes a folder for its checkpoints (None: nothing is kept) and returns its final state. It is killed at a tick: before an
optimiser step, or before a call of what `tick` names where no optimiser runs.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdnb import methods
from kdnb.attacks import bit_flip
from kdnb.data.splits import Split
from kdnb.losses.soft_labels import compress_labels
from kdnb.methods.stored_labels import StoredLabels
from kdnb.models import build
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.samplers.field import METHODS
from kdnb.storage.checkpoints import state_hash
from kdnb.studies import (
    architecture_search,
    bfa_attack,
    datafree_run,
    elbo_vid,
    fast_ad,
    label_store,
    novel_classes,
    prior,
    reusable_generator,
)
from kdnb.studies.soft_labels import ReplaySplit
from kdnb.training import loop, resume
from kdnb.training.recipe import Recipe
from tests.material import (
    GENERATOR_LOOP,
    ONLINE_LOOP,
    DroppingDenoiser,
    FloatPrior,
    fused,
    smallest_setting,
    three_classes,
    without_times,
)


class Routine(NamedTuple):
    """`run(folder)` gives the final state. `epochs`: into how many equal parts its ticks fall. `tick`: (object, name) of a call to count."""

    run: Callable[[Path | None], dict]
    epochs: int = 3
    tick: tuple[object, str] | None = None


def images(count: int, channels: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def network(name: str = "resnet8w4", num_classes: int = 10, channels: int = 3, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(name, num_classes, channels)


RECIPE = Recipe(epochs=3, batch_size=8, lr=0.02, clip_norm=5.0, crop_padding=1, flip=True)


def distillation(name: str, folder: Path | None, **changes) -> dict:
    """Three epochs of three steps of one method."""
    student, teacher = network(seed=1), network("resnet8w8", seed=2).eval()
    train, test = Split(images(24), torch.arange(24) % 10), Split(images(10, seed=1), torch.arange(10))
    recipe = Recipe(**vars(RECIPE) | changes)
    method = methods.build(name).bind(student, teacher, (3, 16, 16), 10, 8, recipe.epochs, len(train))
    found = loop.fit(student, train, test, recipe, method=method, teacher=teacher, seed=5, folder=folder)
    return {"student": student.state_dict(), "method": method.state_dict(), "history": found.history}


def prior_training(folder: Path | None) -> dict:
    torch.manual_seed(0)
    fit = prior.train_prior(DroppingDenoiser(), images(12, 1, 8), steps=9, batch_size=4, seed=3, folder=folder)
    return {"model": fit.prior.model.state_dict(), "losses": fit.losses}


def online(folder: Path | None, guided: bool) -> dict:
    teacher, student = network(num_classes=3, channels=1, seed=9).eval(), network(num_classes=3, channels=1)
    test, guidance = Split(images(10, 1, 8), torch.arange(10) % 3), GuidanceConfig(eta=0.3) if guided else None
    with fast_ad.diffusion_source(FloatPrior(), (1, 8, 8), teacher=teacher, guidance=guidance, num_steps=3) as source:
        found = fast_ad.distil_online(teacher, student, source, (1, 8, 8), 3, test, ONLINE_LOOP, seed=1, folder=folder)
    return {"student": student.state_dict(), "history": found.history, "images": found.images, "labels": found.labels}


def generator(folder: Path | None, **changes) -> dict:
    teacher, student, made = (
        network(num_classes=3, channels=1, seed=9).eval(),
        network(num_classes=3, channels=1),
        fused(),
    )
    config, test = (
        reusable_generator.GeneratorConfig(**vars(GENERATOR_LOOP) | {"warmup": 0} | changes),
        Split(images(9, 1, 8), torch.arange(9) % 3),
    )
    found = reusable_generator.distil_from_generator(teacher, student, made, 3, test, config, seed=5, folder=folder)
    history = without_times(found.history)
    return {"student": student.state_dict(), "generator": made.state_dict(), "history": history, "images": found.images}


def field(name: str, folder: Path | None) -> dict:
    """Four rounds of one method of the data-free field."""
    teacher, student = network(num_classes=3, channels=1, seed=9).eval(), network(num_classes=3, channels=1)
    chosen = smallest_setting(name, warmup=0)
    found = datafree_run.distil_by(name, teacher, student, three_classes(), chosen, seed=5, folder=folder)
    history = without_times(found.history)
    return {"student": student.state_dict(), "history": history, "inner": found.inner, "images": found.images}


def bit_search(folder: Path | None) -> dict:
    """To the sixth flip: of a thousand classes, chance level is far away."""
    test = Split(images(20, 1, 8, 5), torch.arange(20) % 4)
    found = bfa_attack.attack(
        network(num_classes=4, channels=1), images(32, 1, 8), test, 1000, max_flips=6, folder=folder
    )
    return {"rows": found.rows, "trail": found.trail}


def autoencoder(folder: Path | None) -> dict:
    torch.manual_seed(0)
    model = elbo_vid.VAE((1, 4, 4), num_latents=3, hidden=8)
    rows = elbo_vid.train_vae(model, images(24, 1, 4), images(8, 1, 4, 1), epochs=3, batch_size=8, folder=folder)
    return {"model": model.state_dict(), "rows": rows}


def vid_bound(folder: Path | None) -> dict:
    return {"rows": elbo_vid.vid_bound_on_pairs(0.8, 2, steps=9, batch_size=8, folder=folder)}


def making_labels(folder: Path | None, tmp: Path | None = None) -> dict:
    """Without a folder of its own there is no store; the uninterrupted one is made in `tmp`."""
    pictures, teacher = images(18, 1, 8), network(num_classes=6, channels=1)
    config = label_store.StoreConfig(num_crops=3, batch_size=6, images_per_shard=2)
    store = label_store.make_store(folder or tmp, pictures, teacher, config)
    return {
        "boxes": store.boxes,
        "flips": store.flips,
        "indices": store.indices,
        "probs": store.probs,
        "recipe": store.recipe,
    }


def replay(folder: Path | None) -> dict:
    """FKD training on stored labels."""
    pictures, crops = images(12, 1, 8), torch.rand(12, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    kept, boxes = compress_labels(crops, "marginal_smoothing_k2"), torch.tensor([0.0, 0.0, 0.75, 0.75]).repeat(12, 4, 1)
    store = label_store.LabelStore(
        "marginal_smoothing_k2", 3, boxes, torch.zeros(12, 4, dtype=torch.bool), kept.indices.int(), kept.probs, {}
    )
    train, student = (
        ReplaySplit(store, pictures, torch.arange(12) % 3, 8, num_draw=2),
        network(num_classes=3, channels=1),
    )
    test, recipe = Split(pictures, torch.arange(12) % 3), Recipe(epochs=3, batch_size=8, lr=0.02)
    found = loop.fit(student, train, test, recipe, method=StoredLabels(), seed=5, folder=folder)
    return {"student": student.state_dict(), "history": found.history}


def search(folder: Path | None) -> dict:
    space = architecture_search.SearchSpace(depths=(8, 14), widths=((4, 8), (4, 8), (8,)))
    score = architecture_search.diswot_scorer(
        partial(build, "resnet20", 3, 1, depth=8, widths=(8, 8, 8, 8)),
        images(6, 1, 8),
        torch.arange(6) % 3,
        3,
        in_channels=1,
    )
    history = architecture_search.evolve(score, space, population=3, tournament=2, budget=12, folder=folder)
    return {"history": [{"architecture": str(one.architecture), "score": one.score} for one in history]}


def discovery(folder: Path | None) -> dict:
    """Both stages: four known classes, then two more without labels."""
    pictures, labels, recipe = images(36, 1, 8), torch.arange(36) % 6, Recipe(epochs=3, batch_size=8, lr=0.02)
    known, new, test = labels < 4, labels >= 4, Split(images(12, 1, 8, 1), torch.arange(12) % 6)
    unlabelled = Split(pictures[new], torch.full((12,), -1))
    task = novel_classes.ClassSplit(
        4, 2, Split(pictures[known], labels[known]), unlabelled, test, test.subset(test.labels < 4)
    )
    old = novel_classes.CosineNet(network(num_classes=6, channels=1), 4, 1)
    stages = [folder and folder / name for name in ("known", "all")]
    first = loop.fit(old, task.known, task.test_known, recipe, seed=5, folder=stages[0])
    found, second = novel_classes.discover(old, task, recipe, num_heads=2, seed=5, folder=stages[1])
    return {
        "old": old.state_dict(),
        "new": found.state_dict(),
        "head": found.head,
        "history": first.history + second.history,
    }


ROUTINES: dict[str, Routine] = {
    **{
        name: Routine(partial(distillation, name))
        for name in methods.METHODS
        if name not in ("tolerant", "srrl_official") and not name.endswith("_released")  # twins of others
    },
    "averaged weights": Routine(partial(distillation, "kd", ema_decay=0.9)),
    "bf16": Routine(partial(distillation, "kd", precision="bf16")),
    "prior": Routine(prior_training),
    "Fast-AD": Routine(partial(online, guided=False), epochs=4),
    "Fast-AD, guided": Routine(partial(online, guided=True), epochs=4),
    "reusable generator": Routine(generator, epochs=4),
    "reusable generator, hard loss": Routine(partial(generator, hard_loss="aea"), epochs=4),
    **{f"data-free, {name}": Routine(partial(field, name), epochs=4) for name in METHODS},
    "bit search": Routine(bit_search, tick=(bit_flip.ProgressiveBitSearch, "step")),
    "VAE": Routine(autoencoder),
    "VID bound": Routine(vid_bound),
    "label store": Routine(making_labels, tick=(label_store, "_ask")),
    "replay of labels": Routine(replay),
    "search": Routine(search, tick=(architecture_search, "diswot_score"), epochs=1),
    "discovery": Routine(discovery, epochs=6),
}


# --- in a process of its own ---------------------------------------------------------------------------------------------------


def work(name: str, folder: str | None, at: int, number: int, in_save: bool, answer: str) -> None:
    """Run a routine, and die by signal `number` at tick `at` (0: never), or in the `at`-th save, before its file gets its name.

    At the end `answer` holds the hash of the final state and the count of ticks (of saves, with `in_save`).
    """
    torch.set_num_threads(1)
    routine, count = ROUTINES[name], [0, 0]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tick(kind: int) -> None:
        count[kind] += 1
        if at and kind == in_save and count[kind] == at:
            os.kill(os.getpid(), number)

    if routine.tick:
        _count_calls(*routine.tick, partial(tick, 0))
    else:
        register_optimizer_step_pre_hook(lambda *_: tick(0))
    _count_calls(os, "replace", partial(tick, 1))
    resume.SAVE_EVERY = -1.0  # save after every step, not after so many seconds
    architecture_search.SAVE_EVERY = 1
    run = partial(routine.run, tmp=Path(answer + ".store")) if name == "label store" else routine.run
    state = run(Path(folder) if folder else None)
    Path(answer).write_text(f"{digest(state)} {count[0]} {count[1]}")


def digest(state: object) -> str:
    """Hash of a nested state; tensors count with every bit."""
    text = json.dumps(
        state, default=lambda tensor: state_hash({"": tensor})
    )  # dicts keep their order, floats all their digits
    return hashlib.sha256(text.encode()).hexdigest()


def _count_calls(owner: object, name: str, tick: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def counted(*arguments, **keywords):
        tick()
        return original(*arguments, **keywords)

    setattr(owner, name, counted)
