"""One's own pictures and networks: a small folder of pictures to try it with, and what a comparison of students says about each class."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdnb import methods
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.models.base import feature_shapes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def draw_pictures(folder: Path, per_class: int = 60, side: int = 40, seed: int = 0) -> Path:
    """Write a folder as ImageFolder reads it, FOLDER/CLASS/PICTURE.png: scanned digits, painted in a colour on patches of two photographs.

    Scans (8 x 8 grey pixels, of Alpaydin and Kaynak, 1998) and photographs (a palace, a flower) are those that scikit-learn brings. A
    digit has a random place, size and bright colour, its ground is a darkened patch, and pictures differ in width and height, as real
    ones do. What is in the files depends on the arguments alone.

    Args:
        folder: made whole or not at all; one that is there already is left as it is.
        per_class: pictures a class, 3 to 170, each of another scan. side: pixels of the median shorter side, at least 16.
    Returns:
        The folder.
    Raises:
        InputError: more or fewer pictures, or fewer pixels.
    """
    if not 3 <= per_class <= 170 or side < 16:
        raise InputError(f"pictures need per_class from 3 to 170 and side >= 16, got {per_class} and {side}")
    folder = Path(folder)
    if folder.is_dir():
        return folder
    from sklearn.datasets import load_digits, load_sample_images

    scans = load_digits()
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as place:
        made = Path(place) / folder.name
        for label, name in enumerate(DIGITS):
            (made / name).mkdir(parents=True)
            for index, scan in enumerate(scans.images[scans.target == label][:per_class]):
                generator = np.random.default_rng([seed, label, index])
                _painted(scan, photographs, side, generator).save(made / name / f"{index:03}.png")
        os.replace(made, folder)
    return folder


def _painted(scan: np.ndarray, photographs: Sequence[Image.Image], side: int, generator: np.random.Generator):
    """One picture: a scan of values 0 to 16 as the opacity of paint."""
    width, height = (int(value) for value in generator.integers(side - side // 8, side + side // 4, 2))
    photograph = photographs[generator.integers(len(photographs))]
    left = int(generator.integers(photograph.width - 2 * width))
    top = int(generator.integers(photograph.height - 2 * height))
    ground = photograph.crop((left, top, left + 2 * width, top + 2 * height)).resize((width, height))
    picture = ground.point(lambda value: value // 2)
    size = int(generator.uniform(0.75, 1.0) * min(width, height))
    opacity = Image.fromarray((scan * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    hue = int(generator.integers(256))
    colour = Image.new("HSV", (1, 1), (hue, 110, 255)).convert("RGB").getpixel((0, 0))
    corner = int(generator.integers(width - size + 1)), int(generator.integers(height - size + 1))
    picture.paste(colour, (*corner, corner[0] + size, corner[1] + size), opacity)
    return picture


def layer_table(role: str, model: nn.Module, data: Dataset) -> list[dict]:
    """What methods see of a network, a row a layer: `feats` from coarse to fine, then the map whose mean enters the head.

    Args:
        role: what the rows call it. model: a classifier of kdnb's, or one that `kdnb.models.taps.wrap` wrapped.
    """
    shapes = feature_shapes(model, data.image_shape)
    names = getattr(model, "layers", None) or [f"map {number}" for number in range(len(shapes.feats))]
    final = getattr(model, "final", "final map")
    found = [*zip(names, shapes.feats, strict=True), (f"{final} (averaged into the head)", shapes.final_map)]
    return [{"network": role, "layer": name, "channels": C, "height": H, "width": W} for name, (C, H, W) in found]


def suitable(student: nn.Module, teacher: nn.Module, data: Dataset, batch_size: int, epochs: int) -> list[dict]:
    """Every method of `kdnb.methods.METHODS` fitted to a pair, none trained: `fits`, and `because`, the reason where it doesn't."""
    rows = []
    for name in methods.METHODS:
        method, because = methods.build(name), ""
        try:
            method.bind(student, teacher, data.image_shape, data.num_classes, batch_size, epochs, len(data.train))
        except InputError as error:
            because = str(error)
        kind = "features" if method.needs_features else "logits" if method.needs_teacher else "no teacher"
        rows.append({"method": name, "compares": kind, "fits": not because, "because": because})
    return rows


def per_class(logits: Mapping[str, Tensor], labels: Tensor, names: Sequence[str]) -> list[dict]:
    """Accuracy of several networks on each class.

        top1_k = |{i: y_i = k, argmax z_i = k}| / |{i: y_i = k}|

    Args:
        logits: (N, K) by the network's name. labels: (N,). names: of the K classes.
    Returns:
        A row a class: `class`, its number of `images`, and the fraction for each network; nan for a class without images.
    """
    rows = []
    for label, name in enumerate(names):
        of_it = labels == label
        row: dict = {"class": name, "images": int(of_it.sum())}
        rows.append(row | {one: (z[of_it].argmax(1) == label).float().mean().item() for one, z in logits.items()})
    return rows


def telling(logits: Mapping[str, Tensor], labels: Tensor, count: int) -> Tensor:
    """Images that tell networks apart: those on which most of them differ about being right, and of these the least certain.

        order by  w (1 - w), then by 1 - mean p_y;    w the share of networks that are wrong, p_y the probability of the label

    Args:
        logits: (N, K) by the network's name. labels: (N,). count: of images, at most N of them.
    Returns:
        (count,) indices.
    """
    wrong = torch.stack([(z.argmax(1) != labels).float() for z in logits.values()]).mean(0)
    sure = torch.stack([z.softmax(1).gather(1, labels[:, None])[:, 0] for z in logits.values()]).mean(0)
    return (1000 * wrong * (1 - wrong) + 1 - sure).argsort(descending=True, stable=True)[:count]
