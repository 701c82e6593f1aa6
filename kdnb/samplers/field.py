"""The methods of data-free distillation that make images with a teacher alone, by name. A new one is a module here and a line below."""

from collections.abc import Callable
from typing import NamedTuple

from kdnb.errors import check_name
from kdnb.samplers import channel_exchange, contrastive_memory, deepinversion, fast, noisy_layers, one_step

_POOL, _FRESH = "pool", "fresh"


class Method(NamedTuple):
    """A data-free method as the loop sees it.

    Attributes:
        build: `build(problem, config)` makes the synthesiser.
        config: with the published CIFAR-10 constants.
        supply: "pool" or "fresh", where the student's images come from.
        assumes: what is taken for granted beside a teacher that can be differentiated.
        source: the publication.
    """

    build: Callable
    config: object
    supply: str
    assumes: str
    source: str


_BENCH = one_step.BENCHMARK
METHODS: dict[str, Method] = {
    "dafl": Method(one_step.build, _BENCH["dafl"], _FRESH, "the teacher's pooled features", "Chen, ICCV 2019"),
    "zskt": Method(one_step.build, _BENCH["zskt"], _FRESH, "nothing", "Micaelli, NeurIPS 2019"),
    "dfad": Method(one_step.build, _BENCH["dfad"], _FRESH, "nothing", "Fang, arXiv 1912.11006"),
    "dfq": Method(one_step.build, _BENCH["dfq"], _FRESH, "batch norm", "Choi, CVPR-W 2020"),
    "deepinversion": Method(deepinversion.build, deepinversion.CIFAR_BENCHMARK, _POOL, "batch norm", "Yin, CVPR 2020"),
    "adaptive_deepinversion": Method(
        deepinversion.build, deepinversion.ADAPTIVE_BENCHMARK, _POOL, "batch norm", "Yin, CVPR 2020"
    ),
    "cmi": Method(contrastive_memory.build, contrastive_memory.MemoryConfig(), _POOL, "batch norm", "Fang, IJCAI 2021"),
    "fast": Method(fast.build, fast.FastConfig(), _POOL, "batch norm", "Fang, AAAI 2022"),
    "nayer": Method(
        noisy_layers.build, noisy_layers.NoisyConfig(), _POOL, "batch norm, class names", "Tran, CVPR 2024"
    ),
    "spaceshipnet": Method(
        channel_exchange.build, channel_exchange.ExchangeConfig(), _FRESH, "batch norm, class maps", "Yu, CVPR 2023"
    ),
}


def method(name: str) -> Method:
    """The line of a method.

    >>> method("zkst")
    Traceback (most recent call last):
    kdnb.errors.InputError: unknown data-free method 'zkst'; did you mean 'zskt'? Allowed: dafl, zskt, dfad, dfq, deepinversion, \
adaptive_deepinversion, cmi, fast, nayer, spaceshipnet
    """
    return METHODS[check_name("data-free method", name, METHODS)]
