"""NAYER's generator: which row passes which noisy layer, redrawing and renewal."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.noisy import NoisyLayerGenerator, random_embeddings


def make(num_layers=3):
    torch.manual_seed(0)
    return NoisyLayerGenerator(random_embeddings(4, 5), num_layers, 6, image_size=8, channels=1, width=2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1, 1])


def test_the_same_name_gives_another_image_behind_another_layer_and_the_same_behind_the_same():
    generator = make().eval()
    generator.redraw(rng())
    images = generator(LABELS)
    assert images.shape == (10, 1, 8, 8) and images.abs().amax() < 1
    assert not torch.allclose(images[0], images[4])  # first and second layer
    assert torch.allclose(images[8], images[9])  # both in the last


def test_the_last_layer_takes_the_rest():
    generator = make(num_layers=2).eval()
    assert torch.allclose(generator(LABELS)[5], generator(LABELS)[8])


def test_redrawing_changes_the_noisy_layers_alone():
    generator = make()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.redraw(rng())
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"le1.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert generator.le1[0].bias.abs().sum() == 0


def test_renewal_is_a_function_of_its_source_and_leaves_the_global_one_alone():
    generator, state = make(), torch.get_rng_state()
    generator.renew(rng(3))
    first = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.redraw(rng(1))
    generator.renew(rng(3))
    assert all(torch.equal(value, first[name]) for name, value in generator.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_random_embeddings_are_fixed_by_their_seed():
    assert torch.equal(random_embeddings(3, 4), random_embeddings(3, 4))
    assert not torch.equal(random_embeddings(3, 4), random_embeddings(3, 4, seed=1))


@pytest.mark.parametrize(("embeddings", "num_layers"), [(torch.zeros(4), 1), (torch.zeros(4, 5), 0)])
def test_what_can_not_be_built_is_refused(embeddings, num_layers):
    with pytest.raises(InputError, match="embeddings"):
        NoisyLayerGenerator(embeddings, num_layers)
