"""kdnb.training: the schedule is the authorities', the loop resumes bit for bit, bad input is refused before work starts."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from kdnb import methods, training
from kdnb.data.tensors import Split
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.training import Recipe, evaluate, fit, learning_rate, predict_logits

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, nesterov=True, crop_padding=1, flip=True)


def blobs(count: int = 44, seed: int = 0) -> Split:
    """Three classes of 1x8x8 images, each a bright bar in another place, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.2 - 0.8
    for label in range(3):
        images[labels == label, :, 1 + 2 * label: 3 + 2 * label] += 1.2
    return Split(images.clamp(-1, 1), labels)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet8w4", num_classes=3, in_channels=1)


def trained(recipe: Recipe = RECIPE, **arguments):
    student = network()
    found = fit(student, blobs(), blobs(seed=1), recipe, seed=5, **arguments)
    return student, found


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Killed(BaseException):
    """Stands for a signal: nothing in the loop may catch it."""


# --- schedule ------------------------------------------------------------------------------------------------------------------

def rates_of(make_scheduler, recipe: Recipe, steps_per_epoch: int, per_epoch: bool) -> list[float]:
    """The rates that a scheduler of torch gives, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for step in range(recipe.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (not per_epoch or (step + 1) % steps_per_epoch == 0) and step + 1 < recipe.epochs * steps_per_epoch:
            scheduler.step()
    return rates


def test_one_cycle_equals_torch():
    recipe = Recipe(epochs=5, batch_size=8, lr=0.3, schedule="one_cycle")
    expected = rates_of(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=35, pct_start=0.25, cycle_momentum=False),
                        recipe, 7, per_epoch=False)
    assert [learning_rate(recipe, step, 7) for step in range(35)] == pytest.approx(expected, rel=1e-9)


def test_one_cycle_of_very_few_steps_has_no_rise():
    for steps in (1, 2, 3, 4):
        rates = [learning_rate(Recipe(epochs=1, batch_size=2, lr=0.1), step, steps) for step in range(steps)]
        assert rates[0] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)


def test_multistep_equals_torch():
    recipe = Recipe(epochs=6, batch_size=8, lr=0.1, schedule="multistep", milestones=(2, 5))
    expected = rates_of(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], 0.1), recipe, 3, per_epoch=True)
    assert [learning_rate(recipe, step, 3) for step in range(18)] == pytest.approx(expected)


def test_cosine_equals_torch():
    recipe = Recipe(epochs=6, batch_size=8, lr=0.2, schedule="cosine", final_lr=2e-4)
    expected = rates_of(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6, 2e-4), recipe, 3, per_epoch=True)
    assert [learning_rate(recipe, step, 3) for step in range(18)] == pytest.approx(expected)


def test_the_warm_up_is_linear():
    recipe = Recipe(epochs=4, batch_size=8, lr=1.0, schedule="constant", warmup_epochs=2)
    assert [learning_rate(recipe, step, 2) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


# --- the loop ------------------------------------------------------------------------------------------------------------------

def test_plain_training_learns():
    student, found = trained(dataclasses.replace(RECIPE, epochs=12, lr=0.1))
    assert found.last["top1"] > 0.8 and found.last["train_ce"] < found.history[0]["train_ce"]
    assert found.last["epoch"] == 12 and found.best["top1"] >= found.last["top1"] and not student.training


def test_one_step_equals_sgd_written_out():
    """One epoch of one batch without augmentation against torch's own optimiser by hand."""
    recipe = Recipe(epochs=1, batch_size=44, lr=0.1, schedule="constant", weight_decay=1e-3)
    student, reference, data = network(), network(), blobs()
    fit(student, data, data, recipe)
    order = data.permutation(0, 0)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=1e-3)
    nn.functional.cross_entropy(reference.train()(data.images[order]), data.labels[order]).backward()
    optimizer.step()
    assert same_weights(student, reference)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, _ = trained()
    b, _ = trained()
    c = network()
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


STOPS = [("plain", stop) for stop in (0, 1, 6, 7, 17)] + [(variant, stop) for variant in list(VARIANTS)[1:] for stop in (1, 7)]


@pytest.mark.parametrize(("variant", "stop"), STOPS)
def test_a_killed_run_resumes_bit_for_bit(variant, stop, tmp_path, monkeypatch):
    net = "resnet8" if variant == "channels last" else "resnet8w4"  # stages under 8 channels crash in channels_last
    recipe = dataclasses.replace(RECIPE, **VARIANTS[variant])
    teacher = network(3).eval()
    method = {"method": methods.build("kd"), "teacher": teacher}

    def student():
        torch.manual_seed(0)
        return build(net, num_classes=3, in_channels=1)

    straight = student()
    expected = fit(straight, blobs(), blobs(seed=1), recipe, seed=5, **method)

    monkeypatch.setattr(training, "_SAVE_EVERY", -1.0)  # a checkpoint after every step
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
    student, teacher = network(), network(3).eval()
    method = methods.build("simkd").bind(student, teacher, (1, 8, 8), 3, 22)
    steps, accumulate = [], training._accumulate

    def recording(*arguments):
        steps.append([{key: value.clone() for key, value in part.state_dict().items()} for part in (student, method)])
        accumulate(*arguments)

    monkeypatch.setattr(training, "_accumulate", recording)
    found = fit(student, blobs(), blobs(seed=1), recipe, method=method, teacher=teacher)
    for part, first, second in zip((student, method), *steps, strict=True):
        for key, value in part.state_dict().items():
            expected = torch.lerp(first[key], second[key], 0.1) if value.is_floating_point() else second[key]
            assert torch.equal(value, expected), key
    assert found.last["top1"] == evaluate(student, blobs(seed=1), method.predict)["top1"]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY", -1.0)
    first, _ = trained(folder=tmp_path)
    steps = []
    monkeypatch.setattr(training, "_accumulate", lambda *_: steps.append(1))
    second, _ = trained(folder=tmp_path)
    assert steps == [] and same_weights(first, second)


def test_a_last_batch_of_one_image_is_dropped():
    student = network()
    found = fit(student, blobs(17), blobs(), Recipe(epochs=1, batch_size=8, lr=0.1))
    assert found.last["epoch"] == 1  # 8 + 8 + 1: batch norm could not have trained on the last one


def test_evaluation_counts_and_puts_the_mode_back():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[3.0, 2, 1, 0, -1, -2]]).repeat(len(x), 1)

    split = Split(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 4, 5]))
    model = Fixed().train()
    found = evaluate(model, split, batch_size=3)
    assert found["top1"] == 0.25 and found["top5"] == 0.75 and model.training
    log_partition = math.log(sum(math.exp(value) for value in (3, 2, 1, 0, -1, -2)))
    assert found["loss"] == pytest.approx(log_partition - (3 + 2 - 1 - 2) / 4)


def test_predictions_are_those_of_eval_mode():
    student, data = network().train(), blobs()
    logits = predict_logits(student, data.images, batch_size=7)
    assert student.training and torch.allclose(logits, student.eval()(data.images), atol=1e-6)


def test_the_teacher_is_left_alone():
    teacher = network(3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fit(network(), blobs(), blobs(), RECIPE, method=methods.build("kd"), teacher=teacher.eval())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_soft_targets_alone_need_no_labels():
    data = blobs()
    found = fit(network(), Split(data.images), data, RECIPE, method=methods.build("kd", ce_weight=0.0, kd_weight=1.0), teacher=network(3).eval())
    assert set(found.last) >= {"train_kd", "top1"} and "train_ce" not in found.last


# --- refusals ------------------------------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_a_number_stops_the_run_and_names_term_and_step():
    data = blobs()
    data.images[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"ce became infinite or NaN at step 0"):
        fit(network(), data, blobs(), RECIPE)


def test_a_method_without_its_teacher_or_labels_is_refused():
    data = blobs()
    with pytest.raises(InputError, match="teacher"):
        fit(network(), data, data, RECIPE, method=methods.build("kd"))
    with pytest.raises(InputError, match="labels"):
        fit(network(), Split(data.images), data, RECIPE)


def test_channels_last_is_refused_for_narrow_stages_which_it_crashes():
    with pytest.raises(InputError, match="layout must be contiguous"):
        fit(network(), blobs(), blobs(), dataclasses.replace(RECIPE, layout="channels_last"))


def test_no_images_are_refused():
    with pytest.raises(InputError, match="at least 2 images"):
        fit(network(), blobs(0), blobs(), RECIPE)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"schedule": "cosin"}, {"precision": "fp8"},
                                 {"layout": "nhwc"}, {"milestones": (5, 2)}, {"eval_every": 0}])
def test_bad_recipes_are_refused(bad):
    with pytest.raises(InputError):
        Recipe(**{"epochs": 1, "batch_size": 2, "lr": 0.1} | bad)
