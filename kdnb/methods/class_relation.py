"""The loss of novel-class discovery as a method: swapped prediction, and the relation to known classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.losses.relation import relation_loss, swapped_prediction
from kdnb.losses.sinkhorn import sinkhorn
from kdnb.methods.base import Method, count, positive, weight


class ClassRelation(Method):
    """Swapped prediction of views plus the class relation term.

        L = mean_h [ L_swap + relation_weight L_rel ]

    Targets of labelled images are their labels; those of unlabelled ones a balanced Sinkhorn assignment to the novel classes.

    Args:
        relation_weight: 0.1; 0 leaves the term out.
        num_large: views that give targets, the first ones.
        temperature, kd_temperature: tau = 0.1 of the cosines and T = 4.
        epsilon, num_iters: 0.05 and 3, of `sinkhorn`.

    Attributes:
        head_losses: running mean of the swapped loss of each head; the smallest names the head to use.

    Source: Gu, Zhang, Xu, He, ICCV 2023. Deviation: the head is chosen by its recent loss (released code: by a sum over all epochs).
    """

    needs_labels = False

    def __init__(
        self,
        num_known: int,
        num_heads: int,
        relation_weight: float = 0.1,
        num_large: int = 2,
        temperature: float = 0.1,
        kd_temperature: float = 4.0,
        epsilon: float = 0.05,
        num_iters: int = 3,
    ):
        super().__init__()
        self.num_known, self.num_heads = count("num_known", num_known, least=2), count("num_heads", num_heads, least=1)
        self.relation_weight = weight("relation_weight", relation_weight)
        self.num_large = count("num_large", num_large, least=1)
        self.temperature, self.kd_temperature = (
            positive("temperature", temperature),
            positive("kd_temperature", kd_temperature),
        )
        self.epsilon, self.num_iters = positive("epsilon", epsilon), count("num_iters", num_iters, least=1)
        self.register_buffer("head_losses", torch.zeros(num_heads))

    @torch.no_grad()
    def targets(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(V_L, heads, B, K): one-hot rows for the labelled first half of the batch, Sinkhorn over novel classes for the second."""
        half = len(labels) // 2  # a fixed place, where a boolean index would stop a GPU
        found = torch.zeros_like(logits[: self.num_large])
        found[..., :half, :] = F.one_hot(labels[:half], logits.shape[-1]).to(found)
        found[..., half:, self.num_known :] = sinkhorn(
            logits[: self.num_large, :, half:, self.num_known :], self.epsilon, self.num_iters
        ).to(found)
        return found

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        logits = student.logits
        swap = swapped_prediction(logits, self.targets(logits, labels), self.num_large, self.temperature)
        self.head_losses.lerp_(swap.detach().to(self.head_losses), 0.05)
        terms = {"swap": swap.mean()}
        if self.relation_weight:
            old = teacher.logits[: self.num_large].expand(-1, self.num_heads, -1, -1)
            relation = relation_loss(logits[: self.num_large], old, labels < 0, self.temperature, self.kd_temperature)
            terms["relation"] = self.relation_weight * relation.mean()
        return terms
