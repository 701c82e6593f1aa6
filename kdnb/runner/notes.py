"""Settings that go together and yet are hardly meant: said before a run starts, not refused."""

from collections.abc import Mapping
from typing import Any

from kdnb.methods import parse_method

_OF_A_DATASET = ("image_size", "epochs", "milestones", "lr", "batch_size", "teacher", "student", "omitted_class")


def notes_on(values: Mapping[str, Any], before: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What to say about the parameters of a run.

    Args:
        values: all of them. before: the same without what the command line gave. given: what it gave.
    """
    return [*_another_dataset(values, before, given), *_constants_of_cifar(values)]


def _another_dataset(values: Mapping[str, Any], before: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The data set was changed on the command line, and what had been chosen for the other one was not."""
    old, new = before.get("dataset"), values.get("dataset")
    kept = [name for name in _OF_A_DATASET if name in values and name not in given and values[name] not in (None, [])]
    if old == new or not kept:
        return []
    shown = ", ".join(f"{name}={values[name]}" for name in kept)
    return [f"dataset={new} with what was chosen for {old}: {shown}; `inv experiments` lists those made for a data set"]


def _constants_of_cifar(values: Mapping[str, Any]) -> list[str]:
    """Methods on ImageNet with no constant of their own given: the published defaults are those of CIFAR-100."""
    if values.get("dataset") != "imagenet" or "method" not in values:
        return []
    own = any(values.get(name) is not None for name in ("temperature", "ce_weight", "kd_weight", "scales"))
    bare = [] if own else [values["method"]]
    bare += [method for method, hyper in map(parse_method, values.get("others", [])) if not hyper]
    bare = [
        method for method in bare if method not in ("ce", "simkd", "srrl", "srrl_official")
    ]  # they have none, or the same
    return [f"{', '.join(bare)} on imagenet with the constants published for cifar100"] if bare else []
