"""What a teacher says to images of different origin: real, synthetic, attacked, noise."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdnb import metrics
from kdnb.data.splits import Split
from kdnb.data.tensors import Dataset
from kdnb.losses.datafree import batch_norm_terms
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.randomness import generator_for
from kdnb.training.evaluation import pooled_features, predict_logits


def batch_norm_distance(teacher: nn.Module, images: Tensor) -> list[float]:
    """How far the statistics of these images are from those that each batch-norm layer remembers, see `losses.datafree.batch_norm_terms`.

    Args:
        images: (B, C, H, W), one batch: a few hundred. The distance of a small batch is larger by chance alone.
    """
    with frozen(teacher), torch.no_grad(), BatchNormProbe(teacher) as probe:
        teacher(images)
        return batch_norm_terms(probe.means, probe.variances, probe.running_means, probe.running_variances).tolist()


def describe(teacher: nn.Module, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """One row of the table of sources.

    Args:
        images: (N, C, H, W) in [-1, 1]. labels: (N,) the true classes, or those that were asked for; None for images without either.
    Returns:
        Without labels: mean `confidence`, `entropy` (nats), `margin` of the two largest probabilities, share `sure` of confidences
        above 0.9, `imbalance` KL of the vote histogram to the uniform one (nats), `bn_distance` summed over layers.
        With labels also: `accuracy`, `nll` (nats), `brier`, `ece`, `mce` (15 bins).
    """
    logits = predict_logits(teacher, images)
    confidence = metrics.confidence(logits)
    row = {
        "images": len(images),
        "confidence": confidence.mean().item(),
        "entropy": metrics.entropy(logits).mean().item(),
        "margin": metrics.margin(logits).mean().item(),
        "sure": (confidence > 0.9).float().mean().item(),
        "imbalance": metrics.class_imbalance(logits.argmax(dim=1), logits.shape[1]).item(),
        "bn_distance": sum(batch_norm_distance(teacher, images)),
    }
    if labels is None:
        return row
    measures = {
        "accuracy": metrics.accuracy,
        "nll": metrics.nll,
        "brier": metrics.brier,
        "ece": metrics.ece,
        "mce": metrics.mce,
    }
    return row | {name: measure(logits, labels).item() for name, measure in measures.items()}


def feature_map(teacher: nn.Module, sources: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
    """Pooled features of every source in the plane of the reference's two largest principal components.

    Args:
        sources: name -> images (N, C, H, W). reference: the source that defines the plane.
    Returns:
        name -> (N, 2). The plane is one of real images, so whatever makes others differ outside of it is not seen.
    """
    features = {name: pooled_features(teacher, images) for name, images in sources.items()}
    centre = features[reference].mean(dim=0)
    axes = torch.linalg.svd(features[reference] - centre, full_matrices=False).Vh[:2]
    signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # the sign of a singular vector is arbitrary
    return {name: (found - centre) @ (axes * signs).T for name, found in features.items()}


def sort_by_confidence(teacher: nn.Module, split: Split) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The surest first: `right` and `wrong` predictions of a labelled split, each as (images, predictions, confidences, true classes)."""
    logits = predict_logits(teacher, split.images)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    assert split.labels is not None
    right = (predicted == split.labels)[order]
    chosen = {"right": order[right], "wrong": order[~right]}
    found = (split.images, predicted, confidence, split.labels)
    return {name: tuple(part[indices] for part in found) for name, indices in chosen.items()}


def titles(names: list[str], predicted: Tensor, confidence: Tensor) -> list[str]:
    """`name confidence` for a gallery, as in "7 0.99"."""
    return [f"{names[label]} {value:.2f}" for label, value in zip(predicted.tolist(), confidence.tolist(), strict=True)]


def verdicts(predicted: Tensor, labels: Tensor) -> list[str]:
    """Frames for `kdnb.plots`: whether each prediction is the class that it should be, "agree" or "disagree"."""
    return ["agree" if same else "disagree" for same in (predicted == labels).tolist()]


def behaviour_sources(
    data: Dataset, synthetic: Split | None, count: int, seed: int = 0, others: Mapping[str, Split] | None = None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """name -> (images, labels or None) of `private`, `test`, `synthetic` (the last of those given), `gaussian` and `uniform` noise.

    Args:
        synthetic: images, oldest first, with the classes asked for; None: that source is left out. count: images of each source, at
            most as many as there are; of a data set on disk no others are read.
        others: name -> what a further method made, oldest first; without labels where no class was asked for.
    """
    device = data.test.device
    rng = generator_for(seed, "noise", device=device)
    private, test = data.private.take(count), data.test.take(count)
    found = {"private": (private.images, private.labels), "test": (test.images, test.labels)}
    if synthetic is not None:
        assert synthetic.labels is not None
        found["synthetic"] = (synthetic.images[-count:], synthetic.labels[-count:])
    for name, made in (others or {}).items():
        found[name] = (made.images[-count:], None if made.labels is None else made.labels[-count:])
    return found | {
        "gaussian": (torch.randn(test.images.shape, generator=rng, device=device).clamp(-1, 1), None),
        "uniform": (torch.rand(test.images.shape, generator=rng, device=device) * 2 - 1, None),
    }
