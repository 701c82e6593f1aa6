"""Two's complement, step fits, and weights that stay integers times a step."""

import copy

import pytest
import torch
from torch import nn

from kdnb.attacks.quantization import Quantization, bit_weights, fit_step, half_levels, read_bits
from kdnb.errors import InputError
from tests.attacks.nets import small_net, trained_net


def test_all_256_codes_are_the_sum_of_their_bits():
    codes = torch.arange(-128, 128)
    bits = read_bits(codes, 8)
    assert torch.equal((bits * bit_weights(8)[:, None]).sum(0), codes)
    assert read_bits(torch.tensor(-127, dtype=torch.int8), 8).tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_flipping_a_bit_is_an_exclusive_or_with_its_value(bits):
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    for position, weight in enumerate(bit_weights(bits)):
        flipped = codes ^ weight
        changed = read_bits(flipped, bits) != read_bits(codes, bits)
        assert changed[position].all() and changed.sum() == len(codes)
        assert flipped.min() >= codes[0] and flipped.max() <= codes[-1]
        assert torch.equal(flipped ^ weight, codes)


def test_the_maximum_fit_spans_the_symmetric_range_by_hand():
    weight = torch.tensor([0.5, -1.27, 0.014, 0.015])
    assert half_levels(8) == 127 and fit_step(weight).item() == pytest.approx(0.01)
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = weight[None].clone()
    quantization = Quantization(layer)
    assert quantization.layers[0].integers.tolist() == [[50, -127, 1, 1]] or quantization.layers[
        0
    ].integers.tolist() == [[50, -127, 1, 2]]
    assert quantization.layers[0].integers.dtype == torch.int8


def test_a_layer_of_zeros_stays_zero():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    for fit in ("max", "least_squares"):
        assert Quantization(copy.deepcopy(layer), fit=fit).layers[0].integers.abs().sum() == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_is_at_least_as_close_as_the_maximum_fit_and_stationary(bits):
    weight = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = half_levels(bits)

    def error(step):
        return (step * (weight / step).round().clamp(-half, half) - weight).square().sum().item()

    fitted = fit_step(weight, bits, "least_squares")
    assert error(fitted) <= error(fit_step(weight, bits))
    grid = min(error(fit_step(weight, bits) * ratio) for ratio in torch.linspace(0.02, 1, 500).tolist())
    assert error(fitted) <= 1.05 * grid
    if bits <= 4:
        assert error(fitted) < 0.7 * error(fit_step(weight, bits))


def test_only_weights_change_and_they_are_integers_times_the_step():
    model, _ = small_net()
    before = copy.deepcopy(model.state_dict())
    quantization = Quantization(model)
    assert [layer.name for layer in quantization.layers] == [
        name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    for layer in quantization.layers:
        assert torch.equal(layer.module.weight, layer.integers * layer.step)
        assert (layer.module.weight - before[f"{layer.name}.weight"]).abs().max() <= 0.501 * layer.step
    weights = {f"{layer.name}.weight" for layer in quantization.layers}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name not in weights)
    quantization.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_eight_bits_hardly_change_the_predictions():
    model, images, labels = trained_net()
    clean = model(images)
    Quantization(model)
    quantised = model(images)
    assert (
        torch.equal(quantised.argmax(1), clean.argmax(1))
        and 0 < (quantised - clean).abs().max() < 0.1 * clean.abs().max()
    )


def test_writing_keeps_integers_and_floats_in_agreement_in_any_memory_layout():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    quantization = Quantization(model)
    layer = quantization.layers[0]
    positions = torch.tensor([0, 17, 107])
    before = quantization.write("0", positions, torch.tensor([1, -128, 127]))
    assert layer.integers.view(-1)[positions].tolist() == [1, -128, 127]
    assert torch.equal(layer.module.weight, layer.integers * layer.step)
    assert layer.module.weight.is_contiguous(memory_format=torch.channels_last)
    quantization.write("0", positions, before)
    assert torch.equal(layer.module.weight, layer.integers * layer.step)


def test_names_choose_layers_and_bad_settings_are_refused():
    model, _ = small_net()
    assert [layer.name for layer in Quantization(model, names=["fc", "stem"]).layers] == ["fc", "stem"]
    with pytest.raises(InputError, match="did you mean 'stem'"):
        Quantization(model, names=["sten"])
    with pytest.raises(InputError, match="bits"):
        Quantization(model, bits=1)
    with pytest.raises(InputError, match="no Conv2d"):
        Quantization(nn.ReLU())
