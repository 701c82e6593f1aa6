"""What a classifier says in eval mode: accuracy on a labelled split, logits of many images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.data.splits import OrderedSplit


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
    parts = [model(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    model.train(training)
    return torch.cat(parts).clone()


@torch.inference_mode()
def pooled_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """(N, D) pooled features in eval mode: the embedded feature space of the Frechet distance."""
    model.eval()
    return torch.cat([model(part, return_features=True).pooled for part in images.split(batch_size)]).clone()
