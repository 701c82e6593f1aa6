"""SpaceshipNet: channels change places as stated, pools keep the newest maps, samples are decoded by the present generator."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.samplers.channel_exchange import DEPTHS, ExchangeConfig, ExchangeSynthesizer, build, exchange_channels
from tests.samplers.nets import bare, problem, rng, states, unchanged

SMALL = ExchangeConfig(latent_dim=5, width=2, batch_size=4, num_steps=2, pool_size=10, crop_padding=1)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return build(problem(), replace(SMALL, **changes))


def test_a_row_keeps_the_picked_channels_and_takes_the_others_from_its_mirror_row():
    features = torch.arange(6.0).view(3, 2, 1, 1)
    mixed = exchange_channels(features, torch.tensor([[0], [1], [1]]))
    assert mixed.flatten().tolist() == [0, 5, 2, 3, 0, 5]


def test_pools_keep_the_newest_maps_of_every_depth():
    synthesizer = make()
    for call in range(3):
        synthesizer(rng(call))
    assert [tuple(pool.shape) for pool in synthesizer.pools] == [(10, 4, 2, 2), (10, 4, 4, 4), (10, 2, 8, 8)]
    assert len(synthesizer.pools) == len(DEPTHS)


def test_maps_are_decoded_into_the_images_they_came_from():
    synthesizer = make(num_steps=1)
    z = torch.randn(4, 5, generator=rng())
    with torch.no_grad():
        generator = synthesizer.generator.eval()
        *maps, images = synthesizer._maps(z)
        assert torch.equal(images, generator(z))
        for depth, features in zip(DEPTHS, maps, strict=True):
            assert torch.allclose(2 * generator.conv_blocks[depth:](features.clone()) - 1, images)


def test_samples_follow_the_present_generator_and_leave_it_and_the_pools_alone():
    synthesizer = make()
    synthesizer(rng())
    kept, pools = states(synthesizer.generator), [pool.clone() for pool in synthesizer.pools]
    first = synthesizer.sample(3, rng(1))
    assert first.shape == (3, 1, 8, 8) and first.abs().amax() < 1 and torch.equal(first, synthesizer.sample(3, rng(1)))
    assert unchanged(synthesizer.generator, kept)
    assert all(torch.equal(a, b) for a, b in zip(pools, synthesizer.pools, strict=True))
    with torch.no_grad():
        synthesizer.generator.conv_blocks[-2].bias += 1
    assert (synthesizer.sample(3, rng(1)) > first).all()


def test_without_exchange_samples_are_images_of_the_pool_and_with_it_they_are_not():
    for probability, least, most in ((0.0, 0, 1e-6), (1.0, 1e-6, 9)):
        synthesizer = make(probability=probability, num_steps=1)
        synthesizer(rng())
        synthesizer.generator.eval()
        with torch.no_grad():
            decoded = [
                2 * synthesizer.generator.conv_blocks[d:](p.clone()) - 1
                for d, p in zip(DEPTHS, synthesizer.pools, strict=True)
            ]
        sample = synthesizer.sample(4, rng(1))
        distance = min((sample[0] - image).abs().max() for images in decoded for image in images)
        assert least <= distance < most


def test_a_restored_synthesiser_goes_on_with_the_same_bits():
    first, second = make(), make(seed=5)
    for call in range(2):
        first(rng(call))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(rng(9)).images, second(rng(9)).images)
    assert torch.equal(first.sample(5, rng(2)), second.sample(5, rng(2)))


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="no feature maps"):
        make().sample(2, rng())
    with pytest.raises(InputError, match="SpaceshipNet matches the statistics"):
        build(problem(bare()), SMALL)
    with pytest.raises(InputError, match="LatentGenerator"):
        ExchangeSynthesizer(nn.Linear(1, 1), problem().teacher, 3, SMALL)
    with pytest.raises(InputError, match="picks"):
        exchange_channels(torch.zeros(2, 3, 1, 1), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="probability"):
        replace(SMALL, probability=1.5)
