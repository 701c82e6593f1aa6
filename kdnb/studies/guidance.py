"""When does guidance pay? Students of guided images, by what the prior has seen and by the rule that guides it, at equal images."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdnb.data.domains import PriorDomain
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.generators.diffusion import DiffusionPrior
from kdnb.parameters import group
from kdnb.samplers.cadr import SEPARATE, GuidanceConfig
from kdnb.studies.fast_ad import OnlineConfig, Source, diffusion_source, distil_online, noise_source, pool_source
from kdnb.studies.synthesis import image_scores
from kdnb.training.teachers import fresh

_SPELLINGS = {"entropy_threshold": "threshold", "squared_norms": "bn_squared"}


def guidance_rules(eta: float = 1.0, separate: GuidanceConfig = SEPARATE) -> dict[str, GuidanceConfig | None]:
    """The four rules that the study compares, by name.

    Args:
        eta: step share of CADR and of constant strength, which is CADR with an open gate.
        separate: constants of the separate rule.
    """
    cadr = GuidanceConfig(eta=eta)
    return {
        "unguided": None,
        "CADR": cadr,
        "constant": dataclasses.replace(cadr, gate="constant"),
        "separate": separate,
    }


def guidance_from(values: Mapping) -> GuidanceConfig:
    """The rule that a notebook's parameters describe: the published CADR (`rule` joint) or `SEPARATE`, with what `guidance` changes.

    >>> guidance_from({"rule": "separate", "guidance": "eta:0.3"}) == dataclasses.replace(SEPARATE, eta=0.3)
    True
    """
    base = SEPARATE if values["rule"] == "separate" else GuidanceConfig()
    given = group(values, "guidance")
    return dataclasses.replace(base, **{_SPELLINGS.get(name, name): value for name, value in given.items()})


def compared_rules(own: GuidanceConfig) -> dict[str, GuidanceConfig | None]:
    """The four rules of `guidance_rules` around one's own, which is "CADR" or "separate" by its `rule`.

    Beside one's own separate rule, CADR has its published strength and weights, and shares eta, the entropy gate's constants, xi and
    the norms; beside one's own CADR, the separate rule is `SEPARATE`.
    """
    if own.rule == "joint":
        cadr, separate = own, SEPARATE
    else:
        shared = ("eta", "threshold", "sharpness", "xi", "bn_squared")
        cadr, separate = GuidanceConfig(**{name: getattr(own, name) for name in shared}), own
    constant = dataclasses.replace(cadr, gate="constant")
    return guidance_rules(own.eta, separate) | {"CADR": cadr, "constant": constant}


def without_each_part(full: GuidanceConfig) -> dict[str, GuidanceConfig]:
    """The separate rule, and the same with one of its parts switched off or replaced by CADR's, by name."""
    changes: dict[str, dict] = {
        "full rule": {},
        "no statistics term": {"bn_weight": 0.0},
        "no class term": {"ce_weight": 0.0},
        "no gate": {"gate": "constant"},
        "entropy gate": {"gate": "entropy"},
        "one length": {
            "rule": "joint",
            "lambda_max": full.bn_weight + full.ce_weight,
            "bn_weight": 1.0,
            "ce_weight": 1.0,
        },
    }
    if full.views > 1:
        changes["one view"] = {"views": 1}
    return {name: dataclasses.replace(full, **change) for name, change in changes.items()}


@dataclass(frozen=True)
class Networks:
    """Who takes part.

    Attributes:
        teacher: guides, and is distilled.
        judge: says what is in an image; it shared no data with the teacher.
        student: name of its architecture.
    """

    teacher: nn.Module
    judge: nn.Module
    student: str


def guided_student(
    data: Dataset,
    networks: Networks,
    source_name: str,
    online: OnlineConfig,
    *,
    prior: DiffusionPrior | None = None,
    guidance: GuidanceConfig | None = None,
    domain: PriorDomain | None = None,
    solver: str = "dpmsolver++",
    num_steps: int = 10,
    seed: int = 0,
    evaluated_on: Split | None = None,
) -> dict:
    """Train one student on the images of one source, and measure both.

    Args:
        source_name: "noise", "public" (the domain's own training images, without labels), or any other name for images of `prior`
            under `guidance`.
        seed: of labels, initial noise, student and the order of its batches; teacher, judge and prior are given.
        evaluated_on: labelled split for `top1` and `frechet`; None: the test split. Constants are chosen on the private split, which no student and
            no prior has seen.
    Returns:
        A row: `rule` (the source's name), `seed`, `top1`, `agreement`, `judge` (shares of the last ring of images that teacher and
        judge put into the class asked for; None where no class was), `frechet` (to the images of that split), `seconds` of
        synthesis, guidance included, and `student_seconds`: processor time, which other work on the machine disturbs little.
    """
    shape, split = (data.channels, data.image_size, data.image_size), evaluated_on or data.test
    if not isinstance(split, Split):
        raise InputError(f"made images are measured against images in memory; {data.name} stays on disk")
    clock = _Clock()
    with _source(source_name, shape, networks.teacher, prior, guidance, domain, solver, num_steps) as source:
        found = distil_online(
            networks.teacher,
            fresh(networks.student, data, seed),
            clock.around(source),
            shape,
            data.num_classes,
            split,
            online,
            seed=seed,
            description=source_name,
        )
    seconds, student_seconds = clock.inside, clock.outside
    measured = image_scores(found.images, found.labels, networks.teacher, networks.judge, split.images)
    asked = source_name not in ("noise", "public")
    return {
        "seed": seed,
        "rule": source_name,
        "top1": found.last["top1"],
        "agreement": measured["agreement"] if asked else None,
        "judge": measured["judge_agreement"] if asked else None,
        "frechet": measured["frechet"],
        "seconds": seconds,
        "student_seconds": student_seconds,
    }


class _Clock:
    """Processor seconds of this process spent inside a source and, since the clock was made, outside of it."""

    def __init__(self):
        self.inside, self._started = 0.0, time.process_time()

    @property
    def outside(self) -> float:
        return time.process_time() - self._started - self.inside

    def around(self, source: Source) -> Source:
        def timed(labels: Tensor, generator: torch.Generator) -> Tensor:
            started = time.process_time()
            images = source(labels, generator)
            self.inside += time.process_time() - started
            return images

        return timed


@contextmanager
def _source(name, shape, teacher, prior, guidance, domain, solver, num_steps):
    if name == "noise":
        yield noise_source(shape)
    elif name == "public":
        yield pool_source(domain.images)
    else:
        with diffusion_source(
            prior, shape, teacher=teacher, guidance=guidance, solver=solver, num_steps=num_steps
        ) as source:
            yield source


def mean_and_spread(rows: Sequence[Mapping], metric: str = "top1") -> dict[tuple[str, str], tuple[float, float, int]]:
    """Mean, standard deviation (N - 1; 0 for one run) and number of runs of a metric, by (domain, rule)."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[metric] is not None:
            groups.setdefault((row["domain"], row["rule"]), []).append(row[metric])
    table = {}
    for key, values in groups.items():
        mean = sum(values) / len(values)
        squares = sum((value - mean) ** 2 for value in values)
        table[key] = mean, (squares / max(1, len(values) - 1)) ** 0.5, len(values)
    return table


def paired_rows(rows: Sequence[Mapping], domain: str, rule: str, baseline: str) -> list[dict]:
    """The rows of two rules in a domain, for the seeds that both ran with, as `kdnb.intervals.paired_difference` takes them."""
    found = {
        name: {row["seed"]: row for row in rows if row["domain"] == domain and row["rule"] == name}
        for name in (rule, baseline)
    }
    seeds = found[rule].keys() & found[baseline].keys()
    return [{"setting": name, **found[name][seed]} for name in (rule, baseline) for seed in sorted(seeds)]
