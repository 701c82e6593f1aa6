"""What all methods share: hyper-parameters, binding to a pair of networks, named terms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses import ce_loss, kd_loss
from kdnb.models.base import Features, feature_shapes
from kdnb.models.foreign import FeatureTap
from kdnb.models.taps import as_classifier


def warm_up(epoch: int, epochs: int) -> float:
    """min(epoch / epochs, 1) for a 1-based epoch; 1 where there is no warm-up.

    >>> warm_up(5, 20), warm_up(30, 20), warm_up(1, 0)
    (0.25, 1.0, 1.0)
    """
    return min(epoch / epochs, 1.0) if epochs else 1.0


def cosine_decay(epoch: int, start: int, epochs: int | None) -> float:
    """1 up to epoch `start`, then half a cosine down to 0 in the last of `epochs`; 1 throughout where their number is unknown.

    >>> [cosine_decay(epoch, 150, 240) for epoch in (1, 150, 195, 240)], cosine_decay(200, 150, None)
    ([1.0, 1.0, 0.5, 0.0], 1.0)
    """
    if epochs is None or epoch <= start:
        return 1.0
    return (1 + math.cos(math.pi * (epoch - start) / (epochs - start))) / 2


class Method(nn.Module):
    """A distillation method: hyper-parameters, adapters, and the loss as named, weighted terms.

    Life of a method: `method = build("simkd")`, `method.bind(student, teacher, ...)` makes the adapters, then every step
    `terms = method(features_s, features_t, labels, epoch)`; the training loop sums the terms and trains student and
    `method.parameters()` together. Teacher tensors are treated as constants.

    A subclass takes its hyper-parameters as keyword arguments with the published values as defaults, and stores each under its own name.

    Attributes:
        needs_teacher: False for methods of the student alone.
        needs_features: whether the loss reads maps of the teacher; else logits and pooled features are enough.
        views: 1, or 2 where the loss compares a weakly and a strongly augmented view; then features come as pairs (weak, strong).
        needs_preactivations: the networks, "student" or "teacher" or both, whose maps the loss reads before their last ReLU too.
        needs_indices: whether `forward` also wants `indices`, the (B,) int64 places of the images in the training split, and
            `generator`, the random numbers of the step.
        batch_statistics: whether the teacher's batch norms standardise by the batch at hand; its running statistics never move.
        epochs, num_images: of the training to come, as told to `bind`; None: unknown.
    """

    needs_teacher = True
    needs_features = False
    views = 1
    needs_preactivations: tuple[str, ...] = ()
    needs_indices = False
    batch_statistics = False
    epochs: int | None = None
    num_images: int | None = None
    _bound = False

    @property
    def ready(self) -> bool:
        """Whether the method can be called: it has no adapters to make, or was bound."""
        return self._bound or type(self).attach is Method.attach

    @property
    def needs_labels(self) -> bool:
        """Whether the loss uses the true labels with these weights."""
        return self.ce_weight > 0

    @property
    def hyper(self) -> dict:
        """All hyper-parameters by name: `build(name, **method.hyper)` makes the same method."""
        return {
            name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.hyper.items())

    def bind(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        image_shape: Sequence[int],
        num_classes: int,
        batch_size: int,
        epochs: int | None = None,
        num_images: int | None = None,
    ) -> Method:
        """Fit the method to a pair of networks: check them and make the adapters, whose initial weights come from the global random state.

        Args:
            student, teacher: classifiers; one without `forward(x, return_features=True)` is looked at as `kdnb.models.taps.wrap` does.
                The teacher may be None where none is needed.
            image_shape: (C, H, W) of the images.
            num_classes: K.
            batch_size: images per step (SemCKD's adapters depend on it).
            epochs: how many there will be (schedules that end with the training depend on it).
            num_images: in the training split (CRD keeps something for each).
        Returns:
            The method itself, on the device of the student.
        Raises:
            InputError: a teacher is missing, a network has another number of classes, or maps don't suit the method.
        """
        if teacher is None and self.needs_teacher:
            raise InputError(f"{type(self).__name__} distils from a teacher, and none was given")
        student = as_classifier(student, image_shape)
        teacher = None if teacher is None else as_classifier(teacher, image_shape)
        for role, model in (("student", student), ("teacher", teacher)):
            if role in self.needs_preactivations and not getattr(model, "has_preactivations", False):
                plain = type(getattr(model, "plain", model)).__name__
                raise InputError(
                    f"{type(self).__name__} compares maps before their ReLU, and the {role}, {plain}, has none"
                    + (" that are known; networks of kdnb.models.MODELS do" if isinstance(model, FeatureTap) else "")
                )
        self.epochs, self.num_images = epochs, num_images
        shapes_s = feature_shapes(student, image_shape)
        shapes_t = feature_shapes(teacher, image_shape) if teacher is not None else None
        for role, shapes in (("student", shapes_s), ("teacher", shapes_t)):
            if shapes is not None and shapes.logits[0] != num_classes:
                raise InputError(f"the {role} has {shapes.logits[0]} classes, the data {num_classes}")
        self.attach(student, teacher, shapes_s, shapes_t, batch_size)
        self._bound = True
        like = next(student.parameters())
        return self.to(like.device, like.dtype)

    def attach(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        shapes_s: Features,
        shapes_t: Features | None,
        batch_size: int,
    ) -> None:
        """Make adapters for features of these shapes (without B), and keep what the loss needs of the networks. Nothing, by default."""

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train) -> None:
        """What must be known of the training data before the first step. Nothing, by default.

        Called once a training, not again where it continues from a checkpoint: what is found must go into buffers whose shapes are those
        of `attach`, and depend on nothing but the arguments and the global random state.

        Args:
            student, teacher: as trained with. train: the training split, a `kdnb.data.splits.Split` or like one.
        Raises:
            InputError: the data don't suit the method.
        """

    def forward(
        self, student: Features, teacher: Features | None, labels: Tensor | None, epoch: int
    ) -> dict[str, Tensor]:
        """Named, weighted scalar terms of the loss, to be summed; `epoch` is 1-based."""
        raise NotImplementedError

    def predict(self, features: Features) -> Tensor:
        """(B, K) logits by which the trained student is judged."""
        return features.logits

    def extra_parameters(self) -> int:
        """Trained parameters beside the student's, those of the adapters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def ce_term(self, student: Features, labels: Tensor | None) -> dict[str, Tensor]:
        """Weighted cross-entropy, or nothing at weight 0, where labels aren't needed either."""
        return {"ce": self.ce_weight * ce_loss(student.logits, labels)} if self.ce_weight else {}

    def base_terms(self, student: Features, teacher: Features, labels: Tensor | None) -> dict[str, Tensor]:
        """Weighted cross-entropy and soft targets, each only if its weight isn't 0: what feature methods add their own term to."""
        terms = self.ce_term(student, labels)
        if self.kd_weight:
            terms["kd"] = self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)
        return terms


def weight(name: str, value: float) -> float:
    """A loss weight: finite and not negative."""
    if not 0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


def positive(name: str, value: float) -> float:
    """A temperature and the like: finite and above 0."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number > 0, got {value}")
    return float(value)


def count(name: str, value: int, least: int = 0) -> int:
    """A whole number of epochs, an index or a factor."""
    if value != int(value) or value < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value}")
    return int(value)


def head_of(model: nn.Module, role: str) -> nn.Linear:
    """The final linear classifier of a network."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"this method uses the {role}'s final linear layer, `{role}.head`, and "
            f"{type(getattr(model, 'plain', model)).__name__} has none"
        )
    return head


def head_of_map(model: nn.Module, role: str, shapes: Features | None) -> nn.Linear:
    """The final linear classifier of a network whose final map it can be applied to position by position; shapes None: unknown yet.

    Raises:
        InputError: no such layer, or a final map of which it does not classify the mean; with the reason and what to do.
    """
    head, name = head_of(model, role), type(getattr(model, "plain", model)).__name__
    if note := getattr(model, "note", ""):  # a foreign network without such a map
        raise InputError(
            f"this method applies the {role}'s head to regions of the map before pooling, which {name} does not allow: "
            f"{note}; take another network, scales [1], or a method of whole images such as kd or dkd"
        )
    if shapes is not None and (channels := shapes.final_map[0]) != head.in_features:
        raise InputError(
            f"this method applies the {role}'s head ({head.in_features} inputs) to regions of its final map, and that of {name} has "
            f"{channels} channels; name the map that is averaged into the head as `final`, or let kdnb.models.taps.wrap find it"
        )
    return head


def constant(head: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a teacher's classifier, cut off from the gradient."""
    return head.weight.detach(), None if head.bias is None else head.bias.detach()


def later_channels(shapes: Features, role: str) -> list[int]:
    """Channels of all tapped maps but the stem's."""
    if len(shapes.feats) < 2:
        raise InputError(f"this method needs at least 2 feature maps, the {role} has {len(shapes.feats)}")
    return [channels for channels, _, _ in shapes.feats[1:]]
