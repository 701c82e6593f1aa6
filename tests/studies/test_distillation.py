"""kdnb.studies.distillation: rows are what they say, finished students are not trained again, intervals are Student's."""

import math

import pytest
import torch

from kdnb.data import DATASETS
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.intervals import paired_difference, summarize
from kdnb.models import build
from kdnb.studies import distillation
from kdnb.studies.distillation import compare, one_at_a_time
from kdnb.training.distil import Setting, distil, student_recipe
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Trained, teacher_for

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05)


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.3
    images[torch.arange(count), 0, labels % 8, labels // 8 * 4] += 2
    return Split(images.clamp(-1, 1), labels)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    train, test = split(60, 0), split(40, 1)
    return Dataset(
        "digits", DATASETS["digits"], 8, private=train, public=Split(train.images), judge=train, train=train, test=test
    )


@pytest.fixture
def teacher():
    torch.manual_seed(7)
    return Trained(build("resnet8w4", 10, 1).eval(), [{"epoch": 1, "top1": 0.1}], "0123")


def rows_of(values, setting="a"):
    return [{"setting": setting, "seed": seed, "top1": value} for seed, value in values.items()]


# --- what networks hold ------------------------------------------------------------------------------------------------------


def test_looking_in_parts_is_looking_at_all(data, teacher, monkeypatch):
    images = data.test.images
    logits, regions = distillation.look(teacher.model, images, [1, 2])
    pooled = distillation.pooled_features(teacher.model, images)
    monkeypatch.setattr(distillation, "_AT_ONCE", 7)
    for found, whole in zip(distillation.look(teacher.model, images, [1, 2]), (logits, regions), strict=True):
        torch.testing.assert_close(found, whole)
    torch.testing.assert_close(distillation.pooled_features(teacher.model, images), pooled)
    with torch.inference_mode():
        torch.testing.assert_close(teacher.model.head(pooled), logits)


def test_a_map_keeps_two_clouds_apart_and_depends_on_its_seed_alone():
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    features[20:] += 20
    found = distillation.tsne(features, seed=1)
    assert found.shape == (40, 2) and torch.equal(found, distillation.tsne(features, seed=1))
    labels = torch.arange(40) // 20
    assert distillation.same_class_neighbours(found, labels).eq(1).all()


def test_neighbours_of_the_same_class_are_counted_without_the_image_itself():
    features, labels = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.tensor([0, 1, 1, 0])
    assert distillation.same_class_neighbours(features, labels, count=1).tolist() == [0, 0, 0, 0]
    assert distillation.same_class_neighbours(features, labels, count=2).tolist() == [0, 0.5, 0.5, 0]
    assert distillation.same_class_neighbours(features, labels).tolist() == pytest.approx([1 / 3] * 4)


def test_class_correlations_are_pearsons_and_zero_for_a_constant():
    logits = torch.tensor([[1.0, -2.0, 5.0], [2.0, -4.0, 5.0], [3.0, -6.0, 5.0]])
    expected = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert distillation.class_correlations(logits).tolist() == [pytest.approx(row) for row in expected]


# --- training ------------------------------------------------------------------------------------------------------------------


def test_the_baselines_come_first_and_every_cell_has_a_row(data, teacher):
    rows = compare({"SimKD": Setting("simkd")}, "resnet8w4", teacher, data, RECIPE, [0, 5], omitted_class=3)
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("student alone", 0),
        ("student alone", 5),
        ("plain KD", 0),
        ("plain KD", 5),
        ("SimKD", 0),
        ("SimKD", 5),
    ]
    assert [row["extra_parameters"] > 0 for row in rows] == [False] * 4 + [True] * 2
    assert rows[0]["omitted_top1"] == 0.0  # cross-entropy pushes a class it never sees below the others
    assert len({row["recipe"] for row in rows}) == 6 and {row["teacher"] for row in rows} == {"0123"}


def test_measures_are_those_written_out_by_hand(data, teacher):
    [row] = [
        row for row in compare({}, "resnet8w4", teacher, data, RECIPE, [0], omitted_class=3) if row["method"] == "kd"
    ]
    made = distil(Setting("kd"), "resnet8w4", teacher, data, RECIPE, seed=0, omitted_class=3)
    logits_s, logits_t = made.student(data.test.images), teacher.model(data.test.images)
    guess, labels = logits_s.argmax(1), data.test.labels
    p, q = logits_s.softmax(1), logits_t.softmax(1)
    assert row["top1"] == pytest.approx((guess == labels).float().mean().item())
    assert row["agreement"] == pytest.approx((guess == logits_t.argmax(1)).float().mean().item())
    assert row["kl_to_teacher"] == pytest.approx((q * (q / p).log()).sum(1).mean().item(), rel=1e-4)
    assert row["omitted_top1"] == pytest.approx((guess[labels == 3] == 3).float().mean().item())
    assert row["best_top1"] == max(epoch["top1"] for epoch in made.history)


def test_without_an_omitted_class_there_is_no_such_column(data, teacher):
    assert all("omitted_top1" not in row for row in compare({}, "resnet8w4", teacher, data, RECIPE, [0]))


def test_the_first_region_is_the_whole_image_and_nothing_is_trained(data, teacher):
    logits, regions = distillation.look(teacher.model, data.test.images, [1, 2])
    expected = teacher.model(data.test.images)
    assert regions.shape == (40, 10, 5) and not regions.requires_grad
    assert torch.allclose(logits, expected, atol=1e-6) and torch.allclose(regions[:, :, 0], expected, atol=1e-5)


def test_a_finished_student_is_not_trained_again(data, teacher, monkeypatch):
    first = distil(Setting("simkd"), "resnet8w4", teacher, data, RECIPE)
    monkeypatch.setattr("kdnb.training.distil.fit", None)
    second = distil(Setting("simkd"), "resnet8w4", teacher, data, RECIPE)
    assert torch.equal(first.logits(data.test.images), second.logits(data.test.images)) and first.key == second.key


@pytest.mark.parametrize(
    "change",
    [
        {"setting": Setting("kd", {"temperature": 2.0})},
        {"setting": Setting("dkd")},
        {"seed": 1},
        {"omitted_class": 2},
        {"student": "resnet8w8"},
    ],
)
def test_another_experiment_is_another_student(data, teacher, change):
    base = {"setting": Setting("kd"), "student": "resnet8w4", "teacher": teacher, "data": data, "recipe": RECIPE}
    assert distil(**base).key != distil(**base | change).key


def test_the_student_alone_is_shared_by_all_teachers(data, teacher):
    other = Trained(teacher.model, teacher.history, "4567")
    assert (
        distil(Setting("ce"), "resnet8w4", teacher, data, RECIPE).key
        == distil(Setting("ce"), "resnet8w4", other, data, RECIPE).key
    )
    assert (
        distil(Setting("kd"), "resnet8w4", teacher, data, RECIPE).key
        != distil(Setting("kd"), "resnet8w4", other, data, RECIPE).key
    )


def test_first_weights_and_first_batches_depend_on_the_seed_alone(data, teacher, monkeypatch):
    starts = []
    monkeypatch.setattr(
        "kdnb.training.distil.fit",
        lambda net, *_, **__: starts.append(net.state_dict()["conv1.weight"].clone()) or 1 / 0,
    )
    for setting in (Setting("ce"), Setting("simkd")):
        with pytest.raises(ZeroDivisionError):
            distil(setting, "resnet8w4", teacher, data, RECIPE, seed=3)
    assert torch.equal(*starts)


def test_a_teacher_from_a_checkpoint_is_measured_here(data, tmp_path):
    torch.manual_seed(1)
    net = build("resnet8w4", **data.normalization).eval()
    torch.save({"model": net.state_dict(), "accuracy": 99.0}, tmp_path / "teacher.pth")
    teacher = teacher_for("resnet8w4", data, str(tmp_path / "teacher.pth"))
    assert torch.equal(teacher.model(data.test.images), net(data.test.images))
    assert teacher.top1 == pytest.approx((net(data.test.images).argmax(1) == data.test.labels).float().mean().item())


# --- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("kdd"), "unknown method 'kdd'"),
        (Setting("kd", {"beta": 2}), "unknown hyper-parameter of kd 'beta'"),
        (Setting("sdd_kd", {"scales": [2, 4]}), "scales must begin with 1"),
        (Setting("sdd_kd", {"scales": [1, 3]}), "scales must be ascending"),
        (Setting("fitnet", {"hint": 9}), "hint"),
        (Setting("kd", {"temperature": 0.0}), "temperature must be"),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence(data, teacher, setting, message):
    with pytest.raises(InputError, match=message) as caught:
        distil(setting, "resnet8w4", teacher, data, RECIPE)
    assert "\n" not in str(caught.value)


def test_a_bad_setting_is_refused_before_the_first_is_trained(data, teacher, monkeypatch):
    monkeypatch.setattr("kdnb.training.distil.fit", None)
    with pytest.raises(InputError, match="scales must begin with 1"):
        compare({"x": Setting("sdd_kd", {"scales": [4]})}, "resnet8w4", teacher, data, RECIPE, [0])


def test_a_bad_pair_class_or_network_is_refused(data, teacher):
    torch.manual_seed(0)
    stranger = Trained(build("resnet8w4", 7, 1).eval(), teacher.history, "89ab")
    with pytest.raises(InputError, match="teacher has 7 classes, the data 10"):
        distil(Setting("kd"), "resnet8w4", stranger, data, RECIPE)
    with pytest.raises(InputError, match="classes 0 to 9, got 10"):
        distil(Setting("kd"), "resnet8w4", teacher, data, RECIPE, omitted_class=10)
    with pytest.raises(InputError, match="unknown model"):
        distil(Setting("kd"), "resnet8w5", teacher, data, RECIPE)


def test_a_loss_that_is_not_a_number_names_method_term_and_step(data, teacher):
    data.train.images[:] = math.nan
    with pytest.raises(FloatingPointError, match="kd, seed 4: .*kd became infinite or NaN at step 0"):
        distil(Setting("kd"), "resnet8w4", teacher, data, RECIPE, seed=4)


# --- statistics ----------------------------------------------------------------------------------------------------------------


def test_the_paired_interval_is_the_one_computed_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3)."""
    rows = rows_of({0: 5.0, 1: 7.0, 2: 9.0}) + rows_of({2: 6.0, 0: 4.0, 1: 5.0}, "b")
    found = paired_difference(rows, "a", "b")
    assert found.mean == 2 and found.n == 3
    assert found.high - found.mean == pytest.approx(
        4.302652730 / math.sqrt(3)
    ) and found.low + found.high == pytest.approx(4)


def test_pairing_removes_what_seeds_have_in_common():
    rows = rows_of({0: 10.0, 1: 50.0}) + rows_of({0: 9.0, 1: 49.0}, "b")
    assert paired_difference(rows, "a", "b") == (1.0, 1.0, 1.0, 2)


def test_one_pair_has_no_interval():
    found = paired_difference(rows_of({0: 2.0}) + rows_of({0: 1.5}, "b"), "a", "b")
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)


def test_unpaired_or_unknown_settings_are_refused():
    rows = rows_of({0: 1.0, 1: 1.0}) + rows_of({0: 1.0, 2: 1.0}, "b")
    with pytest.raises(InputError, match=r"same seeds: \[0, 1\] and \[0, 2\]"):
        paired_difference(rows, "a", "b")
    with pytest.raises(InputError, match="unknown setting 'c'"):
        paired_difference(rows, "c", "b")


def test_the_summary_has_means_and_deviations_of_what_was_measured():
    a, b = summarize(rows_of({0: 1.0, 1: 3.0}) + rows_of({0: 4.0}, "b"))
    assert a == {"setting": "a", "n": 2, "top1": 2.0, "top1_sd": pytest.approx(math.sqrt(2))}
    assert b["top1"] == 4.0 and math.isnan(b["top1_sd"])


def test_milestones_choose_the_schedule_of_the_published_tables(data):
    steps, cycle = (
        student_recipe(data, [150, 180, 210], epochs=240, batch_size=64, lr=0.05),
        student_recipe(data, epochs=8, batch_size=64, lr=0.1),
    )
    assert (steps.schedule, steps.milestones, steps.lr_gamma, steps.nesterov) == (
        "multistep",
        (150, 180, 210),
        0.1,
        False,
    )
    assert (cycle.schedule, cycle.nesterov) == ("one_cycle", True)


def test_one_hyper_parameter_is_changed_at_a_time():
    found = one_at_a_time(Setting("sdd_kd", {"warmup": 3}))
    assert {name: list(choices) for name, choices in found.items()} == {
        "scales": ["1", "1,2", "1,2,4"],
        "temperature": ["2", "4", "8"],
        "kd_weight": ["0.3", "0.9", "2.7"],
    }
    assert all(
        choice.hyper == {"warmup": 3, name: choice.hyper[name]}
        for name, choices in found.items()
        for choice in choices.values()
    )
    assert list(one_at_a_time(Setting("dkd"))) == ["temperature"] and one_at_a_time(Setting("ce")) == {}


def test_a_setting_is_checked_when_it_is_made():
    with pytest.raises(InputError, match="did you mean 'beta'"):
        Setting.read("dkd betaa:2")
    with pytest.raises(InputError, match="scales must begin with 1"):
        Setting.make("sdd_kd", scales=[2, 4], temperature=None)


def test_a_setting_is_read_from_a_line():
    assert Setting.read("sdd_dkd scales:1,2,4 beta:6") == ("sdd_dkd", {"scales": [1, 2, 4], "beta": 6})
