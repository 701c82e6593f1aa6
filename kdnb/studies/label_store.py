"""A store of soft labels (FKD): many crops of every image, and what a teacher said of each, made once and replayed in every epoch.

On disk a store is a folder: `labels-00000.safetensors`, ... (boxes, flips, compressed labels of a run of images) and `index.json`,
written last. Every file carries the hash of its content, the index those of the shards and of the images the labels belong to.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdnb.data.crops import check_box_ranges, random_boxes, replay_crops
from kdnb.errors import InputError
from kdnb.losses.soft_labels import CompressedLabels, compress_labels, parse_mode, restore_labels
from kdnb.progress import progress
from kdnb.randomness import generator_for
from kdnb.rehearsal import cut
from kdnb.storage.checkpoints import load_state, save_state, state_hash
from kdnb.storage.files import write_json
from kdnb.storage.naming import canonical, identity_key

FORMAT = "kdnb-soft-labels-1"
_FIELDS = ("boxes", "flips", "indices", "probs")


@dataclass(frozen=True)
class LabelStore:
    """Labels of N images with M crops each, in memory in their compressed form.

    Attributes:
        mode, num_classes: how the labels were compressed, and K.
        boxes, flips: (N, M, 4) float32 and (N, M) bool, see `kdnb.data.crops.replay_crops`.
        indices, probs: (N, M, k) int32 and float, None where the mode needs none.
        recipe: what the store was made with.
    """

    mode: str
    num_classes: int
    boxes: Tensor
    flips: Tensor
    indices: Tensor | None
    probs: Tensor | None
    recipe: dict

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def num_crops(self) -> int:
        return self.boxes.shape[1]

    def labels(self, images: Tensor, crops: Tensor) -> Tensor:
        """Distributions (B, m, K) of the crops (B, m) of the images (B,), both int64 positions."""
        indices, probs = (None if part is None else part[images[:, None], crops] for part in (self.indices, self.probs))
        return restore_labels(CompressedLabels(indices, probs), self.mode, self.num_classes)


# --- making --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreConfig:
    """How the crops of a label store are drawn and the teacher's answers kept. Checked when made.

    Attributes:
        mode: a mode of `kdnb.losses.soft_labels`.
        num_crops: M crops of every image; FKD keeps 500.
        size: side of the crops the teacher sees, in pixels; None: that of the images.
        scale, ratio: of `kdnb.data.crops.random_boxes`.
        flip: whether half of the crops are mirrored.
        temperature: of the teacher's softmax, > 0.
        half: keep probabilities in float16.
        batch_size: crops per teacher forward.
        images_per_shard: images per file.
    """

    mode: str = "marginal_smoothing_k5"
    num_crops: int = 50
    size: int | None = None
    scale: tuple[float, float] = (0.08, 0.936)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    temperature: float = 1.0
    half: bool = False
    batch_size: int = 500
    images_per_shard: int = 1000

    def __post_init__(self):
        parse_mode(self.mode)
        check_box_ranges(self.scale, self.ratio)
        for name in ("num_crops", "size", "batch_size", "images_per_shard"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} of a label store must be >= 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be > 0, got {self.temperature}")

    def recipe(self, images: Tensor, teacher: nn.Module, seed: int) -> dict:
        """All that the labels depend on, as it stands in the index of a store."""
        return {
            "images": state_hash({"images": images}),
            "teacher": state_hash(teacher.state_dict()),
            "mode": self.mode,
            "num_crops": self.num_crops,
            "size": self.size or images.shape[-1],
            "scale": list(self.scale),
            "ratio": list(self.ratio),
            "flip": self.flip,
            "temperature": self.temperature,
            "half": self.half,
            "seed": seed,
            "images_per_shard": self.images_per_shard,
        }


def make_store(
    folder: Path, images: Tensor, teacher: nn.Module, config: StoreConfig | None = None, *, seed: int = 0
) -> LabelStore:
    """Draw crops of every image, ask the teacher, compress, write. Finished shards of an interrupted call with the same settings are kept.

    Args:
        folder: the store's own folder; a store of other settings in it is replaced.
        images: (N, C, H, W) float, N >= 1.
        teacher: classifier, run in eval mode without gradient; its mode is put back.
        config: default `StoreConfig()`.
        seed: of boxes and flips.
    Returns:
        The store, read back from disk and verified.
    Raises:
        InputError: images that are none or not float, or a mode that keeps all classes.

    Source: Shen and Xing, ECCV 2022 (FKD). Deviations: no crop is lost where M is not a multiple of the batch; no pickles.
    """
    if len(images) < 1 or not images.is_floating_point():
        raise InputError(f"a label store needs float images, got {len(images)} of {images.dtype}")
    folder, config = Path(folder), config or StoreConfig()
    recipe, size = config.recipe(images, teacher, seed), config.images_per_shard
    key, shards, num_classes = identity_key(recipe), [], None
    for number in progress(range(-(-len(images) // size)), "soft labels", whole=True):
        shard = _finished(folder, number, key)
        if shard is None:
            part = images[number * size : (number + 1) * size]
            boxes, flips = _draw_crops(part, recipe, generator_for(seed, "soft labels", number))
            shard = {"recipe": key, **_ask(part, teacher, boxes, flips, recipe, config.batch_size)}
            save_state(_shard_path(folder, number), shard, _purpose(number))
        num_classes = shard["num_classes"]
        shards.append({"images": len(shard["boxes"]), "hash": _shard_hash(shard)})
    index = {"format": FORMAT, "recipe": recipe, "num_classes": num_classes, "shards": shards}
    write_json(folder / "index.json", {**index, "sha256": _digest(index)})
    return open_store(folder, images)


def _draw_crops(images: Tensor, recipe: dict, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) and flips (N, M) on the CPU."""
    N, M = len(images), recipe["num_crops"]
    height, width = images.shape[-2:]
    boxes = random_boxes(N * M, height, width, tuple(recipe["scale"]), tuple(recipe["ratio"]), generator).view(N, M, 4)
    flips = torch.rand(N, M, generator=generator) < 0.5
    return boxes, flips & recipe["flip"]


def _filled(labels: Tensor, count: int) -> Tensor:
    """All labels there must be: after a rehearsal, which asked for some, those again and again."""
    return labels if len(labels) == count else labels[torch.arange(count) % len(labels)]


@torch.inference_mode()
def _ask(images: Tensor, teacher: nn.Module, boxes: Tensor, flips: Tensor, recipe: dict, batch_size: int) -> dict:
    """The teacher's compressed labels of all crops, a batch of crops at a time."""
    training = teacher.training
    teacher.eval()
    parts, num_classes = [], 0
    for crops in cut(torch.arange(flips.numel()).split(batch_size), "batch of crops", most=1):
        owner = (crops // flips.shape[1]).to(images.device)
        own_boxes, own_flips = (part.flatten(0, 1)[crops][:, None].to(images.device) for part in (boxes, flips))
        logits = teacher(replay_crops(images[owner], own_boxes, own_flips, recipe["size"])[:, 0]).float()
        num_classes = logits.shape[1]
        parts.append(compress_labels((logits / recipe["temperature"]).softmax(-1), recipe["mode"]))
    teacher.train(training)
    indices, probs = (
        None if field[0] is None else _filled(torch.cat(field).cpu(), flips.numel()).view(*flips.shape, -1)
        for field in zip(*parts, strict=True)
    )
    return {
        "num_classes": num_classes,
        "boxes": boxes,
        "flips": flips,
        "indices": None if indices is None else indices.int(),
        "probs": probs.half() if probs is not None and recipe["half"] else probs,
    }


def _finished(folder: Path, number: int, key: str) -> dict | None:
    """A shard of an earlier call with this recipe, if it is whole."""
    try:
        shard = load_state(_shard_path(folder, number), _purpose(number))
    except InputError:
        return None
    return shard if isinstance(shard, dict) and shard.get("recipe") == key else None


# --- reading -------------------------------------------------------------------------------------------------------------------


def open_store(folder: Path, images: Tensor, device: torch.device | str = "cpu") -> LabelStore:
    """Read a store whole and verify it.

    Args:
        folder: what `make_store` wrote.
        images: (N, C, H, W), the images the labels are for, bit for bit those of `make_store`.
        device: where the labels go.
    Returns:
        `LabelStore`.
    Raises:
        InputError: unfinished or damaged store, another format, unknown mode, or labels made for other images.
    """
    folder = Path(folder)
    index = _read_index(folder)
    try:
        fields = _read_shards(folder, index, images)
        num_classes, recipe = int(index["num_classes"]), dict(index["recipe"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the index of the label store {folder.name} was not written by this program: {error}; make the store anew"
        ) from error
    fields = {name: None if part is None else part.to(device) for name, part in fields.items()}
    return LabelStore(recipe["mode"], num_classes, **fields, recipe=recipe)


def _read_shards(folder: Path, index: dict, images: Tensor) -> dict[str, Tensor | None]:
    """The fields of all images, if the store is for these and the shards are those that the index names."""
    recipe, found = index["recipe"], state_hash({"images": images})
    parse_mode(recipe["mode"])
    if recipe["images"] != found:
        raise InputError(
            f"the label store {folder.name} was made for other images (hash {recipe['images']}, these have {found})"
        )
    shards = []
    for number, entry in enumerate(index["shards"]):
        shard = load_state(_shard_path(folder, number))
        if not isinstance(shard, dict) or not {*_FIELDS} <= {*shard} or _shard_hash(shard) != entry["hash"]:
            raise InputError(
                f"{_shard_path(folder, number).name} is not the one the index of {folder.name} names; make the store anew"
            )
        shards.append(shard)
    fields: dict[str, Any] = {
        name: None if shards[0][name] is None else torch.cat([shard[name] for shard in shards]) for name in _FIELDS
    }
    if len(fields["boxes"]) != len(images):
        raise InputError(
            f"the label store {folder.name} holds labels of {len(fields['boxes'])} images, not of {len(images)}"
        )
    return fields


def _read_index(folder: Path) -> dict:
    damaged = f"the index of the label store {folder.name} is damaged"
    try:
        index = json.loads((folder / "index.json").read_bytes())
        whole, given = index.pop("sha256") == _digest(index), index["format"]
    except OSError as error:
        raise InputError(
            f"{folder.name} holds no finished label store (no index.json); make it with `make_store`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{damaged}: {error}; make the store anew") from error
    if not whole:
        raise InputError(f"{damaged}: its content does not match its hash; make the store anew")
    if given != FORMAT:
        raise InputError(f"the label store {folder.name} has format {given!r}, this version reads {FORMAT!r}")
    return index


def _digest(index: dict) -> str:
    return hashlib.sha256(canonical(index).encode()).hexdigest()


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"labels-{number:05d}.safetensors"


def _purpose(number: int) -> str:
    return f"soft labels {number}"


def _shard_hash(shard: dict) -> str:
    return state_hash({name: shard[name] for name in _FIELDS if shard[name] is not None})
