"""CRD: the student's vector of an image should be found by the teacher's among thousands of others, and the other way round."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import crd_log_normalizer, crd_log_scores, crd_loss
from kdnb.losses.checks import upcast
from kdnb.methods.base import Method, count, positive, weight


class CRD(Method):
    """Contrastive representation distillation of the pooled features, beside the labels.

        L = ce_weight CE + feature_weight [L(v^s, M^t) + L(v^t, M^s)]  [+ kd_weight KL_tau],   v = W h / ||W h||

    Both networks' features are mapped to `width` numbers by layers that are trained. Each image keeps its last vectors in two memories,
    M <- unit(momentum M + (1 - momentum) v), moved after the scores were taken and in training mode only. Negatives are drawn for each
    image anew from those of other classes, without replacement as long as there are enough. The normaliser of the scores is the estimate of
    the first batch. Binding needs `num_images`; the memories are 2 `width` numbers an image, in the checkpoint and in the stored student.

    Args:
        feature_weight: 0.8.
        num_negatives: k = 16384.
        temperature_contrast: 0.07 of the contrast.
        momentum: 0.5.
        width: 128.
        ce_weight, kd_weight, temperature: 1, 0 and 4.

    Source: Tian, Krishnan, Isola, ICLR 2020. Released code can also take another image of the class as positive: `CRDRelaxed`.
    """

    needs_indices = True
    num_images: int  # set when bound
    classes: Tensor
    log_normalizer: Tensor
    memory_s: Tensor
    memory_t: Tensor

    def __init__(
        self,
        feature_weight: float = 0.8,
        num_negatives: int = 16384,
        temperature_contrast: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
    ):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.num_negatives = count("num_negatives", num_negatives, least=1)
        self.temperature_contrast = positive("temperature_contrast", temperature_contrast)
        self.momentum = weight("momentum", momentum)
        if momentum > 1:
            raise InputError(f"momentum must lie between 0 and 1, got {momentum}")
        self.width = count("width", width, least=1)
        self.ce_weight = weight("ce_weight", ce_weight)
        self.kd_weight = weight("kd_weight", kd_weight)
        self.temperature = positive("temperature", temperature)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        if not self.num_images:
            raise InputError(
                "CRD remembers every training image; bind it with num_images, the size of the training split"
            )
        bound = math.sqrt(3 / self.width)
        self.embed_s = nn.Linear(shapes_s.pooled[0], self.width)
        self.embed_t = nn.Linear(shapes_t.pooled[0], self.width)
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, torch.empty(self.num_images, self.width).uniform_(-bound, bound))
        # of the student's and the teacher's scores; NaN until the first batch
        self.register_buffer("log_normalizer", torch.full((2,), math.nan))
        self.register_buffer("classes", torch.zeros(self.num_images, dtype=torch.int64))
        self._scarce: bool | None = None  # whether some image has fewer than k negatives; found when first asked

    def prepare(self, student, teacher, train) -> None:
        if len(train) != self.num_images:
            raise InputError(f"CRD was bound for {self.num_images} images, the training split has {len(train)}")
        if train.labels is None or len(train.labels.unique()) < 2:
            raise InputError(
                "CRD draws its negatives from other classes: it needs a training split with at least 2 classes"
            )
        self.classes.copy_(train.labels)

    def negatives(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, k) int64 places of images of other classes, drawn for each of the given places."""
        if self._scarce is None:
            self._scarce = self.num_images - int(self.classes.bincount().max()) < self.num_negatives
        others = (self.classes != self.classes[indices][:, None]).float()
        return torch.multinomial(others, self.num_negatives, replacement=self._scarce, generator=generator)

    def positives(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) int64 places of what each image must be told from its negatives by: itself."""
        return indices

    def contrast(self, pooled_s: Tensor, pooled_t: Tensor, indices: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """ln of the normalised scores, (B, k + 1) each: the student's vectors in the teacher's memory, and the reverse.

        Args:
            pooled_s, pooled_t: (B, D_s) and (B, D_t) features of the images at `indices`, (B,) int64.
            places: (B, k + 1) int64, what each is held against, the positive first.
        """
        vectors = [
            F.normalize(upcast(embed(pooled)), dim=1)
            for embed, pooled in ((self.embed_s, pooled_s), (self.embed_t, pooled_t.detach()))
        ]
        scores = [
            crd_log_scores(vector, memory, places, self.temperature_contrast)
            for vector, memory in zip(vectors, (self.memory_t, self.memory_s), strict=True)
        ]
        first = torch.stack([crd_log_normalizer(score, self.num_images) for score in scores]).to(self.log_normalizer)
        known = torch.where(self.log_normalizer.isnan(), first, self.log_normalizer)
        if self.training:
            self.log_normalizer = known
            self.memory_s, self.memory_t = (
                self._moved(memory, indices, vector.detach())
                for memory, vector in zip((self.memory_s, self.memory_t), vectors, strict=True)
            )
        return tuple(score - upcast(log) for score, log in zip(scores, known, strict=True))

    def _moved(self, memory: Tensor, indices: Tensor, vectors: Tensor) -> Tensor:
        """A new tensor: the old one is needed by the backward pass."""
        rows = self.momentum * upcast(memory[indices]) + (1 - self.momentum) * vectors
        return memory.index_copy(0, indices, F.normalize(rows, dim=1).to(memory))

    def forward(self, student, teacher, labels, epoch, indices=None, generator=None) -> dict[str, Tensor]:
        if indices is None:
            raise InputError("CRD needs the places of the images in the training split; call it with indices")
        positives, negatives = self.positives(indices, generator), self.negatives(indices, generator)
        places = torch.cat([positives[:, None], negatives], dim=1)
        scores = self.contrast(student.pooled, teacher.pooled, indices, places)
        loss = sum(crd_loss(score, self.num_images) for score in scores)
        return self.base_terms(student, teacher, labels) | {"contrast": self.feature_weight * loss}


class CRDRelaxed(CRD):
    """CRD with a random image of the same class as positive, the image itself among them: released code's mode "relax"."""

    def positives(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        alike = (self.classes == self.classes[indices][:, None]).float()
        return torch.multinomial(alike, 1, generator=generator)[:, 0]
