"""kdnb.training.recipe: the learning rate is the authorities', bad settings are refused."""

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.training.recipe import Recipe, learning_rate


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
    expected = rates_of(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=35, pct_start=0.25, cycle_momentum=False),
        recipe,
        7,
        per_epoch=False,
    )
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


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"schedule": "cosin"},
        {"precision": "fp8"},
        {"layout": "nhwc"},
        {"milestones": (5, 2)},
        {"eval_every": 0},
    ],
)
def test_bad_recipes_are_refused(bad):
    with pytest.raises(InputError):
        Recipe(**{"epochs": 1, "batch_size": 2, "lr": 0.1} | bad)
