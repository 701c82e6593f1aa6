"""Reuse with any method that has a generator: what is loaded, what moves, who is refused."""

import pytest
import torch

from kdnb.choices import REUSABLE_METHODS
from kdnb.errors import InputError
from kdnb.generators.reusable import ReusableGenerator, Reuse, export_parts
from kdnb.samplers.contrastive_memory import MemoryConfig, MemorySynthesizer
from kdnb.samplers.one_step import OneStepConfig
from kdnb.samplers.one_step import build as one_step
from kdnb.studies import datafree_run
from kdnb.studies.field_reuse import parts_of, reuse_in_field
from kdnb.training.teachers import Trained
from tests.material import classifier, run_datafree, smallest_setting, three_classes
from tests.samplers.nets import problem, rng


def earlier(seed: int = 3) -> ReusableGenerator:
    torch.manual_seed(seed)
    return ReusableGenerator(8, 1, 5, 2)


def test_parts_of_a_state_are_those_of_the_network():
    for branch in ("gan1", "gan2"):
        for ours, theirs in zip(parts_of(earlier().state_dict(), branch), export_parts(earlier(), branch), strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("mode", "factor"), [("reuse_common", 1.0), ("reuse_finetune", 0.1), ("reuse_fix", 0.0)])
def test_a_one_step_generator_starts_from_the_parts_and_learns_at_the_modes_rates(mode, factor):
    parts = export_parts(earlier())
    config = OneStepConfig(latent_dim=5, width=2, batch_size=6, lr=1e-3, oh_weight=1.0)
    synthesizer = one_step(problem(), config, Reuse(mode, parts))
    assert all(torch.equal(parts[0][name], value) for name, value in synthesizer.generator.gan2.state_dict().items())
    before = [parameter.detach().clone() for parameter in synthesizer.generator.gan2.parameters()]
    synthesizer(rng())
    moved = max(
        float((a - b.detach()).abs().max())
        for a, b in zip(before, synthesizer.generator.gan2.parameters(), strict=True)
    )
    assert moved == pytest.approx(factor * 1e-3, rel=0.05, abs=1e-9)  # Adam's first step


def test_every_batch_of_cmi_starts_from_the_parts():
    parts, task = export_parts(earlier()), problem()
    config = MemoryConfig(5, 2, 6, num_steps=1, head_width=4, bank_size=12, negatives=8, crop_padding=1)
    synthesizer = MemorySynthesizer(earlier(0), task.teacher, task.student, 3, config, reuse=Reuse("reuse_fix", parts))
    for seed in (0, 1):
        synthesizer(rng(seed))
        fixed = [*synthesizer.generator.gan2.named_parameters()]
        assert all(torch.equal(parts[0][name], value) for name, value in fixed)


@pytest.mark.parametrize("name", ["deepinversion", "fast", "nayer", "spaceshipnet"])
def test_a_method_without_such_a_generator_is_refused(name):
    with pytest.raises(InputError, match=f"{name} has no generator to reuse; those that have are dafl, zskt"):
        run_datafree(name, reuse=Reuse())


@pytest.mark.parametrize("name", REUSABLE_METHODS)
def test_a_run_hands_its_generator_on_and_resumes(monkeypatch, name):
    task = three_classes()
    task.hashes = {"test": "x"}
    monkeypatch.setattr(datafree_run, "fresh", lambda model, data, seed: classifier(seed))
    monkeypatch.setattr(datafree_run, "setting", lambda name, *_: smallest_setting(name, warmup=0))
    teachers = [Trained(classifier(seed).eval(), [{"top1": 0.0}], f"teacher {seed}") for seed in (8, 9)]
    rows = reuse_in_field([name], task, *teachers, "resnet8w4", ("anew", "reuse_common"), seed=1)
    assert [row["mode"] for row in rows] == ["anew", "reuse_common"] and rows[0]["first_task"] == rows[1]["first_task"]
    assert rows[0]["first_loss"] != rows[1]["first_loss"]
    monkeypatch.setattr(datafree_run, "distil_from_synthesizer", lambda *_, **__: pytest.fail("worked again"))
    assert reuse_in_field([name], task, *teachers, "resnet8w4", ("anew", "reuse_common"), seed=1) == rows
