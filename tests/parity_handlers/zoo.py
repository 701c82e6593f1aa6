"""Forward passes of the zoo under weights that anyone can draw again; the rule is in the file's metadata.

Weights: one numpy RandomState(seed) for each network, keys of the state dict in sorted order, the distribution chosen by the kind of key.
Keys of a file are `family/model/what`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kdnb.losses.sdd import region_logits
from kdnb.models import build


def zoo_name(family: str, name: str) -> str:
    """Some families give one name to different networks."""
    if family.lower() in ("mdistiller_imagenet", "simkd") and name.startswith("ResNet"):
        return f"{name}_imagenet"
    return "mobilenetv2_cmi" if (family.lower(), name.lower()) == ("cmi", "mobilenetv2") else name


def fill(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    random = np.random.RandomState(seed)
    filled = {}
    for key in sorted(state):
        shape = tuple(state[key].shape)
        if not state[key].is_floating_point():
            value = np.zeros(shape)
        elif len(shape) >= 2:
            value = random.standard_normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
        elif key.endswith(".running_var"):
            value = random.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * random.standard_normal(shape) + (1.0 if key.endswith(".weight") else 0.0)
        filled[key] = torch.as_tensor(value).to(state[key].dtype)
    return filled


def statistics(what: str, maps: list[Tensor]) -> Tensor:
    return torch.stack([tensor.mean() if what == "mean" else tensor.std() for tensor in maps])


@torch.no_grad()
def zoo_forward(golden):
    seed, num_classes = golden.meta.get("seed"), golden.meta.get("num_classes")
    seed = golden.hyper["seed"] if seed is None else seed
    num_classes = golden.hyper["num_classes"] if num_classes is None else num_classes
    images = golden["input"]
    by_network: dict[str, list[str]] = {}
    for key in golden.tensors:
        if key.count("/") == 2:
            by_network.setdefault(key.rpartition("/")[0], []).append(key)
    for network, keys in by_network.items():
        model = build(zoo_name(*network.split("/")), num_classes, in_channels=images.shape[1]).to(images.dtype).eval()
        model.load_state_dict(fill(model.state_dict(), seed))
        features = model(images, return_features=True)
        for key in keys:
            yield key, answer(key.rpartition("/")[2], model, images, features), golden[key]


def answer(what: str, model, images: Tensor, features) -> Tensor:
    """Our value for one recorded quantity."""
    if what == "logits":
        return features.logits
    if what in ("pooled_feat", "features"):
        return features.pooled
    if what.startswith("feats_"):
        return statistics(what.removeprefix("feats_"), features.feats)
    if what.startswith("preact_"):
        return statistics(what.removeprefix("preact_"), model.preactivations(images))
    if what.startswith("patch_logits_M"):
        scales = [int(digit) for digit in what.removeprefix("patch_logits_M")]
        return region_logits(features.final_map, model.head.weight, model.head.bias, scales)
    raise KeyError(f"unknown quantity {what!r}")


HANDLERS = {"zoo_forward": zoo_forward}
