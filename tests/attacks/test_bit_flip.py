"""The progressive search: against a slow version, with and without reuse, undone, resumed, exhausted; controls and counts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnb.attacks.bit_flip import NothingToFlip, ProgressiveBitSearch
from kdnb.attacks.flips import Flip, apply_flips, flips_to_chance, hamming, random_flips, undo_flips
from kdnb.attacks.quantization import Quantization, bit_weights
from kdnb.errors import InputError
from tests.attacks.nets import small_net, trained_net


def search(seed=0, **settings):
    model, images = small_net(seed)
    return ProgressiveBitSearch(
        Quantization(model, settings.pop("bits", 8), settings.pop("names", None)), images, **({"k_top": 5} | settings)
    )


def slow_step(model, quantization, images, labels, k_top):
    """One step by brute force: every candidate bit listed, sorted in Python, every trial a full pass."""
    loss = F.cross_entropy(model(images), labels)
    parameters = [layer.module.weight.requires_grad_() for layer in quantization.layers]
    gradients = torch.autograd.grad(loss, parameters)
    ranked = {}
    for layer, gradient in zip(quantization.layers, gradients, strict=True):
        flat, integers = (gradient * layer.step).flatten().tolist(), layer.integers.flatten().tolist()
        best = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[:k_top]  # noqa: B023
        bits = []
        for index in best:
            for bit, weight in enumerate(bit_weights(quantization.bits).tolist()):
                change = (integers[index] ^ weight) - integers[index]
                bits.append((max(flat[index] * change, 0.0), index, bit))
        ranked[layer.name] = sorted(bits, key=lambda item: -item[0])
    for count in range(1, 50):
        losses = {}
        for name, bits in ranked.items():
            flips = [(index, bit) for _, index, bit in bits[:count]]
            toggle(quantization, name, flips)
            with torch.no_grad():
                losses[name] = F.cross_entropy(model(images), labels).item()
            toggle(quantization, name, flips)
        worst = max(losses, key=losses.get)
        if losses[worst] > loss.item():
            toggle(quantization, worst, [(index, bit) for _, index, bit in ranked[worst][:count]])
            return worst, sorted((index, bit) for _, index, bit in ranked[worst][:count]), losses
    raise AssertionError("no flip raises the loss")


def toggle(quantization, name, flips):
    for index, bit in flips:
        value = quantization.index[name].integers.view(-1)[index].long() ^ bit_weights(quantization.bits)[bit]
        quantization.write(name, torch.tensor([index]), value[None])


@pytest.mark.parametrize(("bits", "names"), [(8, None), (4, None), (8, ["stem"]), (3, ["block1.conv1"])])
def test_every_step_is_that_of_a_brute_force_search(bits, names):
    ours, twin = search(bits=bits, names=names), search(bits=bits, names=names)
    for _ in range(4):
        step = ours.step()
        layer, flips, losses = slow_step(twin.model, twin.quantization, twin.images, ours.labels, 5)
        assert step.flips[0].layer == layer and sorted((flip.index, flip.bit) for flip in step.flips) == flips
        assert step.layer_losses == pytest.approx(losses, rel=1e-6)
    for a, b in zip(ours.quantization.layers, twin.quantization.layers, strict=True):
        assert torch.equal(a.integers, b.integers) and torch.equal(a.module.weight, b.module.weight)


def test_reusing_prefixes_changes_nothing():
    fast, plain = search(reuse=True), search(reuse=False)
    for _ in range(5):
        assert fast.step() == plain.step()


def test_the_committed_loss_is_the_trial_loss_and_the_next_starting_point():
    attack = search()
    first, second = attack.step(), attack.step()
    assert first.loss_after > first.loss_before and second.loss_before == pytest.approx(first.loss_after, rel=1e-6)
    with torch.no_grad():
        assert F.cross_entropy(attack.model(attack.images), attack.labels).item() == pytest.approx(
            second.loss_after, rel=1e-6
        )


def test_labels_are_the_quantised_models_own_predictions_fixed_once():
    attack = search()
    labels = attack.labels.clone()
    assert torch.equal(labels, attack.model(attack.images).argmax(1))
    for _ in range(4):
        attack.step()
    assert torch.equal(attack.labels, labels) and not torch.equal(attack.model(attack.images).argmax(1), labels)


def test_biases_batch_norms_and_modes_are_left_alone():
    attack = search()
    attack.model.train()
    before = {
        name: value.clone()
        for name, value in attack.model.state_dict().items()
        if not name.endswith("weight") or ".bn" in name
    }
    attack.step()
    assert all(torch.equal(value, attack.model.state_dict()[name]) for name, value in before.items())
    assert attack.model.training and all(p.requires_grad and p.grad is None for p in attack.model.parameters())


def test_undo_gives_the_clean_network_back_bit_for_bit():
    attack = search()
    clean = copy.deepcopy(attack.model.state_dict())
    attack.step()
    once = copy.deepcopy(attack.model.state_dict())
    attack.step()
    attack.undo(1)
    assert (
        all(torch.equal(value, once[name]) for name, value in attack.model.state_dict().items())
        and attack.num_flips == 1
    )
    attack.undo()
    assert (
        all(torch.equal(value, clean[name]) for name, value in attack.model.state_dict().items())
        and attack.hamming == 0
    )


def test_a_resumed_search_goes_on_as_if_it_had_never_stopped():
    whole, first, second = search(), search(), search()
    whole_rows = whole.run(6)
    first.run(3)
    second.load_state_dict(first.state_dict())
    assert whole_rows[-1]["flips"] == 6 and len(second.run(6)) == 3
    assert second.trail == whole.trail
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in second.model.state_dict().items())


def test_a_trail_of_another_network_is_refused():
    first, other = search(0), search(1)
    first.run(3)
    with pytest.raises(InputError, match="not the network"):
        other.load_state_dict(first.state_dict())


def test_run_stops_at_the_wanted_accuracy_and_reports_every_step():
    model, images, labels = trained_net()
    attack = ProgressiveBitSearch(Quantization(model), images)
    rows = attack.run(60, lambda: (model(images).argmax(1) == labels).double().mean(), stop_at=0.8)
    assert rows[-1]["accuracy"] <= 0.8 and all(row["accuracy"] > 0.8 for row in rows[:-1])
    assert [row["flips"] for row in rows] == list(range(1, len(rows) + 1)) and rows[-1]["loss"] > rows[0]["loss"]


def test_a_network_that_gives_no_gradient_is_reported_not_searched_for_ever():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(model[1].bias, -100.0)  # dead units
    attack = ProgressiveBitSearch(Quantization(model, names=["1"]), torch.rand(4, 1, 2, 2))
    with pytest.raises(NothingToFlip, match="gain 0"):
        attack.step()
    assert attack.trail == []


def test_an_attack_needs_images_and_candidates():
    with pytest.raises(InputError):
        search(k_top=0)
    model, images = small_net()
    with pytest.raises(InputError):
        ProgressiveBitSearch(Quantization(model), images[:0])


def test_random_flips_are_repeatable_undoable_and_spread_over_layers():
    model, _ = small_net()
    quantization = Quantization(model)
    clean = copy.deepcopy(model.state_dict())
    flips = random_flips(quantization, 60, torch.Generator().manual_seed(0))
    assert len({flip.layer for flip in flips}) == len(quantization.layers) and len({flip.bit for flip in flips}) == 8
    undo_flips(quantization, flips)
    assert all(torch.equal(value, clean[name]) for name, value in model.state_dict().items())
    assert random_flips(quantization, 60, torch.Generator().manual_seed(0)) == flips
    undo_flips(quantization, flips)
    apply_flips(quantization, flips)
    assert int(quantization.index[flips[-1].layer].integers.view(-1)[flips[-1].index]) == flips[-1].after


def test_a_bit_flipped_back_counts_as_two_flips_but_no_distance():
    there, back = Flip("fc", 3, 7, 5, -123), Flip("fc", 3, 7, -123, 5)
    assert hamming([(there,), (back,)]) == 0 and hamming([(there,), (Flip("fc", 3, 6, -123, -59),)]) == 2


def test_flips_to_chance_is_the_first_count_at_or_below_the_threshold():
    assert flips_to_chance([1, 2, 4], [0.5, 0.11, 0.05], num_classes=10) == 2
    assert flips_to_chance([1, 2], [0.5, 0.12], num_classes=10) is None
