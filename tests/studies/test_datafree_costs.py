"""The field's costs and comparisons: what is counted, what the cache holds, which point is on the front."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdnb.choices import DATAFREE_METHODS, DIFFUSION_SOURCES, SYNTHESIZERS
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.samplers.field import METHODS
from kdnb.samplers.source import SourceConfig, SourceSynthesizer
from kdnb.studies import datafree_field as field
from kdnb.studies import datafree_run
from kdnb.studies.datafree_loop import Meter
from kdnb.studies.datafree_run import datafree_run as run_of
from kdnb.studies.datafree_settings import SETTINGS, setting
from kdnb.studies.datafree_sources import diffusion_with
from kdnb.training.teachers import Trained
from tests.material import FloatPrior, classifier, run_datafree, smallest_setting, three_classes
from tests.samplers.nets import bare


class Counting(nn.Module):
    """A classifier that counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.inside, self.seen = classifier(9).eval(), 0
        self.head = self.inside.head

    def forward(self, images, return_features: bool = False):
        self.seen += len(images)
        return self.inside(images, return_features=return_features)


@pytest.mark.parametrize("name", METHODS)
def test_the_meter_counts_every_image_that_the_teacher_sees(name):
    teacher = Counting()
    found = run_datafree(name, teacher=teacher)[1]
    assert found.history[-1]["teacher_images"] == teacher.seen > 0
    assert all(a["cpu"] < b["cpu"] for a, b in zip(found.history, found.history[1:], strict=False))


def test_the_student_of_noise_costs_its_own_batches_and_nothing_else():
    draw = lambda labels, rng: torch.rand(len(labels), 1, 8, 8, generator=rng) * 2 - 1  # noqa: E731
    chosen = smallest_setting("noise", warmup=0)
    found = run_datafree("noise", chosen, source=draw)[1]
    assert [row["teacher_images"] for row in found.history] == [12, 24, 36, 48]  # two steps of six images a round
    assert found.inner == [] and "loss" not in found.history[0]


def test_a_meter_goes_on_from_what_was_spent_and_leaves_the_teacher_as_it_was():
    teacher = bare()
    with Meter(teacher, (100, 5.0)) as meter:
        teacher(torch.zeros(7, 1, 8, 8))
        before = meter.seconds
        with meter.pause():
            sum(i * i for i in range(200_000))
        assert meter.images == 107 and 5.0 <= before and meter.seconds - before < 0.01
    teacher(torch.zeros(7, 1, 8, 8))
    assert meter.images == 107


def test_the_classes_of_a_source_take_turns():
    made = SourceSynthesizer(lambda labels, rng: labels.float(), 3, SourceConfig(9))(torch.Generator().manual_seed(0))
    assert torch.bincount(made.labels).tolist() == [3, 3, 3] and not made.labels.equal(made.labels.sort().values)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        SourceConfig(0)


def test_the_table_of_names_is_that_of_the_methods():
    assert tuple(METHODS) == DATAFREE_METHODS
    assert field.ASSUMES.keys() == set(SYNTHESIZERS) and set(field.NO_CLASS_ASKED) < set(SYNTHESIZERS)


def test_published_constants_depend_on_the_teacher():
    cifar = three_classes("cifar10")
    assert setting("fast", cifar, "vgg11").synthesis.adv_weight == 1.0
    assert setting("fast", cifar, "wrn_40_2").synthesis.oh_weight == 0.4
    assert setting("dfq", cifar, "resnet34").student.lr == 0.05 and setting("dfq", cifar).student.lr == 0.1
    assert setting("nayer", three_classes("cifar100")).synthesis.num_steps == 40
    assert setting("fast", three_classes(), "vgg11") == setting("fast", three_classes())


# --- the cache -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(monkeypatch):
    """`datafree_run` on three classes of 8x8 images with a teacher that was never trained."""
    spec = three_classes()
    spec.hashes = {"test": "x"}
    monkeypatch.setattr(datafree_run, "fresh", lambda model, data, seed: classifier(seed))
    teacher = Trained(classifier(9).eval(), [{"top1": 0.0}], "teacher")

    def go(name, **arguments):
        arguments = {"chosen": smallest_setting(name, warmup=0)} | arguments
        return run_of(name, spec, teacher, "resnet8w4", **arguments)

    return go


def test_a_second_run_is_read_and_other_settings_are_another_run(cached, monkeypatch):
    first = cached("dfq", seed=1)
    monkeypatch.setattr(datafree_run, "distil_from_synthesizer", lambda *_, **__: pytest.fail("worked again"))
    again = cached("dfq", seed=1)
    assert again.history == first.history and torch.equal(again.images, first.images)
    assert all(torch.equal(a, b) for a, b in zip(again.student.parameters(), first.student.parameters(), strict=True))
    for other in ({"seed": 2}, {"chosen": smallest_setting("dfq", warmup=0, lr=0.03)}):
        with pytest.raises(pytest.fail.Exception):
            cached("dfq", **{"seed": 1} | other)


@pytest.mark.parametrize("name", ["noise", *DIFFUSION_SOURCES])
def test_what_needs_no_training_is_one_more_supply(cached, name):
    prior, how = FloatPrior(), {"rule": "joint", "guidance": "eta:0.3", "solver": "ddim", "num_steps": 2}
    prior.model = nn.Linear(1, 1)  # what its identity is made of
    made = cached(name, diffusion=diffusion_with(prior, how))
    assert made.images.shape[1:] == (1, 8, 8) and made.images.abs().max() <= 1 and 0 <= made.top1 <= 1
    asks = [row["teacher_images"] for row in made.history]
    student = 2 * 6 * len(asks)
    guided = name not in ("noise", "unguided")
    assert asks[-1] > student if guided else asks[-1] == student


def test_a_diffusion_source_without_a_prior_is_refused(cached):
    with pytest.raises(InputError, match="cadr draws from a diffusion prior; give one"):
        cached("cadr")
    with pytest.raises(InputError, match="did you mean 'nayer'"):
        run_of("nayr", three_classes(), None, "resnet8w4")


# --- comparing -----------------------------------------------------------------------------------------------------------------


def test_nothing_on_the_front_is_beaten_by_anything_cheaper():
    curves = {"a": [(1.0, 0.2), (4.0, 0.6)], "b": [(2.0, 0.7), (3.0, 0.7)], "c": [(1.0, 0.3), (9.0, 0.9)]}
    assert field.pareto_front(curves) == [(1.0, 0.3, "c"), (2.0, 0.7, "b"), (9.0, 0.9, "c")]


def test_curves_are_means_over_seeds_and_budgets_are_kept():
    rows = [
        {"method": "a", "seed": seed, "round": number, "cpu": number + seed, "top1": 0.1 * number + 0.2 * seed}
        for seed in (0, 1)
        for number in (1, 2)
    ]
    curves = field.mean_curves(rows, "cpu")
    assert [cost for cost, _ in curves["a"]] == [1.5, 2.5]
    assert [value for _, value in curves["a"]] == pytest.approx([0.2, 0.3])
    assert field.within(curves["a"], 2.0) == pytest.approx(0.2) and field.within(curves["a"], 1.0) is None
    costs = {"seconds": {"a": [(1.0, 0.2), (2.0, 0.4)], "b": [(4.0, 0.5), (6.0, 0.8)]}}
    assert field.at_equal_cost(costs) == [{"method": "a", "at 4 seconds": 0.4}, {"method": "b", "at 4 seconds": 0.5}]


def test_a_teacher_without_batch_norm_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(field, "classifier", lambda *_: bare())
    monkeypatch.setattr(field, "teacher_for", lambda *_, **__: pytest.fail("a teacher was trained"))
    with pytest.raises(InputError, match="cmi matches the statistics of batch-norm layers"):
        field.field_study(three_classes(), "bare", "resnet8w4", ["noise", "cmi"], [0])


def test_the_gallery_frames_only_where_a_class_was_asked_for():
    student, found = run_datafree("deepinversion")
    made = datafree_run.Run(student, found.history, found.images, found.labels, found.seconds)
    shown = field.gallery({"deepinversion": made, "noise": made}, classifier(9).eval(), ["0", "1", "2"], count=4)
    assert set(shown["frames"]) == {"deepinversion"} and len(shown["groups"]["noise"]) == 4
    assert all(title[0] in "012" for title in shown["titles"]["noise"])
    rows = field.image_table({"deepinversion": made, "noise": made}, classifier(9).eval())
    assert rows[1]["as_asked"] is None and 0 <= rows[0]["as_asked"] <= 1


def test_published_settings_are_left_when_a_student_changes():
    own = SETTINGS["cifar10"]["dfq"]
    assert own.changed({"width": 8}, lr=0.3) == own._replace(
        synthesis=replace(own.synthesis, width=8), student=replace(own.student, lr=0.3)
    )


def test_images_of_the_run_are_the_newest(cached, monkeypatch):
    monkeypatch.setattr(datafree_run, "KEPT", 6)
    made = cached("fast")
    assert len(made.images) == len(made.labels) == 6 and isinstance(Split(made.images, made.labels), Split)
