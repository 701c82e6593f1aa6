"""`inv evaluate`: what a file of weights is worth on a data set's test images, whoever wrote it."""

from pathlib import Path
from typing import NamedTuple

import torch

from kdnb import metrics, models
from kdnb.data import class_count, load
from kdnb.data.check import check_files
from kdnb.errors import InputError
from kdnb.progress import progress
from kdnb.storage.header import check_classes, read_about
from kdnb.training.importers import load_classifier


class Evaluation(NamedTuple):
    """A network's test results.

    Attributes:
        file, architecture: what was judged.
        dataset, image_size, num_images: on what: images of this size in pixels, and their number.
        top1, top5: fractions.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error over 15 bins, a fraction.
        hash: of the weights.
    """

    file: str
    architecture: str
    dataset: str
    image_size: int
    num_images: int
    top1: float
    top5: float
    nll: float
    ece: float
    hash: str

    def describe(self) -> str:
        """For a terminal."""
        error = (self.top1 * (1 - self.top1) / self.num_images) ** 0.5
        size = f"{self.image_size}x{self.image_size}"
        return (
            f"{self.file}: {self.architecture}, weights {self.hash}\n"
            f"{self.dataset}: {self.num_images:,} test images of {size}\n"
            f"top-1    {100 * self.top1:6.2f} %  (standard error {100 * error:.2f})\n"
            f"top-5    {100 * self.top5:6.2f} %\n"
            f"NLL      {self.nll:6.4f} nats\n"
            f"ECE      {100 * self.ece:6.2f} %  (15 bins)"
        )


def evaluate_file(
    path: Path, dataset: str, architecture: str = "", image_size: int | None = None, device: str = "cpu"
) -> Evaluation:
    """Accuracy and calibration of a checkpoint on the test split of a data set.

        ece = sum_b n_b / N |accuracy_b - confidence_b|,   nll = - 1/N sum_n log p(y_n | x_n)

    Args:
        path: any form that `kdnb.training.importers` reads.
        dataset: as for `kdnb.data.load`.
        architecture: as for `kdnb.models.build`; empty: what a file of ours says.
        image_size: pixels; None: what a file of ours says, else the data set's own.
    Raises:
        InputError: no such file, data set or network, a file that does not say its network, weights of another one or for another number
            of classes, or a method whose head is not in the file.
    """
    path = Path(path)
    about = read_about(path)
    if not (architecture or about.get("network")):
        raise InputError(f"{path.name} does not say what network it is of; give --architecture, as in resnet8x4")
    if about.get("own_head"):
        raise InputError(
            f"{path.name} is of a method that predicts through layers of its own, which are not in the file"
        )
    architecture = models.known(architecture or about["network"])
    check_files(dataset)
    count = class_count(dataset)
    if count is not None and models.parse_foreign(architecture) is None:
        check_classes(path, count, dataset)
    data = load(dataset, image_size or about.get("image_size"), device)
    net = load_classifier(path, architecture, **data.normalization, image_size=data.image_size)
    logits, labels = _answers(net.model.to(device), data.test)
    ranks = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return Evaluation(
        path.name,
        architecture,
        data.name,
        data.image_size,
        len(labels),
        metrics.accuracy(logits, labels).item(),
        ranks.any(dim=1).double().mean().item(),
        metrics.nll(logits, labels).item(),
        metrics.ece(logits, labels).item(),
        net.hash,
    )


@torch.inference_mode()
def _answers(model: torch.nn.Module, split) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) logits and (N,) labels, in double precision on the CPU."""
    batches = progress(split.batches(250), "images", -(-len(split) // 250))
    logits, labels = zip(*((model(images).double().cpu(), labels.cpu()) for images, labels in batches), strict=True)
    return torch.cat(logits), torch.cat(labels)
