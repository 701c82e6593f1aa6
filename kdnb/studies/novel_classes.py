"""Novel-class discovery (Cr-KD-NCD): classes without labels are found while the relation to known classes is kept.

Both stages go through `kdnb.training.loop.fit`: pretraining is ordinary cross-entropy of a cosine classifier; for discovery a `ViewSplit` hands the
loop several views of each image, stacked as channels, and the networks here take them apart again.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.data.crops import random_boxes, replay_crops
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.errors import InputError
from kdnb.methods.base import positive
from kdnb.methods.class_relation import ClassRelation
from kdnb.models.base import Features
from kdnb.randomness import generator_for
from kdnb.training.evaluation import evaluate
from kdnb.training.importers import match_weights, read_weights
from kdnb.training.loop import Fit, fit
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import fresh

_CHUNK = 500  # images of one forward pass in evaluation


# --- data ----------------------------------------------------------------------------------------------------------------------


class ClassSplit(NamedTuple):
    """A data set cut in two: classes 0..num_known-1 keep their labels, the others lose theirs.

    Attributes:
        num_known, num_novel: classes of each kind.
        known, novel: training images; the labels of novel ones are -1.
        test, test_known: all test images, and those of known classes.
    """

    num_known: int
    num_novel: int
    known: Split
    novel: Split
    test: Split
    test_known: Split


def split_classes(data: Dataset, num_known: int) -> ClassSplit:
    """Split a data set's training and test images by class.

    Raises:
        InputError: fewer than 2 known or 2 novel classes.
    """
    num_novel = data.num_classes - num_known
    if num_known < 2 or num_novel < 2:
        raise InputError(
            f"discovery needs at least 2 known and 2 novel classes, got {num_known} known of {data.num_classes}"
        )
    if not (isinstance(data.train, Split) and isinstance(data.test, Split)):
        raise InputError(f"discovery needs a data set in memory; {data.name} stays on disk")
    assert data.train.labels is not None and data.test.labels is not None
    is_known = data.train.labels < num_known
    novel = data.train.subset(~is_known)
    return ClassSplit(
        num_known,
        num_novel,
        data.train.subset(is_known),
        Split(novel.images, torch.full_like(novel.labels, -1)),
        data.test,
        data.test.subset(data.test.labels < num_known),
    )


@dataclass(frozen=True)
class ViewSplit:
    """Batches of V random crops of each image; the first half of a batch is labelled, the second is not.

    Every unlabelled image is seen once a pass; as many labelled ones are drawn for it. Batches are functions of (seed, epoch, step).

    Attributes:
        known, unlabelled: labelled images, and images with labels -1.
        num_large, num_small: views of most and of a part of an image; V = num_large + num_small >= 2, num_large >= 1.
        large, small: shares of the image's area.

    Deviation: small views are resized to the size of large ones, so that all views fit one tensor.
    """

    known: Split
    unlabelled: Split
    num_large: int = 2
    num_small: int = 0
    large: tuple[float, float] = (0.6, 1.0)
    small: tuple[float, float] = (0.3, 0.8)

    def __post_init__(self):
        if self.num_large < 1 or self.num_small < 0 or self.num_large + self.num_small < 2:
            raise InputError(
                f"discovery needs num_large >= 1 and two views in all, got {self.num_large} large and {self.num_small} small"
            )
        if len(self.known) < 1 or len(self.unlabelled) < 2:
            raise InputError(
                f"discovery needs labelled and unlabelled images, got {len(self.known)} and {len(self.unlabelled)}"
            )

    def __len__(self) -> int:
        return 2 * len(self.unlabelled)

    @property
    def device(self) -> torch.device:
        return self.unlabelled.device

    @property
    def labels(self) -> Tensor | None:
        return self.unlabelled.labels

    def epoch(self, seed: int, epoch: int, batch_size: int, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Views (B, V C, H, W) and labels (B,)."""
        assert self.known.labels is not None and self.unlabelled.labels is not None
        order, half = self.unlabelled.permutation(seed, epoch), batch_size // 2
        for step in steps:
            generator = generator_for(seed, "views", epoch, step)
            chosen = order[step * half : (step + 1) * half]
            labelled = torch.randint(len(self.known), (len(chosen),), generator=generator).to(self.device)
            images = torch.cat([self.known.images[labelled], self.unlabelled.images[chosen]])
            yield (
                self._views(images, generator).flatten(1, 2),
                torch.cat([self.known.labels[labelled], self.unlabelled.labels[chosen]]),
            )

    def _views(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, V, C, H, W)."""
        B, _, H, W = images.shape
        boxes = [
            random_boxes(B * number, H, W, scale, generator=generator).view(B, number, 4)
            for number, scale in ((self.num_large, self.large), (self.num_small, self.small))
            if number
        ]
        boxes = torch.cat(boxes, dim=1).to(images.device)
        return replay_crops(images, boxes, boxes.new_zeros(boxes.shape[:2], dtype=torch.bool), H)


# --- networks ------------------------------------------------------------------------------------------------------------------


def _cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    """Prototypes are normalised where they are used, which is renormalising them after every step without a hook in the loop."""
    return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).mT


def _unstack(x: Tensor, channels: int) -> Tensor:
    """(B, V C, H, W) -> (V B, C, H, W), views outermost."""
    return x.unflatten(1, (-1, channels)).transpose(0, 1).flatten(0, 1)


class CosineNet(nn.Module):
    """Encoder and bias-free prototypes of the known classes; logits are cosines divided by the temperature.

    As the frozen teacher of discovery (`views=True`) it returns plain cosines (V, 1, B, K_old) of stacked views.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, channels: int, temperature: float = 0.1, views: bool = False
    ):
        super().__init__()
        self.encoder, self.channels, self.temperature, self.views = (
            encoder,
            channels,
            positive("temperature", temperature),
            views,
        )
        self.prototypes = nn.Parameter(torch.randn(num_classes, encoder.head.in_features))

    def forward(self, x: Tensor, return_features: bool = False):
        pooled = self.encoder(_unstack(x, self.channels), return_features=True).pooled
        cosines = _cosines(pooled, self.prototypes)
        logits = cosines.view(-1, 1, len(x), cosines.shape[-1]) if self.views else cosines / self.temperature
        return Features(logits, [], pooled, pooled) if return_features else logits


class DiscoveryNet(nn.Module):
    """The pretrained network with heads for novel classes: each a two-layer perceptron with its own prototypes.

    In training it returns the cosines of all views and heads, (V, heads, B, K_old + K_new); in eval mode those of `head`, (B, K).

    Args:
        old: pretrained; its weights are copied.
        num_novel, num_heads: K_new and heads.
        hidden, width: of the perceptrons; 2048 and 256 in the paper.
    """

    def __init__(self, old: CosineNet, num_novel: int, num_heads: int = 4, hidden: int = 256, width: int = 64):
        super().__init__()
        self.encoder, self.channels, self.temperature = copy.deepcopy(old.encoder), old.channels, old.temperature
        self.prototypes = nn.Parameter(old.prototypes.detach().clone())
        inputs = old.prototypes.shape[1]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(num_heads)
        )
        self.novel = nn.Parameter(torch.randn(num_heads, num_novel, width))
        self.head = 0  # the head that answers in eval mode

    def forward(self, x: Tensor, return_features: bool = False):
        pooled = self.encoder(_unstack(x, self.channels), return_features=True).pooled
        known = _cosines(pooled, self.prototypes)
        if self.training:
            novel = _cosines(torch.stack([head(pooled) for head in self.heads]), self.novel)  # (heads, V B, K_new)
            logits = torch.cat([known.expand(len(self.heads), -1, -1), novel], dim=-1)
            logits = logits.unflatten(1, (-1, len(x))).transpose(0, 1)
        else:
            logits = torch.cat([known, _cosines(self.heads[self.head](pooled), self.novel[self.head])], dim=-1)
        return Features(logits, [], pooled, pooled) if return_features else logits


# --- the two stages ------------------------------------------------------------------------------------------------------------


def pretrain(
    model: str, data: Dataset, split: ClassSplit, recipe: Recipe, *, seed: int = 0, folder: Path | None = None
) -> tuple[CosineNet, Fit]:
    """Supervised training on the known classes: cross-entropy of cosines / temperature."""
    net = CosineNet(fresh(model, data, seed), split.num_known, data.channels).to(split.known.device)
    found = fit(net, split.known, split.test_known, recipe, seed=seed, folder=folder, description="known classes")
    return net, found


def pretrained(checkpoint: str, model: str, data: Dataset, split: ClassSplit, seed: int = 0) -> tuple[CosineNet, Fit]:
    """What `pretrain` gave in an earlier run, from its `checkpoints/known.safetensors`; its accuracy is measured here.

    Raises:
        InputError: the file can't be read, or is of another network or another number of known classes.
    """
    net = CosineNet(fresh(model, data, seed), split.num_known, data.channels).to(split.known.device)
    path = Path(checkpoint)
    weights = match_weights(read_weights(path), net.state_dict(), "prototypes", f"checkpoint {path.name}", model)
    net.load_state_dict(weights)
    return net.eval(), Fit([{"epoch": 0} | evaluate(net, split.test_known)], 0.0)


def discover(
    old: CosineNet,
    split: ClassSplit,
    recipe: Recipe,
    *,
    num_heads: int = 4,
    relation_weight: float = 0.1,
    num_large: int = 2,
    num_small: int = 0,
    head_hidden: int = 256,
    head_width: int = 64,
    seed: int = 0,
    folder: Path | None = None,
) -> tuple[DiscoveryNet, Fit]:
    """Train on known and unlabelled images together.

    Args:
        old: of `pretrain`; unchanged, and the teacher of the relation term.
        recipe: of `fit`; its crops and flips are left out, the views are crops already.
        num_heads, relation_weight: of `DiscoveryNet` and `ClassRelation`. num_large, num_small: of `ViewSplit`.
        head_hidden, head_width: of `DiscoveryNet`.
    Returns:
        (network in eval mode with its best head chosen, history; "top1" there is accuracy on known classes among all outputs).
    Raises:
        InputError: a recipe that crops or flips, and what the parts refuse.
    """
    if recipe.crop_padding or recipe.flip:
        raise InputError("views are crops already; the recipe of discovery has crop_padding=0 and flip=False")
    torch.manual_seed(seed)
    net = DiscoveryNet(old, split.num_novel, num_heads, head_hidden, head_width).to(split.known.device)
    teacher = CosineNet(copy.deepcopy(old.encoder), split.num_known, old.channels, old.temperature, views=True)
    teacher.prototypes.data.copy_(old.prototypes.data)
    teacher.to(split.known.device).eval()
    method = ClassRelation(split.num_known, num_heads, relation_weight, temperature=old.temperature)
    views = ViewSplit(split.known, split.novel, num_large, num_small)
    found = fit(
        net,
        views,
        split.test_known,
        recipe,
        method=method,
        teacher=teacher,
        seed=seed,
        folder=folder,
        description="discovery",
    )
    net.head = int(method.head_losses.argmin())
    return net, found


# --- what was found ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predictions(net: nn.Module, images: Tensor) -> Tensor:
    """(N, K) cosines in eval mode."""
    return torch.cat([net(part) for part in images.split(_CHUNK)]).clone()


def assignment(guesses: Tensor, labels: Tensor, num_known: int, num_classes: int) -> Tensor:
    """Which class each output stands for, (K,): known outputs for themselves, novel ones by the matching that gets most images right.

    Args:
        guesses, labels: (N,) int64 in 0..K-1; guesses that are known outputs don't take part.
        num_known, num_classes: K_old and K.

    Source: Kuhn, 1955 (Hungarian method); the measure of all work on novel-class discovery. It uses the labels of the images it scores.
    """
    from scipy.optimize import linear_sum_assignment

    counts = torch.bincount(guesses * num_classes + labels, minlength=num_classes**2).view(num_classes, num_classes)
    outputs, classes = linear_sum_assignment(-counts[num_known:, num_known:].cpu().numpy())
    names = torch.arange(num_classes, device=labels.device)
    names[num_known + torch.from_numpy(outputs).to(names)] = num_known + torch.from_numpy(classes).to(names)
    return names


def discovery_accuracy(net: nn.Module, test: Split, num_known: int) -> dict[str, float]:
    """Accuracy on test images of known, novel and all classes; nobody tells the network which kind an image is (task-agnostic)."""
    assert test.labels is not None
    cosines = predictions(net, test.images)
    names = assignment(cosines.argmax(1), test.labels, num_known, cosines.shape[1])
    right, known = names[cosines.argmax(1)] == test.labels, test.labels < num_known
    return {
        name: right[part].double().mean().item()
        for name, part in (("known", known), ("novel", ~known), ("all", known | True))
    }


def relation_matrix(net: nn.Module, images: Tensor, labels: Tensor, num_known: int, temperature: float = 0.4) -> Tensor:
    """Mean softmax over the known classes for images of each novel class, (K_new, K_old): what a new class looks like to the known ones.

    Args:
        labels: (N,) true classes, for the rows only.
        temperature: of the cosines; tau T = 0.4 in the relation term.
    """
    shares = (predictions(net, images)[:, :num_known] / temperature).softmax(1)
    return torch.stack([shares[labels == label].mean(0) for label in range(num_known, int(labels.max()) + 1)])
