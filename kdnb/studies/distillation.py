"""Which method helps this student? Methods and seeds under one recipe, each trained once and kept in the artifact cache.

A killed comparison continues where it was: finished students come from the cache, the one in progress from its last checkpoint. Students
of the same recipe are shared by all experiments that ask for them, the baselines above all.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb import methods
from kdnb.choices import BASELINES
from kdnb.data.tensors import Dataset
from kdnb.losses import region_logits
from kdnb.rehearsal import cut
from kdnb.training.distil import Distilled, Setting, bound, distil
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Model, Trained

# of baselines whose published constants depend on the data set; the defaults are those of CIFAR-100
_PUBLISHED = {("kd", "imagenet"): {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}}


def one_at_a_time(setting: Setting) -> dict[str, dict[str, Setting]]:
    """The method with one hyper-parameter changed and the rest as they are: scales; temperature halved and doubled; weight a third and
    threefold. Only what the method has; the setting itself is among them.

    >>> [made.hyper for made in one_at_a_time(Setting("kd"))["temperature"].values()]
    [{'temperature': 2.0}, {'temperature': 4.0}, {'temperature': 8.0}]
    """
    hyper = methods.build(setting.method, **setting.hyper).hyper
    values = {"scales": [[1], [1, 2], [1, 2, 4]]} if "scales" in hyper else {}
    values |= {
        name: [hyper[name] / factor, hyper[name], hyper[name] * factor]
        for name, factor in (("temperature", 2), ("kd_weight", 3))
        if name in hyper
    }
    return {
        name: {_text(value): Setting(setting.method, setting.hyper | {name: value}) for value in choices}
        for name, choices in values.items()
    }


def _text(value: float | list) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def compare(
    settings: Mapping[str, Setting],
    student: Model,
    teacher: Trained,
    data: Dataset,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    omitted_class: int | None = None,
) -> list[dict]:
    """Train every setting with every seed, the two baselines first, and measure what came out.

    Args:
        settings: by the name they have in tables; the baselines "student alone" and "plain KD" need not be given.
        teacher: in eval mode; student, recipe, seeds, omitted_class: as `distil`.
    Returns:
        One row per setting and seed:
            top1, best_top1: accuracy after the last epoch, and the best there was (chosen on the test set, so no headline).
            omitted_top1: accuracy on the test images of the class that was left out; absent without one.
            agreement: share of test images on which student and teacher name the same class.
            kl_to_teacher: mean KL(teacher || student) at temperature 1, nats.
            extra_parameters: of the method, beside the student's own.
            seconds: of training, as measured when it happened. recipe, teacher: their hashes.
    Raises:
        InputError: as `distil`, for any of the settings before the first is trained.
    """
    settings = {
        name: Setting(method, _PUBLISHED.get((method, data.name), {})) for name, method in BASELINES.items()
    } | dict(settings)
    for setting in settings.values():
        bound(setting, student, teacher, data, recipe, seed=0, num_images=len(data.train))
    rows: list[dict] = []
    count = len(settings) * len(seeds)
    cells = (
        (name, setting, seed)
        for name, setting in settings.items()
        for seed in cut(list(seeds), f"seed of {setting.method}", most=1)
    )
    for name, setting, seed in cells:
        made = distil(
            setting,
            student,
            teacher,
            data,
            recipe,
            seed=seed,
            omitted_class=omitted_class,
            description=f"{name}, seed {seed} ({len(rows) + 1} of {count})",
        )
        rows.append(
            {"setting": name, "method": setting.method, "seed": seed}
            | _top1(made.history)
            | student_metrics(made, teacher.model, data, omitted_class)
            | {"extra_parameters": made.method.extra_parameters(), "seconds": round(made.seconds, 1)}
            | {"recipe": made.key, "teacher": teacher.hash}
        )
    return rows


def _top1(history: Sequence[dict]) -> dict[str, float]:
    return {
        "top1": history[-1]["top1"],
        "best_top1": max(row["top1"] for row in history if "top1" in row),
    }


_AT_ONCE = 100  # images in a forward pass that keeps its maps: those of 224 pixels are large


@torch.inference_mode()
def look(model: nn.Module, images: Tensor, scales: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What a network says about images (B, K) and about their regions (B, K, M), by its own classifier (`kdnb.losses.region_logits`)."""
    logits, regions = [], []
    for part in images.split(_AT_ONCE):
        features = model(part, return_features=True)
        logits.append(features.logits)
        if isinstance(model.head, nn.Linear):
            regions.append(region_logits(features.final_map, model.head.weight, model.head.bias, scales))
        else:  # nothing to apply to regions: each says what the image says
            regions.append(features.logits[:, :, None].repeat(1, 1, sum(scale**2 for scale in scales)))
    return torch.cat(logits), torch.cat(regions)


@torch.inference_mode()
def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """What enters a network's classifier, (B, D)."""
    return torch.cat([model(part, return_features=True).pooled for part in images.split(_AT_ONCE)])


def tsne(features: Tensor, seed: int = 0) -> Tensor:
    """A map of points in the plane that keeps neighbours together; distances between groups and axes mean nothing.

    Args:
        features: (N, D), N >= 3. seed: of the optimisation, which starts from the first two principal components.
    Returns:
        (N, 2) float32, on the CPU. The perplexity is 30, or (N - 1) / 3 where that is less.

    Source: van der Maaten, Hinton, JMLR 2008; scikit-learn's implementation.
    """
    from sklearn.manifold import TSNE

    values = features.detach().float().cpu().numpy()
    made = TSNE(init="pca", perplexity=min(30.0, (len(values) - 1) / 3), random_state=seed, n_jobs=1)
    return torch.from_numpy(made.fit_transform(values)).float()


def same_class_neighbours(features: Tensor, labels: Tensor, count: int = 10) -> Tensor:
    """The share of an image's nearest neighbours (Euclidean, itself excluded) that have its label.

    Args:
        features: (N, D). labels: (N,). count: of neighbours, at most N - 1 of them.
    Returns:
        (N,) in [0, 1].
    """
    distances = torch.cdist(features.double(), features.double())
    distances.fill_diagonal_(math.inf)
    nearest = distances.topk(min(count, len(features) - 1), largest=False).indices
    return (labels[nearest] == labels[:, None]).double().mean(dim=1)


def class_correlations(logits: Tensor) -> Tensor:
    """Which classes rise and fall together: Pearson's correlation of the logits of each pair of classes over images.

        C_kl = cov(z_k, z_l) / (s_k s_l)

    Args:
        logits: (N, K), N >= 2.
    Returns:
        (K, K) float64, symmetric with ones on the diagonal; 0 where a class's logit is the same for all images.

    Source: Tian, Krishnan, Isola, ICLR 2020 (CRD), figure 2, compares teacher and student by the difference of these matrices.
    """
    return torch.corrcoef(logits.double().T).nan_to_num(0.0)


@torch.inference_mode()
def student_metrics(
    made: Distilled, teacher: nn.Module, data: Dataset, omitted_class: int | None = None, batch_size: int = 500
) -> dict[str, float]:
    """What a student took over from its teacher, on the test split: see `compare`."""
    sums = torch.zeros(4, dtype=torch.float64, device=data.test.device)
    for images, labels in data.test.batches(batch_size):
        logits_s, logits_t = made.logits(images).float(), teacher(images).float()
        guess = logits_s.argmax(dim=1)
        assert labels is not None
        omitted = labels == (-1 if omitted_class is None else omitted_class)
        kl = F.kl_div(logits_s.log_softmax(dim=1), logits_t.log_softmax(dim=1), reduction="sum", log_target=True)
        sums += torch.stack(
            [(guess == logits_t.argmax(dim=1)).sum(), kl, (omitted & (guess == labels)).sum(), omitted.sum()]
        ).double()
    agreement, kl, found, omitted = sums.tolist()
    row = {"agreement": agreement / len(data.test), "kl_to_teacher": kl / len(data.test)}
    return row if omitted_class is None else row | {"omitted_top1": found / omitted if omitted else math.nan}


# --- statistics ----------------------------------------------------------------------------------------------------------------
