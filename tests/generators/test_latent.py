"""Latent generators: sizes, ranges, resets, batch-norm buffers that fit."""

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator, draw_latents, refresh_batch_norm, reset_weights


def test_the_default_generator_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in LatentGenerator().parameters()) == 2_328_899


@pytest.mark.parametrize(("variant", "latent_dim", "first"), [("cmi", 256, 128), ("dafl", 512, 256), ("dfq", 256, 256)])
def test_variants_differ_in_latent_size_and_first_channels(variant, latent_dim, first):
    generator = LatentGenerator(8, variant=variant)
    assert generator.l1[0].in_features == latent_dim and generator.conv_blocks[0].num_features == first


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (28, 1)])
def test_images_have_the_asked_size_and_lie_between_minus_one_and_one(size, channels):
    generator = LatentGenerator(size, channels, latent_dim=5, width=4)
    z = draw_latents(6, 5, torch.Generator().manual_seed(0))
    images = generator(z)
    assert images.shape == (6, channels, size, size) and images.abs().amax() < 1
    unit = generator.unit_images(z)
    assert unit.amin() > 0 and torch.allclose(images, 2 * unit - 1)


def test_bad_sizes_and_variants_are_refused():
    with pytest.raises(InputError, match="multiple of 4"):
        LatentGenerator(30)
    with pytest.raises(InputError, match="did you mean 'dafl'"):
        LatentGenerator(32, variant="dalf")


def test_latents_come_from_the_given_source_of_randomness():
    a, b = (draw_latents(4, 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


def test_reset_draws_weights_of_the_stated_spread_and_forgets_statistics():
    generator = LatentGenerator(16, width=16, latent_dim=32)
    generator(torch.randn(8, 32))
    reset_weights(generator, torch.Generator().manual_seed(0))
    first = [p.clone() for p in generator.parameters()]
    assert generator.l1[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert generator.conv_blocks[3].weight.mean().item() == pytest.approx(1.0, abs=0.02)
    assert generator.conv_blocks[9].bias.abs().sum() == 0 and generator.conv_blocks[0].running_mean.abs().sum() == 0
    reset_weights(generator, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(first, generator.parameters(), strict=True))


def test_refreshed_buffers_make_evaluation_images_those_of_training_mode():
    torch.manual_seed(0)
    generator = LatentGenerator(8, latent_dim=6, width=8)
    with torch.no_grad():
        generator.l1[0].weight.mul_(5).add_(1)  # far from mean 0, variance 1
    z = torch.randn(512, 6)
    with torch.no_grad():
        stale = (generator.eval()(z) - generator.train()(z)).abs().mean()
        refresh_batch_norm(generator.eval(), z, chunk=512)
        assert not generator.training and generator.conv_blocks[0].momentum == 0.1
        fresh = (generator(z) - generator.train()(z)).abs().mean()
    assert fresh < 0.01 * stale


def test_chunks_are_averaged_with_equal_weight():
    generator = nn.Sequential(nn.BatchNorm2d(1))
    z = torch.stack([torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 1, 1), 3.0)]).flatten(0, 1)
    refresh_batch_norm(generator, z, chunk=2)
    assert generator[0].running_mean.item() == 2.0
