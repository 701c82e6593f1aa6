"""The study of guidance: its settings differ in what they say, and a row holds what was measured."""

import dataclasses

import pytest
import torch

from kdnb.data import load
from kdnb.data.domains import PriorDomain
from kdnb.models import build
from kdnb.parameters import GUIDANCE, group
from kdnb.runner.plan import resolve_experiment
from kdnb.samplers.cadr import SEPARATE, GuidanceConfig
from kdnb.studies.fast_ad import OnlineConfig
from kdnb.studies.guidance import (
    Networks,
    compared_rules,
    guidance_from,
    guidance_rules,
    guided_student,
    mean_and_spread,
    paired_rows,
    without_each_part,
)
from tests.material import FloatPrior

ONLINE = OnlineConfig(epochs=2, images_per_epoch=10, student_steps=1, batch_size=8, buffer_size=20, balanced=True)


def test_constant_strength_is_cadr_with_an_open_gate():
    rules = guidance_rules(eta=0.3)
    assert rules["unguided"] is None and rules["separate"] == SEPARATE
    assert dataclasses.replace(rules["CADR"], gate="constant") == rules["constant"] and rules["CADR"].eta == 0.3


def test_beside_an_own_separate_rule_cadr_is_the_published_one_with_its_shared_constants():
    own = dataclasses.replace(SEPARATE, eta=0.7, threshold=0.2, sharpness=5.0, xi=1e-4, bn_squared=True, ce_weight=9.0)
    rules = compared_rules(own)
    cadr = GuidanceConfig(eta=0.7, threshold=0.2, sharpness=5.0, xi=1e-4, bn_squared=True)
    assert list(rules) == ["unguided", "CADR", "constant", "separate"]
    assert rules["separate"] == own and rules["CADR"] == cadr
    assert rules["constant"] == dataclasses.replace(cadr, gate="constant")


def test_beside_an_own_cadr_the_separate_rule_is_the_default_one():
    own = GuidanceConfig(eta=0.2, lambda_max=3.0, ce_weight=2.0)
    rules = compared_rules(own)
    assert rules["CADR"] == own and rules["separate"] == SEPARATE
    assert rules["constant"] == dataclasses.replace(own, gate="constant")


def test_a_notebooks_parameters_reach_every_constant_of_the_rule():
    values = {
        "gate": "constant",
        "lambda_max": 1.25,
        "eta": 0.75,
        "entropy_threshold": 0.3,
        "sharpness": 7.0,
        "xi": 1e-5,
        "ce_weight": 1.75,
        "bn_weight": 0.25,
        "ce_reduction": "mean",
        "squared_norms": True,
        "views": 3,
        "variant": "reference",
    }
    assert set(values) == set(GUIDANCE)
    text = " ".join(f"{name}:{str(value).lower()}" for name, value in values.items())
    found = dataclasses.asdict(guidance_from({"rule": "joint", "guidance": text}))
    renamed = {"entropy_threshold": "threshold", "squared_norms": "bn_squared"}
    assert {name: found[renamed.get(name, name)] for name in values} == values


def test_a_rule_without_changes_is_as_it_was_published_or_tried():
    assert guidance_from({"rule": "joint", "guidance": ""}) == GuidanceConfig()
    assert guidance_from({"rule": "separate", "guidance": ""}) == SEPARATE


def test_the_published_file_is_the_released_arithmetic_with_the_published_constants():
    p = resolve_experiment("03_fast_ad/published", "cifar100")
    released = GuidanceConfig(variant="reference", ce_reduction="mean")
    online = {"epochs": 200, "student_steps": 100, "buffer_size": 4096, "augment": False, "balanced": False}
    assert guidance_from(p) == released and (p.solver, p.num_steps) == ("ddim", 50)
    assert {name: (p | group(p, "online"))[name] for name in online} == online


def test_every_ablation_differs_from_the_full_rule_and_from_the_others():
    settings = without_each_part(dataclasses.replace(SEPARATE, views=2))
    assert settings["full rule"].views == 2 and settings["one view"] == SEPARATE
    assert len(set(settings.values())) == len(settings) and not any(config.off for config in settings.values())
    assert "one view" not in without_each_part(SEPARATE)


@pytest.fixture(scope="module")
def world():
    data = load("digits")
    teacher, judge = (build("resnet8w4", num_classes=10, in_channels=1).eval() for _ in range(2))
    return data, Networks(teacher, judge, "resnet8w4")


@pytest.mark.parametrize("source", ["noise", "public", "separate"])
def test_a_row_holds_what_was_measured(source, world):
    data, networks = world
    domain = PriorDomain("foreign", torch.zeros(6, 1, 16, 16), 0, "black", (0,) * 10)
    row = guided_student(
        data,
        networks,
        source,
        ONLINE,
        prior=FloatPrior(),
        guidance=SEPARATE,
        domain=domain,
        num_steps=2,
        evaluated_on=data.private.subset(torch.arange(50)),
    )
    assert row["rule"] == source and 0 <= row["top1"] <= 1 and row["frechet"] > 0
    assert row["seconds"] >= 0 and row["student_seconds"] > 0
    assert (row["agreement"] is None) == (source != "separate") == (row["judge"] is None)


def test_mean_and_spread_by_hand():
    rows = [{"domain": "same", "rule": "CADR", "top1": value} for value in (0.5, 0.7)]
    rows += [{"domain": "same", "rule": "noise", "top1": 0.1}, {"domain": "same", "rule": "noise", "top1": None}]
    table = mean_and_spread(rows)
    assert table["same", "CADR"] == (pytest.approx(0.6), pytest.approx(0.02**0.5), 2)
    assert table["same", "noise"] == (0.1, 0.0, 1)


def test_pairs_are_the_seeds_that_both_rules_ran_with():
    runs = [(0, "separate"), (1, "separate"), (2, "separate"), (2, "CADR"), (1, "CADR"), (3, "CADR")]
    rows = [{"domain": "mixed", "rule": rule, "seed": seed, "top1": seed / 10} for seed, rule in runs]
    rows.append({"domain": "same", "rule": "CADR", "seed": 0, "top1": 0.9})
    found = paired_rows(rows, "mixed", "separate", "CADR")
    assert [(row["setting"], row["seed"]) for row in found] == [
        ("separate", 1),
        ("separate", 2),
        ("CADR", 1),
        ("CADR", 2),
    ]
