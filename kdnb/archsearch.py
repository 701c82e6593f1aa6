"""Search for a student without training: evolution over depth and width of CIFAR ResNets, guided by any score of an architecture.

With `diswot_scorer` the score is DisWOT's: the fit of an untrained student to an untrained teacher on one batch.
"""

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.zero_cost import classifier_gradient, diswot_score
from kdnb.models import build
from kdnb.randomness import generator_for


class Architecture(NamedTuple):
    """A CIFAR ResNet: depth 6n + 2, and the channels of its three stages (the stem has those of the first)."""

    depth: int
    widths: tuple[int, int, int]

    def __str__(self) -> str:
        return f"resnet{self.depth} ({'-'.join(map(str, self.widths))})"

    def build(self, num_classes: int, **kwargs) -> nn.Module:
        """The network, with fresh weights; `kwargs` as `kdnb.models.build`."""
        return build("resnet20", num_classes, depth=self.depth, widths=(self.widths[0], *self.widths), **kwargs)


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of a depth and a width of each stage.

    The last stage's width is the feature width D, which DisWOT wants equal to the teacher's: give it one choice.
    """

    depths: Sequence[int] = (8, 14, 20, 26, 32)
    widths: Sequence[Sequence[int]] = ((8, 16, 24, 32), (16, 32, 48, 64), (64,))

    def __post_init__(self):
        if not self.depths or len(self.widths) != 3 or not all(self.widths):
            raise InputError(f"a search space needs depths and widths of three stages, got {self.depths} and {self.widths}")

    def __iter__(self) -> Iterator[Architecture]:
        for depth, *widths in itertools.product(self.depths, *self.widths):
            yield Architecture(depth, tuple(widths))

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All architectures that differ in exactly one choice."""
        depth, widths = architecture
        found = [Architecture(other, widths) for other in self.depths if other != depth]
        for stage, choices in enumerate(self.widths):
            found += [Architecture(depth, (*widths[:stage], other, *widths[stage + 1:])) for other in choices if other != widths[stage]]
        return found


class Candidate(NamedTuple):
    """An architecture and its score."""

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
        raise InputError(f"evolution needs 1 <= tournament <= population <= budget, got {tournament}, {population}, {budget}")
    allowed = [architecture for architecture in space if cost is None or cost(architecture) <= max_cost]
    if not allowed:
        raise InputError(f"no architecture of the space costs {max_cost} or less")
    rng, possible, scores = random.Random(seed), set(allowed), {}

    def born(architecture: Architecture) -> Candidate:
        if architecture not in scores:
            value = scores[architecture] = float(score(architecture))
            if not math.isfinite(value):
                raise FloatingPointError(f"the score of {architecture} is {value}")
        return Candidate(architecture, scores[architecture])

    first = rng.sample(allowed, min(population, len(allowed)))
    history = [born(architecture) for architecture in first]
    living = deque(history, maxlen=population)  # appending to a full one removes the oldest
    while len(history) < budget:
        parent = max(rng.sample(list(living), min(tournament, len(living))), key=lambda candidate: candidate.score)
        children = [architecture for architecture in space.neighbours(parent.architecture) if architecture in possible]
        history.append(born(rng.choice(children or allowed)))
        living.append(history[-1])
    return history


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
def _response(make: Callable[[], nn.Module], images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Final map (B, D, H, W) and classifier gradient (K, D) of a fresh network, with the batch's own statistics in batch norm."""
    with torch.random.fork_rng(devices=[]):  # making a network draws weights, which are replaced
        model = gaussian_init(make(), generator_for(seed, "weights")).to(images.device).train()
    features = model(images, return_features=True)
    return features.final_map, classifier_gradient(features.logits, features.pooled, labels)


def diswot_scorer(make_teacher: Callable[[], nn.Module], images: Tensor, labels: Tensor, num_classes: int, seed: int = 0,
                  **kwargs) -> Callable[[Architecture], float]:
    """A score for `evolve`: `kdnb.losses.zero_cost.diswot_score` of untrained students against one untrained teacher on one batch.

    Args:
        make_teacher: makes the teacher's architecture; its weights are drawn anew.
        images, labels: one batch, (B, C, H, W) and (B,) int64; DisWOT uses 64 images.
        num_classes: K.
        seed: of all weights.
        kwargs: further arguments of `kdnb.models.build` for the students (`in_channels`, `mean`, `std`).
    Returns:
        Function of an `Architecture`. The teacher's response is taken once; nothing accumulates from one candidate to the next.
    Raises:
        InputError: (when called) the student's feature width is not the teacher's.

    Source: Dong, Li, Wei, CVPR 2023 (DisWOT).
    """
    map_t, gradient_t = _response(make_teacher, images, labels, seed)

    def score(architecture: Architecture) -> float:
        map_s, gradient_s = _response(lambda: architecture.build(num_classes, **kwargs), images, labels, seed)
        return diswot_score(map_s, map_t, gradient_s, gradient_t).item()

    return score
