"""The perturbation network: shape, range, initial weights, refused sizes."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.perturbation import PerturbationGenerator


def test_a_perturbation_has_the_shape_of_the_image_and_lies_between_minus_one_and_one():
    network = PerturbationGenerator(channels=1, width=4, num_blocks=1)
    delta = network(torch.randn(2, 1, 16, 8))
    assert delta.shape == (2, 1, 16, 8) and delta.abs().amax() <= 1


def test_initial_weights_follow_the_given_randomness():
    states = [PerturbationGenerator(3, 8, 2, rng=torch.Generator().manual_seed(3)).state_dict() for _ in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items() if "19.bias" not in name)
    assert states[0]["model0.10.conv_block.1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert states[0]["model0.12.weight"].std().item() == pytest.approx(0.02, rel=0.1)  # transposed convolutions too


def test_a_residual_block_adds_to_its_input():
    network = PerturbationGenerator(1, 4, 1).eval()
    block = network.model0[10]
    with torch.no_grad():
        block.conv_block[6].weight.zero_()
        block.conv_block[6].bias.zero_()
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("size", [(10, 12), (4, 4)])
def test_sizes_that_would_not_come_back_are_refused(size):
    with pytest.raises(InputError, match="multiples of 4"):
        PerturbationGenerator(1, 4, 1)(torch.zeros(1, 1, *size))
