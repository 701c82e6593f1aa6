"""Generators that emit normalised pixels: the map to images undoes `Normalize`, heads are bounded by nothing or per batch."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.normalized import DaflGeneratorReleased, Denormalize, ZsktGeneratorReleased
from kdnb.models.base import Normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def test_images_normalised_and_mapped_back_are_the_same():
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.allclose(Denormalize(MEAN, STD)(Normalize(MEAN, STD)(images)), images, atol=1e-6)


def test_the_map_does_not_clamp():
    assert Denormalize((0.5,), (0.5,))(torch.full((1, 1, 1, 1), 7.0)).item() == pytest.approx(7.0)


def test_dafl_emits_standardised_batches():
    torch.manual_seed(0)
    generator = DaflGeneratorReleased(8, 6, 4, mean=MEAN, std=STD).train()
    pixels = generator.normalized_pixels(torch.randn(16, 6))
    assert pixels.shape == (16, 3, 8, 8)
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.ones(3), atol=2e-2)


def test_published_sizes_have_the_published_channels():
    dafl, zskt = DaflGeneratorReleased().l1[0], ZsktGeneratorReleased().layers[0]
    assert (dafl.in_features, dafl.out_features) == (1000, 128 * 64)
    assert (zskt.in_features, zskt.out_features) == (100, 128 * 64)


@pytest.mark.parametrize("kind", [DaflGeneratorReleased, ZsktGeneratorReleased])
def test_channels_and_size_follow_the_data(kind):
    generator = kind(12, 5, 2, mean=(0.3,), std=(0.4,))
    assert generator(torch.randn(4, 5)).shape == (4, 1, 12, 12)


@pytest.mark.parametrize(
    "arguments", [{"image_size": 10}, {"mean": (0.5,), "std": (0.5, 0.5)}, {"mean": (0.5,), "std": (0.0,)}]
)
def test_what_can_not_be_built_is_refused(arguments):
    with pytest.raises(InputError):
        ZsktGeneratorReleased(**{"image_size": 8, "latent_dim": 3, "width": 2} | arguments)
