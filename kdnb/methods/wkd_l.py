"""WKD-L: transport of the teacher's probabilities, over a cost between classes that the teacher's features give, or its classifier."""

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses import class_cka_cost, head_cosine_cost, sharpen, target_cross_entropy, transport_per_sample
from kdnb.methods.base import Method, cosine_decay, count, head_of, positive, weight
from kdnb.rehearsal import cut

_BATCH = 256  # images at once in the pass before training; nothing depends on it but memory


class WKDL(Method):
    """The target class apart; among the others, mass is cheaply moved between classes that the teacher sees alike.

        L = ce_weight CE - mean_b Q_by log P_by + cosine_decay(epoch) kd_weight mean_b <T_b, D>

    with `kdnb.losses.transport_per_sample` and the cost 1 - exp(-s (1 - CKA)) between the classes' features at all places of the teacher's
    last map (`kdnb.losses.class_cka_cost`), found in one pass over the training images. Before it all unlike classes are equally far.

    Args:
        kd_weight, temperature: 600 and 8 for ResNet32x4 to ResNet8x4; 200 and 6 for WRN40-2 to ShuffleNetV1; ImageNet 30 or 25, and 2.
        regularization, iterations: lambda = 0.05 and 10.
        sharpness: s; 1, and 2 for ResNet50 on ImageNet.
        decay_start: after this epoch the weight falls to 0 along half a cosine; 150, and 0 on ImageNet. No decay where `bind` is not told
            the number of epochs.
        images_per_class: the first so many of each class give the features, at most as many as the smallest class has; 500 is all of
            CIFAR-100. They are kept in memory together: 3.3 GB for a ResNet32x4 there.
        ce_weight: 1.

    Source: Lv, Yang, Li, NeurIPS 2024. On ImageNet the released costs come from logits instead. A class without images is like no other.
    """

    needs_labels = True
    cost: Tensor

    def __init__(
        self,
        temperature: float = 8.0,
        ce_weight: float = 1.0,
        kd_weight: float = 600.0,
        regularization: float = 0.05,
        iterations: int = 10,
        sharpness: float = 1.0,
        decay_start: int = 150,
        images_per_class: int = 500,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.regularization = positive("regularization", regularization)
        self.iterations = count("iterations", iterations, 1)
        self.sharpness = positive("sharpness", sharpness)
        self.decay_start = count("decay_start", decay_start)
        self.images_per_class = count("images_per_class", images_per_class, 1)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        num_classes = shapes_s.logits[0]
        self.register_buffer("cost", sharpen(1 - torch.eye(num_classes), self.sharpness))

    def prepare(self, student, teacher, train) -> None:
        features = class_features(teacher, train, len(self.cost), self.images_per_class)
        self.cost.copy_(sharpen(class_cka_cost(features), self.sharpness))

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        given = (self.cost, self.temperature, self.regularization, self.iterations)
        carried = transport_per_sample(student.logits, teacher.logits, labels, *given).mean()
        decay = cosine_decay(epoch, self.decay_start, self.epochs)
        return self.ce_term(student, labels) | {
            "target": target_cross_entropy(student.logits, teacher.logits, labels),
            "transport": decay * self.kd_weight * carried,
        }


class WKDLHead(WKDL):
    """The same with a cost that needs no pass over the images: 1 - cosine of the weight vectors of the teacher's classifier.

    Args: as `WKDL`, without `images_per_class`.

    Source: released code of Lv, Yang, Li.
    """

    def __init__(
        self,
        temperature: float = 8.0,
        ce_weight: float = 1.0,
        kd_weight: float = 600.0,
        regularization: float = 0.05,
        iterations: int = 10,
        sharpness: float = 1.0,
        decay_start: int = 150,
    ):
        super().__init__(temperature, ce_weight, kd_weight, regularization, iterations, sharpness, decay_start)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        self.register_buffer("cost", sharpen(head_cosine_cost(head_of(teacher, "teacher").weight), self.sharpness))

    def prepare(self, student, teacher, train) -> None:
        """The classifier says it all."""


@torch.no_grad()
def class_features(teacher: nn.Module, train, num_classes: int, images_per_class: int) -> Tensor:
    """The teacher's features of the first images of every class, at all places of its last map.

    Args:
        train: a `kdnb.data.splits.Split` with labels.
        images_per_class: at most; all classes get as many as the smallest one has.
    Returns:
        (K, n H W, D) on the device of the images; zeros for a class without images.
    Raises:
        InputError: there are no labels.
    """
    if train.labels is None:
        raise InputError("classes are compared by labelled training images, and these have no labels")
    sizes = torch.bincount(train.labels, minlength=num_classes)
    most = min(images_per_class, int(sizes[sizes > 0].min()))
    found: dict[int, Tensor] = {}
    for label in cut(sizes.nonzero().flatten().tolist(), "class", most=1):
        images = train.images[(train.labels == label).nonzero().flatten()[:most]]
        maps = torch.cat([teacher(part, return_features=True).feats[-1] for part in images.split(_BATCH)])
        found[label] = maps.flatten(2).transpose(1, 2).flatten(0, 1)  # (n, D, H, W) -> (n H W, D)
    missing = torch.zeros_like(next(iter(found.values())))
    return torch.stack([found.get(label, missing) for label in range(num_classes)])
