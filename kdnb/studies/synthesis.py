"""Making images from a teacher and a diffusion prior, and measuring what was made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.generators.diffusion import DiffusionPrior
from kdnb.generators.fitting import FittedTeacher, fit_images, native_shape
from kdnb.metrics import entropy, frechet_distance
from kdnb.randomness import generator_for
from kdnb.samplers.cadr import Guidance, GuidanceConfig
from kdnb.samplers.diffusion import Samples, sample
from kdnb.training.evaluation import pooled_features, predict_logits


def draw(
    prior: DiffusionPrior,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    *,
    teacher: nn.Module | None = None,
    guidance: GuidanceConfig | None = None,
    solver: str = "ddim",
    num_steps: int = 50,
    seed: int = 0,
    trace: bool = False,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Samples:
    """One image per label, guided by the teacher if `guidance` is given. The same seed means the same initial noise in every setting.

    `image_shape` is the teacher's; a prior of another shape is sampled in its own and fitted, see `kdnb.generators.fitting`.
    """
    native = native_shape(prior, image_shape)
    if guidance is not None and native != tuple(image_shape):
        teacher = FittedTeacher(teacher, image_shape)
    noise = torch.randn(
        len(labels),
        *native,
        generator=generator_for(seed, "initial noise", device=labels.device),
        device=labels.device,
    )
    guide = Guidance(teacher, guidance) if guidance is not None else None
    try:
        found = sample(
            prior,
            labels,
            native,
            guidance=guide,
            solver=solver,
            num_steps=num_steps,
            initial_noise=noise,
            trace=trace,
            on_step=on_step,
        )
    finally:
        if guide is not None:
            guide.close()
    found.images = fit_images(found.images.clamp(-1, 1), image_shape)
    return found


def diversity(images: Tensor, labels: Tensor) -> float:
    """Mean Euclidean distance between two images of the same class, in pixel units of [-1, 1]; 0 if every class repeats one image."""
    flat = images.flatten(1).double()
    same = (labels[:, None] == labels[None, :]).triu(diagonal=1)
    return torch.cdist(flat, flat)[same].mean().item()


def image_scores(
    images: Tensor, labels: Tensor, teacher: nn.Module, judge: nn.Module, real: Tensor
) -> dict[str, float]:
    """How faithful, how credible and how varied are images that were asked to be of `labels`?

    Args:
        images: (N, C, H, W); labels: (N,) the classes asked for.
        teacher: the network that guided; judge: one that shares no training image with it.
        real: (M, C, H, W) real images, for the Frechet distance.
    Returns:
        agreement: share of images that the teacher puts into the class asked for.
        judge_agreement: share that the independent judge puts there. The difference to `agreement` is adversarial.
        cross_entropy: of the teacher to the labels, nats.
        entropy: of the teacher's predictions, nats.
        frechet: distance to the real images in the teacher's pooled features.
        diversity: see `diversity`.
    """
    logits, opinion = predict_logits(teacher, images), predict_logits(judge, images)
    return {
        "agreement": (logits.argmax(dim=1) == labels).double().mean().item(),
        "judge_agreement": (opinion.argmax(dim=1) == labels).double().mean().item(),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
        "entropy": entropy(logits).mean().item(),
        "frechet": frechet_distance(pooled_features(teacher, images), pooled_features(teacher, real)).item(),
        "diversity": diversity(images, labels),
    }


def verdicts(
    images: Tensor, labels: Tensor, teacher: nn.Module, judge: nn.Module, sure: float = 0.9
) -> dict[str, Tensor]:
    """What teacher and judge say of each image, and the two ways in which an image fails.

    Args:
        images: (N, C, H, W); labels: (N,) the classes asked for.
        sure: confidence from which the teacher counts as sure.
    Returns:
        (N,) each. teacher, judge: the class that they see. confidence: of the teacher in it. surely_wrong: the teacher is sure of
        another class than the one asked for. persuaded: the teacher sees the class asked for, the judge does not.
    """
    confidence, seen = predict_logits(teacher, images).softmax(dim=1).max(dim=1)
    opinion = predict_logits(judge, images).argmax(dim=1)
    return {
        "teacher": seen,
        "confidence": confidence,
        "judge": opinion,
        "surely_wrong": (seen != labels) & (confidence >= sure),
        "persuaded": (seen == labels) & (opinion != labels),
    }


def failures(
    images: Tensor, labels: Tensor, said: Mapping[str, Tensor], names: Sequence[str], count: int = 8
) -> dict[str, Any]:
    """The first `count` images that failed, surely wrong ones before persuaded ones, dressed for `kdnb.plots.labelled_rows`.

    Args:
        images: (N, C, H, W); labels: (N,) the classes asked for; said: their `verdicts`; names: of the K classes.
    Returns:
        images: (M, C, H, W), M <= count. titles: the class asked for. captions: what teacher (with its confidence) and judge see.
        frames: teacher outside, judge inside, "agree" where it is the class asked for.
    """
    chosen = torch.cat([said[kind].nonzero()[:, 0] for kind in ("surely_wrong", "persuaded")])[:count]
    asked, opinions = labels[chosen].tolist(), {key: said[key][chosen].tolist() for key in ("teacher", "judge")}
    sure = said["confidence"][chosen].tolist()
    pairs = list(zip(opinions["teacher"], opinions["judge"], strict=True))
    return {
        "images": images[chosen],
        "titles": [names[label] for label in asked],
        "captions": [f"T {names[t]} {c:.2f} J {names[j]}" for (t, j), c in zip(pairs, sure, strict=True)],
        "frames": [
            tuple("agree" if seen == label else "disagree" for seen in pair)
            for pair, label in zip(pairs, asked, strict=True)
        ],
    }
