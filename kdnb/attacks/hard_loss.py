"""The adversarial hard loss of AEAHL-RG: a trained perturbation makes images on which the teacher's label can contradict the image.

The premise: a teacher hardly ever errs on synthetic images, so hard labels carry no signal there; a few attacked images with the label
kept restore it. The plain names do what the description says, on images in [-1, 1] with normalisation inside the networks; the
arithmetic of the released code (unbounded perturbation, two normalisations, aliased swap) lives under `..._released`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.datafree import one_hot_loss
from kdnb.models.frozen import frozen

EPSILON = 10 / 255  # of the full pixel range, as in GAP


def perturb(network: nn.Module, images: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Add a bounded perturbation in pixel space.

        x_adv = clip(x + delta, -1, 1),   delta = 2 epsilon tanh(.)

    Args:
        network: maps images to (-1, 1), e.g. `PerturbationGenerator`.
        images: (B, C, H, W) in [-1, 1].
        epsilon: bound on |delta| as a share of the full pixel range (2 here, 255 in 8 bits); 10/255.
    Returns:
        (B, C, H, W) in [-1, 1], at most 2 epsilon from `images`.

    Source: Poursaeed et al., CVPR 2018.
    """
    return (images + 2.0 * epsilon * network(images)).clamp(-1.0, 1.0)


def perturb_released(
    network: nn.Module, normalized: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """The perturbation as released with AEAHL-RG: on normalised images, unbounded, with a constant shift.

        x_adv = clip(x + std * tanh(.) + mean),   clipped per channel to the batch's own range

    Args:
        network: as in `perturb`. normalized: (B, C, H, W), (pixel - mean) / std with pixels in [0, 1].
        mean, std: C numbers each, the normalisation that is here undone on a *difference* of images.
    """
    mean, std = _per_channel(mean, normalized), _per_channel(std, normalized)
    low, high = normalized.amin(dim=(0, 2, 3), keepdim=True), normalized.amax(dim=(0, 2, 3), keepdim=True)
    return (normalized + network(normalized) * std + mean).clamp(low, high)


def bound_released(
    delta: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, magnitude: float = 10.0
) -> Tensor:
    """GAP's own bound, in the repository but unused: normalise tanh's output like an image, then scale each channel to the bound.

        d = ((t + 1) / 2 - mean) / std,   d <- d min(1, magnitude / (255 std) / max |d|)     a sample and channel

    Args:
        delta: (B, C, H, W) in (-1, 1), the network's output t. mean, std: C numbers each. magnitude: in 8-bit grey levels, 10.

    Source: Poursaeed et al., CVPR 2018, released code. The shift by the mean makes it brighten or darken rather than perturb.
    """
    mean, std = _per_channel(mean, delta), _per_channel(std, delta)
    normalized = (0.5 * (delta + 1.0) - mean) / std
    largest = normalized.detach().abs().amax(dim=(2, 3), keepdim=True)
    return normalized * (magnitude / (255.0 * std) / largest).clamp_max(1.0)


def log_ce_loss(logits: Tensor, labels: Tensor, guard: float = 1e-6) -> Tensor:
    """Logarithm of the cross-entropy, ln(CE + guard): steep where the attack is about to succeed.

    Args:
        logits: (B, K) float. labels: (B,) int64, the classes the attack aims at.
        guard: keeps value and gradient (1 / CE) finite at CE = 0; 0 gives the released form.
    Returns:
        Scalar in [ln guard, inf).

    Source: Poursaeed et al., CVPR 2018, targeted loss.
    """
    return torch.log(one_hot_loss(logits, labels) + guard)


class PerturbationTrainer:
    """Teaches a perturbation network to drive the teacher to its least likely class.

        min over the network:   ln CE(T(perturb(x)), argmin T(x))

    Args:
        network: `PerturbationGenerator` or alike, trained in place, in training mode.
        teacher: frozen and in evaluation mode during a step.
        epsilon: see `perturb`. lr: of Adam(0.5, 0.999), 2e-4.
    Raises:
        InputError: epsilon outside (0, 1].

    `state_dict` holds network and optimiser. Source: AEAHL-RG released code (2024), with the bounded perturbation.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, epsilon: float = EPSILON, lr: float = 2e-4):
        if not 0.0 < epsilon <= 1.0:
            raise InputError(f"epsilon is a share of the pixel range in (0, 1], got {epsilon}")
        self.network, self.teacher, self.epsilon = network, teacher, epsilon
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999))

    def attack(self, images: Tensor) -> Tensor:
        """What a training step shows the teacher; a subclass or a study may replace it."""
        return perturb(self.network, images, self.epsilon)

    def step(self, images: Tensor, logits_t: Tensor | None = None) -> Tensor:
        """One update on a batch.

        Args:
            images: (B, C, H, W), detached here. logits_t: (B, K), the teacher's logits on them if they are known already.
        Returns:
            The loss before the update, detached scalar.
        """
        images = images.detach()
        self.network.train()
        with frozen(self.teacher):
            if logits_t is None:
                with torch.no_grad():
                    logits_t = self.teacher(images)
            loss = self._loss(self.teacher(self.attack(images)), logits_t.detach().argmin(dim=1))
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return log_ce_loss(logits, labels)

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class PerturbationTrainerReleased(PerturbationTrainer):
    """The released training step: `perturb_released` on normalised images, `log CE` without a guard.

    Args:
        network, teacher, lr: as in `PerturbationTrainer`; here the teacher takes normalised images.
        mean, std: C numbers each.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        lr: float = 2e-4,
    ):
        super().__init__(network, teacher, lr=lr)
        self.mean, self.std = mean, std

    def attack(self, images: Tensor) -> Tensor:
        return perturb_released(self.network, images, self.mean, self.std)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return log_ce_loss(logits, labels, guard=0.0)


class HardBatch(NamedTuple):
    """What the student learns from.

    Attributes:
        images: (B, C, H, W).
        logits_t: (B, K), the teacher's on these images.
        labels: (B,) int64, the teacher's votes on the clean images.
        swapped: (B,) bool: the teacher is as sure of the same class after the perturbation, and the two images changed places.
        attacked: (B,) bool: drawn at random to be perturbed.
    """

    images: Tensor
    logits_t: Tensor
    labels: Tensor
    swapped: Tensor
    attacked: Tensor


@torch.no_grad()
def hard_batch(
    images: Tensor,
    teacher: nn.Module,
    network: nn.Module | None = None,
    epsilon: float = EPSILON,
    probability: float = 0.001,
    augment: Callable[[Tensor], Tensor] | None = None,
    rng: torch.Generator | None = None,
) -> HardBatch:
    """Make the batch of the hard loss; train on it with `hard_mix_loss(student(b.images), b.logits_t, labels=b.labels)`.

    Args:
        images: (B, C, H, W) in [-1, 1].
        teacher: frozen, evaluation mode. network: the perturbation network, used in evaluation mode; None is the `no_aea` ablation:
            clean images, labels from the teacher's vote.
        epsilon: see `perturb`. probability: share of images attacked at random, p_a in [0, 1]; 0.001.
        augment: crop, flip or alike, applied to the attacked images (the clean ones came augmented).
        rng: draws the attacked images, on the images' device.
    Raises:
        InputError: probability outside [0, 1].

    Source: AEAHL-RG released code (2024), "identity swap, probabilistic attack", see `exchange`.
    """
    if not 0.0 <= probability <= 1.0:
        raise InputError(f"probability of an attack must be in [0, 1], got {probability}")
    with frozen(teacher):
        logits_t = teacher(images)
        if network is None:
            none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            return HardBatch(images, logits_t, logits_t.argmax(dim=1), none, none)
        with frozen(network):
            perturbed = perturb(network, images, epsilon)
        perturbed = augment(perturbed) if augment else perturbed
        drawn = torch.rand(len(images), generator=rng, device=images.device) < probability
        return exchange(images, perturbed, logits_t, teacher(perturbed), drawn)


def exchange(images: Tensor, perturbed: Tensor, logits_t: Tensor, logits_perturbed: Tensor, drawn: Tensor) -> HardBatch:
    """Swap where the teacher stays as sure of the same class, then attack where drawn; labels stay those of the clean images.

    Args:
        images, perturbed: (B, C, H, W). logits_t, logits_perturbed: (B, K), the teacher's on them. drawn: (B,) bool.
    Returns:
        `HardBatch`. A swap exchanges the two sets, so an image that is swapped *and* drawn gets its clean self back.
    """
    swapped = _keeps_identity(logits_t, logits_perturbed)
    return _replace(images, perturbed, logits_t, logits_perturbed, swapped, drawn, swapped ^ drawn)


def exchange_released(
    images: Tensor, perturbed: Tensor, logits_t: Tensor, logits_perturbed: Tensor, drawn: Tensor
) -> HardBatch:
    """As `exchange`, but with the released code's aliasing: the clean image is overwritten before it is put aside, so an image that
    is swapped and drawn stays perturbed."""
    swapped = _keeps_identity(logits_t, logits_perturbed)
    return _replace(images, perturbed, logits_t, logits_perturbed, swapped, drawn, swapped | drawn)


def _keeps_identity(logits_t: Tensor, logits_perturbed: Tensor) -> Tensor:
    confidence, label = logits_t.softmax(dim=1).max(dim=1)
    confidence_perturbed, label_perturbed = logits_perturbed.softmax(dim=1).max(dim=1)
    return (label == label_perturbed) & (confidence_perturbed >= confidence)


def _replace(images, perturbed, logits_t, logits_perturbed, swapped, drawn, taken) -> HardBatch:
    return HardBatch(
        torch.where(taken[:, None, None, None], perturbed, images),
        torch.where(taken[:, None], logits_perturbed, logits_t),
        logits_t.argmax(dim=1),
        swapped,
        drawn,
    )


def _per_channel(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if values.shape != (like.shape[1],):
        raise InputError(f"need one number a channel ({like.shape[1]}), got shape {tuple(values.shape)}")
    return values.view(1, -1, 1, 1)
