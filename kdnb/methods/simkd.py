"""SimKD: the student learns the teacher's last map and then uses the teacher's classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import feature_mse
from kdnb.losses.features import pool_to
from kdnb.methods.base import Method, constant, count, head_of, weight


def projector(channels_s: int, channels_t: int, factor: int = 2) -> nn.Sequential:
    """1 x 1, 3 x 3 and 1 x 1 convolution with m = C_t / factor channels between; each with batch norm and ReLU, none with bias.

    Parameters: C_s m + 9 m^2 + m C_t + 4 m + 2 C_t.

    >>> sum(p.numel() for p in projector(256, 256, 2).parameters())
    214016
    """
    middle = channels_t // factor
    if middle < 1:
        raise InputError(f"factor must be at most the teacher's {channels_t} channels, got {factor}")
    return nn.Sequential(
        nn.Conv2d(channels_s, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, channels_t, 1, bias=False),
        nn.BatchNorm2d(channels_t),
        nn.ReLU(),
    )


class SimKD(Method):
    """Feature alignment before the teacher's classifier, which the student takes over.

        L = feature_weight mean (proj(F^s) - F^t)^2;   prediction: W^t pool(proj(F^s)) + b^t

    F are the maps before global pooling, the larger one pooled. Labels, soft targets and the student's own head play no part: the head gets
    no gradient (released code gives it a zero one, so weight decay shrinks it). The teacher's classifier is kept as a buffer: student
    and method together predict without the teacher (`restore`), and both must be saved.

    Args:
        feature_weight: 1.
        factor: 2 (published also 4 and 8); a smaller projector for a larger factor.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022.
    """

    needs_features = True
    needs_labels = False

    def __init__(self, feature_weight: float = 1.0, factor: int = 2):
        super().__init__()
        self.feature_weight = weight("feature_weight", feature_weight)
        self.factor = count("factor", factor, least=1)

    def attach(self, student, teacher, shapes_s, shapes_t, batch_size) -> None:
        (channels_s, *size_s), (_, *size_t) = shapes_s.final_map, shapes_t.final_map
        head_weight, head_bias = constant(head_of(teacher, "teacher"))
        head_bias = head_weight.new_zeros(len(head_weight)) if head_bias is None else head_bias
        size = torch.tensor([min(pair) for pair in zip(size_s, size_t, strict=True)], device="cpu")
        self._make(channels_s, head_weight.clone(), head_bias.clone(), size)

    def _make(self, channels_s: int, head_weight: Tensor, head_bias: Tensor, size: Tensor) -> None:
        self.transfer = projector(channels_s, head_weight.shape[1], self.factor)
        self.register_buffer("head_weight", head_weight)
        self.register_buffer("head_bias", head_bias)
        self.register_buffer("size", size)
        self._size = tuple(size.tolist())  # on the host, where the hot path reads it

    def restore(self, state: dict[str, Tensor]) -> "SimKD":
        """Make the adapters from a saved `state_dict()` alone, without the teacher, to predict with."""
        self.factor = state["head_weight"].shape[1] // state["transfer.0.weight"].shape[0]
        self._make(state["transfer.0.weight"].shape[1], state["head_weight"], state["head_bias"], state["size"])
        self.to(state["head_weight"].device, state["head_weight"].dtype).load_state_dict(state)
        return self

    def project(self, final_map: Tensor) -> Tensor:
        return self.transfer(pool_to(final_map, self._size))

    def classify(self, projected: Tensor) -> Tensor:
        """(B, K) logits of the teacher's classifier on a projected map."""
        return F.linear(projected.mean((2, 3)), self.head_weight, self.head_bias)

    def forward(self, student, teacher, labels, epoch) -> dict[str, Tensor]:
        target = pool_to(teacher.final_map.detach(), self._size)
        return {"feature": self.feature_weight * feature_mse(self.project(student.final_map), target)}

    def predict(self, features) -> Tensor:
        """Logits by the reused classifier; batch norm in eval mode whatever the mode, so that looking never trains."""
        training = self.training
        self.eval()
        logits = self.classify(self.project(features.final_map))
        self.train(training)
        return logits

    def extra_parameters(self) -> int:
        """Projector and reused classifier: what the student needs at prediction beside itself (only the projector is trained)."""
        return super().extra_parameters() + self.head_weight.numel() + self.head_bias.numel()
