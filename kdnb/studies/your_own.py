"""One's own pictures and networks: a small folder of pictures to try it with, and what a comparison of students says about each class."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from kdnb import methods
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.models.base import feature_shapes

SHAPES: dict[str, Sequence[float]] = {  # radius at equal angles; the circle's are many
    "circle": (1.0,) * 48,
    "cross": (1.0, 0.45, 1.0, 1.0, 0.45, 1.0, 1.0, 0.45, 1.0, 1.0, 0.45, 1.0),
    "hexagon": (1.0,) * 6,
    "square": (1.0,) * 4,
    "star": (1.0, 0.45) * 5,
    "triangle": (1.0,) * 3,
}
_OVER = 4  # drawn so much larger and scaled down, for smooth edges


def draw_pictures(folder: Path, per_class: int = 60, side: int = 48, seed: int = 0) -> Path:
    """Write a folder as ImageFolder reads it, FOLDER/CLASS/PICTURE.png: six coloured shapes on patches of two photographs.

    The photographs are the two that scikit-learn brings (a palace, a flower); a shape has a random place, size, angle and colour, and
    pictures differ in width and height, as real ones do. Which files and what is in them depends on the arguments alone.

    Args:
        folder: made whole or not at all; one that is there already is left as it is.
        per_class: pictures a class, at least 3. side: pixels of the median shorter side, at least 16.
    Returns:
        The folder.
    Raises:
        InputError: fewer pictures or pixels.
    """
    if per_class < 3 or side < 16:
        raise InputError(f"pictures need per_class >= 3 and side >= 16, got {per_class} and {side}")
    folder = Path(folder)
    if folder.is_dir():
        return folder
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as place:
        made = Path(place) / folder.name
        for number, name in enumerate(SHAPES):
            (made / name).mkdir(parents=True)
            for index in range(per_class):
                generator = np.random.default_rng([seed, number, index])
                _picture(name, photographs, side, generator).save(made / name / f"{index:03}.png")
        os.replace(made, folder)
    return folder


def _picture(name: str, photographs: Sequence[Image.Image], side: int, generator: np.random.Generator) -> Image.Image:
    width, height = (int(value) for value in generator.integers(side - side // 8, side + side // 4, 2))
    photograph = photographs[generator.integers(len(photographs))]
    left = int(generator.integers(photograph.width - 2 * width))
    top = int(generator.integers(photograph.height - 2 * height))
    picture = photograph.crop((left, top, left + 2 * width, top + 2 * height)).resize((width, height))
    radius = generator.uniform(0.22, 0.4) * min(width, height)
    centre = [generator.uniform(radius, length - radius) for length in (width, height)]
    radii = np.asarray(SHAPES[name])
    angles = generator.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(len(radii)) / len(radii)
    corners = [
        (_OVER * (centre[0] + radius * r * np.cos(a)), _OVER * (centre[1] + radius * r * np.sin(a)))
        for r, a in zip(radii, angles, strict=True)
    ]
    mask = Image.new("L", (_OVER * width, _OVER * height))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    colour = tuple(int(value) for value in generator.integers(0, 256, 3))
    picture.paste(colour, mask=mask.resize((width, height), Image.Resampling.BOX))
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
    """Images on which the networks disagree most about the right answer, hardest first: most wrong answers, then the least mean
    probability of the label.

    Args:
        logits: (N, K) by the network's name. labels: (N,). count: of images, at most N of them.
    Returns:
        (count,) indices.
    """
    wrong = sum(((z.argmax(1) != labels).float() for z in logits.values()), torch.zeros(len(labels)))
    sure = torch.stack([z.softmax(1).gather(1, labels[:, None])[:, 0] for z in logits.values()]).mean(0)
    return (wrong - sure).argsort(descending=True, stable=True)[:count]
