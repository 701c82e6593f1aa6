"""The L2 attack: successes succeed, the search only improves, the released form's habits."""

import pytest
import torch
from torch import nn

from kdnb.attacks.carlini_wagner import carlini_wagner_l2, carlini_wagner_l2_released, class_margin
from kdnb.attacks.pgd import projected_gradient
from kdnb.errors import InputError
from tests.attacks.nets import trained_net

QUICK = {"num_steps": 60, "search_steps": 4, "lr": 0.05, "initial_c": 0.1}


def test_a_success_changes_the_label_and_distances_are_what_they_say():
    model, images, labels = trained_net()
    result = carlini_wagner_l2(model, images[:8], labels[:8], **QUICK)
    assert result.success.all() and (model(result.images).argmax(1) != labels[:8]).all()
    assert result.images.abs().max() <= 1
    distance = (0.5 * (result.images - images[:8])).flatten(1).norm(dim=1)
    assert torch.allclose(distance, result.l2, atol=1e-6)


def test_the_distance_never_grows_from_one_search_step_to_the_next():
    model, images, labels = trained_net()
    history = carlini_wagner_l2(model, images[:8], labels[:8], **QUICK).l2_history
    assert history.shape == (4, 8) and (history[1:] <= history[:-1]).all() and (history[-1] < history[0]).any()


def test_a_linear_classifier_is_left_at_nearly_the_distance_of_its_border():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    model[1].weight.data = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=torch.float64)
    image = torch.tensor([[[[0.4, 0.1], [0.2, -0.3]]]], dtype=torch.float64)
    result = carlini_wagner_l2(model, image, torch.tensor([0]), lr=0.01, num_steps=300, search_steps=9, initial_c=0.01)
    assert result.success.item() and result.l2.item() == pytest.approx(0.2, rel=0.05)  # 0.4 in [-1, 1] is 0.2 in [0, 1]


def test_targets_are_reached_with_the_asked_confidence():
    model, images, labels = trained_net()
    wanted = (labels[:6] + 1) % 4
    result = carlini_wagner_l2(model, images[:6], wanted, targeted=True, confidence=1.0, **QUICK)
    assert result.success.all() and (model(result.images).argmax(1) == wanted).all()
    assert (class_margin(model(result.images), wanted) >= 1.0 - 1e-4).all()


def test_images_are_attacked_one_by_one_whatever_their_company():
    model, images, labels = trained_net()
    together = carlini_wagner_l2(model, images[:4], labels[:4], **QUICK)
    alone = carlini_wagner_l2(model, images[1:2], labels[1:2], **QUICK)
    assert together.l2[1].item() == pytest.approx(alone.l2.item(), rel=0.05)


def test_without_success_the_clean_image_comes_back():
    model, images, labels = trained_net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[3].bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    zero = torch.zeros(3, dtype=torch.int64)
    result = carlini_wagner_l2(model, images[:3], zero, num_steps=5, search_steps=2)
    assert not result.success.any() and torch.equal(result.images, images[:3]) and result.l2.isinf().all()


def test_the_margin_masks_the_class_itself_even_if_all_others_are_negative():
    logits = torch.tensor([[-1.0, -3.0, -2.0]])
    assert class_margin(logits, torch.tensor([0])).item() == 1.0
    assert class_margin(logits, torch.tensor([1]), targeted=True).item() == 2.0


def test_the_released_form_starts_from_grey_and_stays_in_the_unit_range():
    model, images, labels = trained_net()
    unit = (images[:4] + 1) / 2
    grey = carlini_wagner_l2_released(model, unit, labels[:4], max_iter=10, lr=0.0)
    assert torch.equal(grey, torch.full_like(unit, 0.5))
    moved = carlini_wagner_l2_released(model, unit, labels[:4], max_iter=200, c=0.0, lr=0.05)
    assert (moved - unit).abs().mean() < 0.01 < (grey - unit).abs().mean()


def test_the_released_form_stops_when_the_batch_cost_grows_and_returns_the_image_before_the_update():
    unit = torch.full((1, 1, 2, 2), 0.6)
    calls = []

    class Watched(nn.Module):
        def forward(self, x):
            calls.append(x.detach().clone())
            return x.flatten(1)[:, :2]

    stopped = carlini_wagner_l2_released(Watched(), unit, torch.tensor([0]), max_iter=50, lr=30.0, c=0.0)
    assert len(calls) < 50 and torch.equal(stopped, calls[-1])


def test_bad_settings_are_refused():
    model, images, labels = trained_net()
    with pytest.raises(InputError, match="confidence"):
        carlini_wagner_l2(model, images, labels, confidence=-1.0)
    with pytest.raises(InputError, match=r"\[-1, 1\]"):
        carlini_wagner_l2(model, 3 * images, labels)
    with pytest.raises(InputError, match="epsilon"):
        projected_gradient(model, images, labels, epsilon=0.0)


def test_projected_gradient_stays_in_its_box_and_hurts_more_than_noise():
    model, images, labels = trained_net()
    attacked = projected_gradient(
        model, images, labels, epsilon=0.2, step_size=0.05, rng=torch.Generator().manual_seed(0)
    )
    assert (attacked - images).abs().max() <= 0.4 + 1e-6 and attacked.abs().max() <= 1
    noise = (
        images + 0.4 * (torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).sign()
    ).clamp(-1, 1)
    accuracy = [(model(x).argmax(1) == labels).double().mean() for x in (images, noise, attacked)]
    assert accuracy[0] == 1.0 and accuracy[2] < accuracy[1] - 0.3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_full_step_without_a_random_start_is_the_signed_gradient():
    model, images, labels = trained_net()
    x = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), labels).backward()
    expected = (images + 0.1 * x.grad.sign()).clamp(-1, 1)
    ours = projected_gradient(model, images, labels, epsilon=0.05, step_size=0.05, num_steps=1, random_start=False)
    assert torch.allclose(ours, expected, atol=1e-6)
