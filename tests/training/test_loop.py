"""kdnb.training.loop: the loop does what is written down, resumes bit for bit, and refuses bad input before work starts."""

import dataclasses

import pytest
import torch
from torch import nn

from kdnb import methods
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.methods.base import Method
from kdnb.models import build
from kdnb.training import loop
from kdnb.training.evaluation import evaluate
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from tests.material import Killed, classifier, same_weights

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, nesterov=True, crop_padding=1, flip=True)


def blobs(count: int = 44, seed: int = 0) -> Split:
    """Three classes of 1x8x8 images, each a bright bar in another place, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.2 - 0.8
    for label in range(3):
        images[labels == label, :, 1 + 2 * label : 3 + 2 * label] += 1.2
    return Split(images.clamp(-1, 1), labels)


def trained(recipe: Recipe = RECIPE, **arguments):
    student = classifier(0)
    found = fit(student, blobs(), blobs(seed=1), recipe, seed=5, **arguments)
    return student, found


# --- the loop ------------------------------------------------------------------------------------------------------------------


def test_plain_training_learns():
    student, found = trained(dataclasses.replace(RECIPE, epochs=12, lr=0.1))
    assert found.last["top1"] > 0.8 and found.last["train_ce"] < found.history[0]["train_ce"]
    assert found.last["epoch"] == 12 and found.best["top1"] >= found.last["top1"] and not student.training


def test_one_step_equals_sgd_written_out():
    """One epoch of one batch without augmentation against torch's own optimiser by hand."""
    recipe = Recipe(epochs=1, batch_size=44, lr=0.1, schedule="constant", weight_decay=1e-3)
    student, reference, data = classifier(0), classifier(0), blobs()
    fit(student, data, data, recipe)
    order = data.permutation(0, 0)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=1e-3)
    nn.functional.cross_entropy(reference.train()(data.images[order]), data.labels[order]).backward()
    optimizer.step()
    assert same_weights(student, reference)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, _ = trained()
    b, _ = trained()
    c = classifier(0)
    fit(c, blobs(), blobs(seed=1), RECIPE, seed=6)
    assert same_weights(a, b) and not same_weights(a, c)


VARIANTS = {
    "plain": {},
    "one cycle, clipped": {"clip_norm": 1.0},
    "averaged": {"ema_decay": 0.9},
    "channels last": {"layout": "channels_last"},
    "multistep": {"schedule": "multistep", "milestones": (1, 2)},
    "bf16": {"precision": "bf16"},
}


STOPS = [("plain", stop) for stop in (0, 1, 6, 7, 17)] + [
    (variant, stop) for variant in list(VARIANTS)[1:] for stop in (1, 7)
]


@pytest.mark.parametrize(("variant", "stop"), STOPS)
def test_a_killed_run_resumes_bit_for_bit(variant, stop, tmp_path, monkeypatch):
    net = "resnet8" if variant == "channels last" else "resnet8w4"  # stages under 8 channels crash in channels_last
    recipe = dataclasses.replace(RECIPE, **VARIANTS[variant])
    teacher = classifier(3).eval()
    method = {"method": methods.build("kd"), "teacher": teacher}

    def student():
        torch.manual_seed(0)
        return build(net, num_classes=3, in_channels=1)

    straight = student()
    expected = fit(straight, blobs(), blobs(seed=1), recipe, seed=5, **method)

    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)  # a checkpoint after every step
    calls = 0

    def dying(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise Killed
        return type(teacher).forward(teacher, *arguments, **keywords)

    monkeypatch.setattr(teacher, "forward", dying)
    with pytest.raises(Killed):
        fit(student(), blobs(), blobs(seed=1), recipe, seed=5, folder=tmp_path, **method)
    monkeypatch.undo()
    resumed = student()
    found = fit(resumed, blobs(), blobs(seed=1), recipe, seed=5, folder=tmp_path, **method)
    assert same_weights(straight, resumed)
    assert found.history == expected.history


def test_student_and_adapters_end_as_averages_of_their_steps(monkeypatch):
    recipe = Recipe(epochs=1, batch_size=22, lr=0.1, ema_decay=0.9)
    student, teacher = classifier(0), classifier(3).eval()
    method = methods.build("simkd").bind(student, teacher, (1, 8, 8), 3, 22)
    steps, accumulate = [], loop._accumulate

    def recording(*arguments):
        steps.append([{key: value.clone() for key, value in part.state_dict().items()} for part in (student, method)])
        accumulate(*arguments)

    monkeypatch.setattr(loop, "_accumulate", recording)
    found = fit(student, blobs(), blobs(seed=1), recipe, method=method, teacher=teacher)
    for part, first, second in zip((student, method), *steps, strict=True):
        for key, value in part.state_dict().items():
            expected = torch.lerp(first[key], second[key], 0.1) if value.is_floating_point() else second[key]
            assert torch.equal(value, expected), key
    assert found.last["top1"] == evaluate(student, blobs(seed=1), method.predict)["top1"]


class Recording(Method):
    """Cross-entropy that asks for everything and writes down what it gets."""

    needs_features, needs_indices, needs_preactivations, batch_statistics = True, True, ("student", "teacher"), True
    needs_labels = True
    ce_weight = 1.0

    def __init__(self):
        super().__init__()
        self.seen, self.prepared = [], 0
        self.register_buffer("first", torch.zeros(1, 8, 8))

    def prepare(self, student, teacher, train):
        self.prepared += 1
        self.first.copy_(train.images[0])

    def forward(self, student, teacher, labels, epoch, indices=None, generator=None):
        self.seen.append((student, teacher, labels, indices, torch.rand(1, generator=generator)))
        return self.ce_term(student, labels)


def test_a_method_gets_what_it_asks_for():
    student, teacher, method, data = classifier(0), classifier(3).eval(), Recording(), blobs()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    fit(
        student,
        data,
        data,
        dataclasses.replace(RECIPE, epochs=1, crop_padding=0, flip=False),
        method=method,
        teacher=teacher,
    )
    assert method.prepared == 1 and torch.equal(method.first, data.images[0])
    for features_s, features_t, labels, indices, _ in method.seen:
        assert torch.equal(labels, data.labels[indices])
        assert len(features_s.preactivations) == len(features_t.preactivations) == 4
        assert all(map(torch.equal, map(torch.relu, features_t.preactivations), features_t.feats))
        assert not features_t.logits.is_inference() and not features_t.preactivations[1].is_inference()
        assert not torch.equal(features_t.logits, teacher(data.images[indices]))
    assert torch.equal(torch.cat([seen[3] for seen in method.seen]).sort().values, torch.arange(44))
    assert len({float(seen[4]) for seen in method.seen}) == len(method.seen)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_preparation_is_not_repeated_by_a_run_that_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    teacher, first, second = classifier(3).eval(), Recording(), Recording()
    whole = Recording()
    fit(classifier(0), blobs(), blobs(), RECIPE, method=whole, teacher=teacher)
    accumulate = loop._accumulate

    def dying(*arguments):
        if len(first.seen) == 8:
            raise Killed
        accumulate(*arguments)

    monkeypatch.setattr(loop, "_accumulate", dying)
    with pytest.raises(Killed):
        fit(classifier(0), blobs(), blobs(), RECIPE, method=first, teacher=teacher, folder=tmp_path)
    monkeypatch.setattr(loop, "_accumulate", accumulate)
    fit(classifier(0), blobs(), blobs(), RECIPE, method=second, teacher=teacher, folder=tmp_path)
    assert (first.prepared, second.prepared) == (1, 0) and torch.equal(second.first, blobs().images[0])
    assert [float(seen[4]) for seen in second.seen] == [float(seen[4]) for seen in whole.seen][7:]
    assert torch.equal(torch.cat([seen[3] for seen in second.seen]), torch.cat([seen[3] for seen in whole.seen[7:]]))


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    first, _ = trained(folder=tmp_path)
    steps = []
    monkeypatch.setattr(loop, "_accumulate", lambda *_: steps.append(1))
    second, _ = trained(folder=tmp_path)
    assert steps == [] and same_weights(first, second)


def test_a_last_batch_of_one_image_is_dropped():
    student = classifier(0)
    found = fit(student, blobs(17), blobs(), Recipe(epochs=1, batch_size=8, lr=0.1))
    assert found.last["epoch"] == 1  # 8 + 8 + 1: batch norm could not have trained on the last one


@pytest.mark.parametrize("training", [False, True])
def test_the_teacher_is_left_alone(training):
    teacher = classifier(3).train(training)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fit(classifier(0), blobs(), blobs(), RECIPE, method=methods.build("kd"), teacher=teacher)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(module.training == training for module in teacher.modules())


def test_soft_targets_alone_need_no_labels():
    data = blobs()
    found = fit(
        classifier(0),
        Split(data.images),
        data,
        RECIPE,
        method=methods.build("kd", ce_weight=0.0, kd_weight=1.0),
        teacher=classifier(3).eval(),
    )
    assert set(found.last) >= {"train_kd", "top1"} and "train_ce" not in found.last


# --- refusals ------------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_term_and_step():
    data = blobs()
    data.images[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"ce became infinite or NaN at step 0"):
        fit(classifier(0), data, blobs(), RECIPE)


def test_a_method_without_its_teacher_or_labels_is_refused():
    data = blobs()
    with pytest.raises(InputError, match="teacher"):
        fit(classifier(0), data, data, RECIPE, method=methods.build("kd"))
    with pytest.raises(InputError, match="labels"):
        fit(classifier(0), Split(data.images), data, RECIPE)


def test_an_unbound_method_is_refused_with_what_to_call():
    with pytest.raises(InputError, match=r"FitNet has adapters and was not bound.*call method.bind\(student, teacher"):
        fit(classifier(0), blobs(), blobs(), RECIPE, method=methods.build("fitnet"), teacher=classifier(1))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (lambda x: ((x + 1) * 127.5).to(torch.uint8), None, r"images must be floats in \[-1, 1\], got torch.uint8"),
        (lambda x: (x + 1) * 127.5, None, r"got values from 0 to 25[0-9.]+; divide by 127.5 and subtract 1"),
        (lambda x: x, lambda y: y + 1, "tells 3 classes apart, 0 to 2; the labels go from 1 to 3"),
    ],
)
def test_images_and_labels_of_another_kind_are_refused(images, labels, message):
    data = blobs()
    wrong = Split(images(data.images), labels(data.labels) if labels else data.labels)
    with pytest.raises(InputError, match=message):
        fit(classifier(0), wrong, data, RECIPE)


def test_plain_modules_can_be_student_and_teacher():
    def plain(seed):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        return nn.Sequential(*layers)

    student, before = plain(0), plain(0)
    found = fit(student, blobs(), blobs(), RECIPE, method=methods.build("kd"), teacher=plain(1))
    assert len(found.history) == RECIPE.epochs and not same_weights(student, before)


def test_channels_last_is_refused_for_narrow_stages_which_it_crashes():
    with pytest.raises(InputError, match="layout must be contiguous"):
        fit(classifier(0), blobs(), blobs(), dataclasses.replace(RECIPE, layout="channels_last"))


def test_no_images_are_refused():
    with pytest.raises(InputError, match="at least 2 images"):
        fit(classifier(0), blobs(0), blobs(), RECIPE)
