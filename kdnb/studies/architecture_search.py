"""Search for a student without training: evolution over depth and width of CIFAR ResNets, guided by any score of an architecture.

With `diswot_scorer` the score is DisWOT's: the fit of an untrained student to an untrained teacher on one batch.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdnb import methods
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.losses.zero_cost import classifier_gradient, diswot_score
from kdnb.models import build
from kdnb.progress import progress
from kdnb.randomness import generator_for, seed_everything
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import Checkpointer
from kdnb.training.distil import Setting
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Trained

SAVE_EVERY = 10  # individuals between checkpoints; what a kill can cost


class Architecture(NamedTuple):
    """A CIFAR ResNet.

    Attributes:
        depth: 6n + 2, or the blocks of its three stages.
        widths: channels of the stages; the stem has those of the first.
    """

    depth: int | tuple[int, int, int]
    widths: tuple[int, int, int]

    def __str__(self) -> str:
        depth = self.depth if isinstance(self.depth, int) else " " + "+".join(map(str, self.depth))
        return f"resnet{depth} ({'-'.join(map(str, self.widths))})"

    def build(self, num_classes: int, **kwargs) -> nn.Module:
        """The network, with fresh weights; `kwargs` as `kdnb.models.build`."""
        return build("resnet20", num_classes, depth=self.depth, widths=(self.widths[0], *self.widths), **kwargs)


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of a depth and a width of each stage.

    The last stage's width is the feature width D, which DisWOT wants equal to the teacher's: give it one choice. DisWOT's own space of
    ResNets is blocks (1, 3, 5, 7) at widths 16, 32, 64.

    Attributes:
        depths: 6n + 2.
        widths: choices of each of the three stages.
        blocks: where given, each stage chooses its number of blocks for itself, and `depths` are not used.
    """

    depths: Sequence[int] = (8, 14, 20, 26, 32)
    widths: Sequence[Sequence[int]] = ((8, 16, 24, 32), (16, 32, 48, 64), (64,))
    blocks: Sequence[int] = ()

    def __post_init__(self):
        if not self.depths or len(self.widths) != 3 or not all(self.widths):
            raise InputError(
                f"a search space needs depths and widths of three stages, got {self.depths} and {self.widths}"
            )

    def __iter__(self) -> Iterator[Architecture]:
        first, second, third = self.widths
        depths: Iterable[Any] = itertools.product(self.blocks, repeat=3) if self.blocks else self.depths
        for depth, one, two, three in itertools.product(depths, first, second, third):
            yield Architecture(depth, (one, two, three))

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All architectures that differ in exactly one choice."""
        depth: Any = architecture.depth
        widths: Any = architecture.widths
        others: list[Any]
        if self.blocks:
            others = [
                (*depth[:stage], other, *depth[stage + 1 :])
                for stage in range(3)
                for other in self.blocks
                if other != depth[stage]
            ]
        else:
            others = [other for other in self.depths if other != depth]
        found = [Architecture(other, widths) for other in others]
        for stage, choices in enumerate(self.widths):
            found += [
                Architecture(depth, (*widths[:stage], other, *widths[stage + 1 :]))
                for other in choices
                if other != widths[stage]
            ]
        return found


class Candidate(NamedTuple):
    """One individual of a search.

    Attributes:
        architecture: what it is.
        score: higher is better.
    """

    architecture: Architecture
    score: float


def evolve(
    score: Callable[[Architecture], float],
    space: SearchSpace,
    population: int = 36,
    tournament: int = 8,
    budget: int = 1000,
    cost: Callable[[Architecture], float] | None = None,
    max_cost: float = math.inf,
    seed: int = 0,
    folder: Path | None = None,
) -> list[Candidate]:
    """Ageing evolution: the best of a random few has a child that differs in one choice; the oldest dies.

    Args:
        score: higher is better; called once for each architecture that is met.
        space: where to look.
        population: living individuals; the first ones are all different.
        tournament: how many are compared for parenthood, <= population.
        budget: individuals in all, the first population included, >= population.
        cost, max_cost: architectures with cost above max_cost (parameters, operations, ...) do not exist; default: all do.
        seed: of every choice.
        folder: for checkpoints; a killed search goes on from there, scores nothing twice and ends with the same history.
    Returns:
        All individuals in the order of their birth; the answer is `max(history, key=lambda candidate: candidate.score)`.
    Raises:
        InputError: numbers out of order, or nothing in the space costs max_cost or less.
        FloatingPointError: a score is not finite.

    Source: Real, Aggarwal, Huang, Le, AAAI 2019; settings of DisWOT, CVPR 2023. Deviations from the released search: the tournament
    picks its best (there: one of its worst five), the first population is diverse (there: one architecture repeated), the cap holds
    for every individual, and the answer is chosen by the score alone (there: by the benchmark's accuracy among the best five).
    """
    if not 1 <= tournament <= population <= budget:
        raise InputError(
            f"evolution needs 1 <= tournament <= population <= budget, got {tournament}, {population}, {budget}"
        )
    allowed = dict.fromkeys(one for one in space if cost is None or cost(one) <= max_cost)  # in the order of the space
    if not allowed:
        raise InputError(f"no architecture of the space costs {max_cost} or less")
    rng, scores, history = random.Random(seed), {}, []
    first = rng.sample(list(allowed), min(population, len(allowed)))
    saver = Checkpointer(folder)
    if restored := saver.load():
        rows = restored[1]["history"]
        history = [Candidate(Architecture(depth, tuple(widths)), value) for depth, widths, value in rows]
        scores = {candidate.architecture: candidate.score for candidate in history}
        rng.setstate(restored[1]["random"])

    def born(architecture: Architecture) -> None:
        if architecture not in scores:
            value = scores[architecture] = float(score(architecture))
            if not math.isfinite(value):
                raise FloatingPointError(f"the score of {architecture} is {value}")
        history.append(Candidate(architecture, scores[architecture]))
        if len(history) % SAVE_EVERY == 0:
            rows = [(*one.architecture, one.score) for one in history]
            saver.save(len(history), {"history": rows, "random": rng.getstate()})

    for number in progress(range(len(history), budget), "architecture search", budget, len(history)):
        living = history[-population:]  # the oldest die first
        born(first[number] if number < len(first) else _child(living, tournament, space, allowed, rng))
    return history


def _child(
    living: Sequence[Candidate],
    tournament: int,
    space: SearchSpace,
    allowed: Mapping[Architecture, None],
    rng: random.Random,
) -> Architecture:
    """A neighbour of the best of a random few; where it has none that is allowed, any other architecture."""
    parent = max(rng.sample(living, min(tournament, len(living))), key=lambda candidate: candidate.score)
    children = [architecture for architecture in space.neighbours(parent.architecture) if architecture in allowed]
    return rng.choice(children or list(allowed))


def parameter_count(architecture: Architecture, num_classes: int, **kwargs) -> int:
    """Trained numbers of an architecture; nothing is allocated for it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in architecture.build(num_classes, **kwargs).parameters())


def distil_architecture(
    architecture: Architecture,
    teacher: Trained,
    data: Dataset,
    recipe: Recipe,
    setting: Setting,
    *,
    seed: int = 0,
    description: str | None = None,
) -> dict:
    """Train one architecture of the space as a student; from the cache if the same was done before, on from its checkpoint if killed.

    Args:
        setting: a method that needs no maps of equal depth (`Setting("kd")`, ...).
    Returns:
        {"architecture", "depth", "widths", "parameters", "top1" of the last epoch, "student": state dict}.
    """
    seed_everything(seed)
    net = architecture.build(**data.normalization).to(data.test.device)
    method = methods.build(setting.method, **setting.hyper)
    image_shape = (data.channels, data.image_size, data.image_size)
    method.bind(net, teacher.model, image_shape, data.num_classes, recipe.batch_size, recipe.epochs, len(data.train))
    key = {
        "architecture": [architecture.depth, architecture.widths],
        "method": setting.method,
        "hyper": method.hyper,
        "teacher": teacher.hash,
        "dataset": data.name,
        "image_size": data.image_size,
        "data": data.train.hash,
        "recipe": asdict(recipe),
        "seed": seed,
    }

    def make(progress_folder: Path) -> dict:
        found = fit(
            net,
            data.train,
            data.test,
            recipe,
            method=method,
            teacher=teacher.model,
            seed=seed,
            folder=progress_folder,
            description=description or str(architecture),
        )
        return {"student": net.state_dict(), "top1": found.last["top1"]}

    state = artifact("found-student", key, make)
    return {
        "architecture": str(architecture),
        "depth": architecture.depth,
        "widths": architecture.widths,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        **state,
    }


def rank_correlation(values: Sequence[float], accuracies: Sequence[float]) -> float:
    """Kendall's tau-b in [-1, 1]: 1 if both order the architectures alike; tied accuracies are no evidence either way.

    Source: Kendall, Biometrika 1945.
    """
    from scipy.stats import kendalltau

    if len(values) != len(accuracies) or len(values) < 2:
        raise InputError(f"a rank correlation needs two or more pairs, got {len(values)} and {len(accuracies)} values")
    return float(kendalltau(values, accuracies).statistic)


@torch.no_grad()
def gaussian_init(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """DisWOT's initial weights, in place: N(0, 1) for convolutions and linear layers, biases 0, batch norm 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.fill_(1)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            module.bias.zero_()
    return model


@torch.no_grad()
def _response(
    make: Callable[[], nn.Module], images: Tensor, labels: Tensor, seed: int, role: str
) -> tuple[Tensor, Tensor]:
    """Final map (B, D, H, W) and classifier gradient (K, D) of a fresh network, with the batch's own statistics in batch norm."""
    with torch.random.fork_rng(devices=[]):  # making a network draws weights, which are replaced
        model = gaussian_init(make(), generator_for(seed, role, "weights")).to(images.device).train()
    features = model(images, return_features=True)
    return features.final_map, classifier_gradient(features.logits, features.pooled, labels)


def diswot_scorer(
    make_teacher: Callable[[], nn.Module], images: Tensor, labels: Tensor, num_classes: int, seed: int = 0, **kwargs
) -> Callable[[Architecture], float]:
    """A score for `evolve`: `kdnb.losses.zero_cost.diswot_score` of untrained students against one untrained teacher on one batch.

    Args:
        make_teacher: makes the teacher's architecture; its weights are drawn anew.
        images, labels: one batch, (B, C, H, W) and (B,) int64; DisWOT uses 64 images.
        num_classes: K.
        seed: of all weights; teacher and students draw apart, or the teacher's own architecture would fit perfectly by being its copy.
        kwargs: further arguments of `kdnb.models.build` for the students (`in_channels`, `mean`, `std`).
    Returns:
        Function of an `Architecture`. The teacher's response is taken once; nothing accumulates from one candidate to the next.
    Raises:
        InputError: (when called) the student's feature width is not the teacher's.

    Source: Dong, Li, Wei, CVPR 2023 (DisWOT).
    """
    map_t, gradient_t = _response(make_teacher, images, labels, seed, "teacher")

    def score(architecture: Architecture) -> float:
        map_s, gradient_s = _response(
            lambda: architecture.build(num_classes, **kwargs), images, labels, seed, "student"
        )
        return diswot_score(map_s, map_t, gradient_s, gradient_t).item()

    return score
