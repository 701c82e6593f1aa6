"""Supplies: the pool puts every image back in its place, fresh images come from the synthesiser."""

import pytest
import torch

from kdnb.samplers.supply import FreshSupply, PoolSupply
from kdnb.samplers.synthesizer import Synthesis


def batch(number: int, count: int) -> Synthesis:
    images = number + torch.arange(count).view(count, 1, 1, 1) / 100 + torch.zeros(count, 1, 4, 4)
    return Synthesis(images, torch.arange(count), {})


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", [[3], [3, 3], [3, 3, 3, 3, 3], [7, 2, 2, 2], [12]])
def test_a_restored_pool_draws_the_same_images(tmp_path, sizes):
    pool = PoolSupply(8, (1, 4, 4), "cpu", 1, True, tmp_path)
    for number, size in enumerate(sizes):
        pool.take(batch(number, size))
    again = PoolSupply(8, (1, 4, 4), "cpu", 1, True, tmp_path)
    again.load_state_dict(pool.state_dict())
    assert len(again) == len(pool) == min(sum(sizes), 8)
    assert torch.equal(pool(3, rng()), again(3, rng()))
    assert all(torch.equal(a, b) for a, b in zip(pool.contents(), again.contents(), strict=True))
    pool.take(batch(9, 3))
    again.take(batch(9, 3))
    assert torch.equal(pool(3, rng(1)), again(3, rng(1)))


def test_a_pool_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PoolSupply(8, (1, 4, 4), "cpu").take(batch(0, 3))
    assert not list(tmp_path.iterdir())


class Counting:
    def __init__(self):
        self.asked = []

    def sample(self, count, rng):
        self.asked.append(count)
        return torch.randn(count, 1, 4, 4, generator=rng)


def test_fresh_images_are_asked_for_at_every_step():
    source = Counting()
    supply = FreshSupply(source)
    supply.take(batch(0, 3))
    assert not torch.equal(supply(5, rng(0)), supply(5, rng(1))) and source.asked == [5, 5]
    assert len(supply) == 3 and torch.equal(supply.contents()[0], batch(0, 3).images)
    again = FreshSupply(source)
    again.load_state_dict(supply.state_dict())
    assert torch.equal(again.contents()[0], supply.contents()[0])
