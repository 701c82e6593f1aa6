"""The reusable generator: fusion, independent branches, the initial state and the trained parts of each mode."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.reusable import (
    MODES,
    Decoder,
    ReusableGenerator,
    export_parts,
    less_active_branch,
    parameter_groups,
    prepare,
)

SIZES = {"image_size": 8, "channels": 1, "latent_dim": 6, "width": 4}


def earlier_task():
    torch.manual_seed(1)
    return ReusableGenerator(**SIZES)


def test_the_default_sizes_are_the_published_ones():
    assert sum(p.numel() for p in Decoder().parameters()) == 2_835
    assert sum(p.numel() for p in ReusableGenerator().parameters()) == 2 * 2_328_899 + 2_835


def test_the_image_is_the_decoded_mean_of_both_branches():
    generator = earlier_task().eval()
    z = torch.randn(3, 6)
    mean = (generator.gan1.unit_images(z) + generator.gan2.unit_images(z)) / 2
    assert torch.equal(generator(z), 2 * generator.decoder(mean) - 1)


def test_branches_start_different_and_stay_different_unless_twins_are_asked_for():
    for twins in (False, True):
        torch.manual_seed(0)
        generator = ReusableGenerator(**SIZES, twin_branches=twins)
        optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            generator(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
        gap = max(
            (a - b).abs().max().item()
            for a, b in zip(generator.gan1.parameters(), generator.gan2.parameters(), strict=True)
        )
        assert (gap == 0.0) == twins


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "anew"])
def test_reuse_loads_the_second_branch_and_the_decoder_and_leaves_the_first_random(mode):
    branch, decoder = export_parts(earlier_task())
    torch.manual_seed(2)
    generator = ReusableGenerator(**SIZES)
    first = {name: value.clone() for name, value in generator.gan1.state_dict().items()}
    prepare(generator, mode, branch, decoder)
    assert all(torch.equal(value, branch[name]) for name, value in generator.gan2.state_dict().items())
    assert all(torch.equal(value, decoder[name]) for name, value in generator.decoder.state_dict().items())
    assert all(torch.equal(value, first[name]) for name, value in generator.gan1.state_dict().items())


def test_prepare_refuses_what_does_not_belong_to_the_mode():
    branch, decoder = export_parts(earlier_task())
    generator = ReusableGenerator(**SIZES)
    prepare(generator, "anew")
    with pytest.raises(InputError, match="anew"):
        prepare(generator, "anew", branch, decoder)
    with pytest.raises(InputError, match="earlier task"):
        prepare(generator, "reuse_fix", branch)
    with pytest.raises(InputError, match="do not fit"):
        prepare(ReusableGenerator(16, 1, 6, 4), "reuse_common", branch, decoder)
    with pytest.raises(InputError, match="did you mean 'reuse_common'"):
        prepare(generator, "reuse_comon")


@pytest.mark.parametrize(
    ("mode", "rates"),
    [("anew", (1.0, 1.0)), ("reuse_common", (1.0, 1.0)), ("reuse_finetune", (1.0, 0.1)), ("reuse_fix", (1.0,))],
)
def test_each_mode_trains_its_parts_at_its_rates(mode, rates):
    generator = ReusableGenerator(**SIZES)
    groups = parameter_groups(generator, mode, 0.5)
    assert [group["lr"] for group in groups] == [0.5 * rate for rate in rates]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert {id(parameter) for parameter in generator.gan1.parameters()} <= trained
    rest = {id(parameter) for part in (generator.gan2, generator.decoder) for parameter in part.parameters()}
    assert (rest <= trained) == (len(rates) == 2) and (not rest & trained) == (len(rates) == 1)


def test_exported_parts_are_copies():
    generator = earlier_task()
    branch, _ = export_parts(generator, "gan2")
    before = branch["l1.0.weight"].clone()
    with torch.no_grad():
        generator.gan2.l1[0].weight.add_(1)
    assert torch.equal(branch["l1.0.weight"], before)


def test_the_less_active_branch_is_the_one_whose_images_excite_less():
    generator = earlier_task().eval()
    with torch.no_grad():
        generator.gan1.conv_blocks[9].bias.fill_(-20.0)  # black
        generator.gan2.conv_blocks[9].bias.fill_(20.0)  # white
        for layer in generator.decoder.layers:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.abs_()  # the brighter the input, the brighter the output
    z = torch.randn(4, 6)
    assert less_active_branch(generator, lambda x: x.flatten(1) + 1, z, torch.Generator().manual_seed(0)) == "gan1"
    assert less_active_branch(generator, lambda x: x.flatten(1) - 1, z, torch.Generator().manual_seed(0)) == "gan2"
