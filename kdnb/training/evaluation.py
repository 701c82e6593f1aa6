"""What a classifier says in eval mode: accuracy on a labelled split, logits of many images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.data.splits import OrderedSplit
from kdnb.rehearsal import batch_for, cut


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: OrderedSplit, predict: Callable | None = None, batch_size: int = 500
) -> dict[str, float]:
    """Accuracy of a model in eval mode on a labelled split; the model's mode is put back.

    Args:
        predict: maps the model's `Features` to logits (SimKD predicts through the teacher's classifier); None: the model's own logits.
    Returns:
        {"top1", "top5"} as fractions and {"loss"} as mean cross-entropy in nats.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, device=split.device, dtype=torch.float64)
    for images, labels in split.batches(batch_size):
        logits = predict(model(images, return_features=True)) if predict else model(images)
        logits = logits.float()
        k = min(5, logits.shape[1])
        assert labels is not None
        hits = logits.topk(k, dim=1).indices == labels[:, None]
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), F.cross_entropy(logits, labels, reduction="sum")]).double()
    model.train(training)
    top1, top5, loss = (sums / len(split)).tolist()
    return {"top1": top1, "top5": top5, "loss": loss}


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits of many images in eval mode, (N, K)."""
    training = model.training
    model.eval()
    logits = in_batches(model, images, batch_size)
    model.train(training)
    return logits


@torch.inference_mode()
def pooled_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """(N, D) pooled features in eval mode: the embedded feature space of the Frechet distance."""
    model.eval()
    return in_batches(lambda part: model(part, return_features=True).pooled, images, batch_size)


@torch.inference_mode()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """A function of batches, (B, C, H, W) to (B, D), over all of (N, C, H, W); (N, D).

    A rehearsal asks for the first batch alone, and repeats it: what follows needs the shape.
    """
    size = batch_for(batch_size)
    starts = cut(range(0, len(images), size), "batch of outputs", most=1)
    found = torch.cat([function(images[start : start + size]) for start in starts])
    if len(found) < len(images):
        found = found.repeat(-(-len(images) // len(found)), 1)[: len(images)]
    return found.clone()
