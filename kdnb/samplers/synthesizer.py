"""Images from a meta-trained generator: a fast copy is trained for a few steps a batch, the generator learns from its gradients."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.generators.latent import draw_latents, refresh_batch_norm
from kdnb.generators.reusable import export_parts, parameter_groups
from kdnb.losses.datafree import BatchNormMomentum, adversarial_loss, batch_norm_loss, one_hot_loss
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.rehearsal import cut, rehearsing

META_UPDATES = ("fomaml", "reptile")
BETAS = (0.5, 0.999)  # both optimisers, as released
REPTILE_FACTOR = 67.0  # multiplies theta - theta_fast before Adam, which all but forgets it; as released


class Synthesis(NamedTuple):
    """One batch of synthetic images.

    Attributes:
        images: (B, C, H, W) in (-1, 1), of the step with the lowest loss.
        labels: (B,) int64, the classes asked for.
        losses: name -> (num_steps,), before weighting.
    """

    images: Tensor
    labels: Tensor
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class MetaConfig:
    """Constants of `Synthesizer`; the defaults are Fast-Datafree's on CIFAR-10 with ten steps.

    Attributes:
        batch_size: B. num_steps: inner steps a call (50 for large images).
        lr_generator, lr_latent: Adam's, in the inner steps.
        bn_weight, oh_weight, adv_weight: of the equation (released: by teacher; adv 1.0 for VGG-11, 1.1 and oh 0.4 for WRN-40-2).
        warmup: calls are counted from 1; the adversarial term (and the student's forward pass) starts at this call.
        bn_momentum: share of earlier batches in the statistics.
        meta_update: "fomaml" or "reptile".
    """

    batch_size: int = 256
    num_steps: int = 10
    lr_generator: float = 2e-3
    lr_latent: float = 1e-2
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    adv_weight: float = 1.33
    warmup: int = 20
    bn_momentum: float = 0.9
    meta_update: str = "fomaml"

    def __post_init__(self):
        check_name("meta update", self.meta_update, META_UPDATES)
        if min(self.batch_size, self.num_steps) < 1:
            raise InputError(f"need at least one image and one step, got {self.batch_size} and {self.num_steps}")


class Synthesizer:
    """One call = one batch of images and one update of the generator.

        L = w_bn sum_l r_l + w_oh CE(T(x), y) + w_adv L_adv,   x = augment(G(z))

    `num_steps` Adam steps on L move a copy of the generator and z; the images of the cheapest step are returned. Then the generator
    itself takes one Adam step of rate `lr_generator * num_steps`: along the summed gradients of all steps (FOMAML), or along
    67 (theta - theta_fast) (Reptile). Batch-norm statistics are mixed with a momentum buffer that is updated once a call.

    Args:
        generator: `ReusableGenerator` (any mode) or another latent generator with `latent_dim` (mode `anew`); trained in place.
        teacher, student: classifiers of images in [-1, 1]; frozen and in evaluation mode during a call, restored afterwards.
        num_classes: K, for drawing labels.
        config: constants.
        mode: one of `generators.reusable.MODES`; says which parts learn and how fast.
        augment: images (-1, 1) -> what the classifiers see, e.g. random crop and flip; default: nothing.
    Raises:
        InputError: unknown mode, a reuse mode for a generator without branches, no class.

    After a call the generator's batch-norm buffers are those of the fast copy; the released code leaves them untouched, see
    `refresh_batch_norm`. `state_dict` holds all that a call changes: saving it with the random state lets a run go on bit for bit.

    Source: Fang et al., AAAI 2022 (Fast-Datafree); AEAHL-RG released code (2024).
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: nn.Module,
        student: nn.Module,
        num_classes: int,
        config: MetaConfig = MetaConfig(),
        mode: str = "anew",
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        if num_classes < 1:
            raise InputError(f"need at least one class, got {num_classes}")
        self.generator, self.teacher, self.student = generator, teacher, student
        self.num_classes, self.config, self.mode = num_classes, config, mode
        self.weights = {"bn": config.bn_weight, "oh": config.oh_weight, "adv": config.adv_weight}
        self.augment = augment or nn.Identity()
        self.momentum = BatchNormMomentum(config.bn_momentum)
        self.calls = 0
        rate = config.lr_generator * config.num_steps
        self.meta_optimizer = torch.optim.Adam(parameter_groups(generator, mode, rate), betas=BETAS)

    def __call__(
        self,
        labels: Tensor | None = None,
        z: Tensor | None = None,
        rng: torch.Generator | None = None,
        on_step: Callable[[Tensor, Tensor], object] | None = None,
    ) -> Synthesis:
        """Make a batch.

        Args:
            labels: (B,) int64 wanted classes, default uniform; sorted before use, as released.
            z: (B, nz) start latents, default standard normal.
            rng: source of both, on the generator's device.
            on_step: called at every inner step with the augmented images and the teacher's logits on them, both detached; the hard
                loss trains its perturbation network here (`PerturbationTrainer.step`).
        """
        self.calls += 1
        labels, z = self._draw(labels, z, rng)
        fast = copy.deepcopy(self.generator).train()
        groups = parameter_groups(fast, self.mode, self.config.lr_generator)
        optimizer = torch.optim.Adam([*groups, {"params": [z], "lr": self.config.lr_latent}], betas=BETAS)
        learned = [parameter for group in groups for parameter in group["params"]]
        gradients = [torch.zeros_like(parameter) for parameter in learned]
        history: list[dict[str, Tensor]] = []
        best: tuple[Tensor, Tensor] | None = None
        with frozen(self.teacher, self.student), BatchNormProbe(self.teacher) as probe:
            for _ in cut(range(self.config.num_steps), "generator step"):
                images = fast(z)
                x = self.augment(images)
                logits_t = self.teacher(x)
                statistics = probe.means, probe.variances
                losses = self._losses(
                    x, logits_t, labels, self.momentum.mix(*statistics), (probe.running_means, probe.running_variances)
                )
                best = _better(best, losses["total"].detach(), images.detach())
                history.append({name: value.detach() for name, value in losses.items()})
                optimizer.zero_grad()
                losses["total"].backward()
                if self.config.meta_update == "fomaml":
                    torch._foreach_add_(gradients, [parameter.grad for parameter in learned])
                optimizer.step()
                if on_step is not None:
                    on_step(x.detach(), logits_t.detach())
            self.momentum.update(*statistics)
        if self.config.meta_update == "reptile":
            gradients = [REPTILE_FACTOR * (slow - quick) for slow, quick in zip(self._learned(), learned, strict=True)]
        self._update(gradients, fast)
        assert best is not None
        return Synthesis(
            best[1], labels, {name: torch.stack([losses[name] for losses in history]) for name in history[0]}
        )

    def _draw(self, labels: Tensor | None, z: Tensor | None, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        like = next(self.generator.parameters())
        count = self.config.batch_size if labels is None else len(labels)
        if z is None:
            z = draw_latents(count, self.generator.latent_dim, rng, like.device).to(like.dtype)
        if labels is None:
            labels = torch.randint(self.num_classes, (len(z),), generator=rng, device=like.device)
        if labels.shape != z.shape[:1] or z.shape[1:] != (self.generator.latent_dim,):
            raise InputError(
                f"labels {tuple(labels.shape)} and latents {tuple(z.shape)} must be (B,) and (B, {self.generator.latent_dim})"
            )
        return labels.sort().values, z.detach().clone().requires_grad_()

    def _losses(
        self, x: Tensor, logits_t: Tensor, labels: Tensor, statistics: tuple, remembered: tuple
    ) -> dict[str, Tensor]:
        losses = {"bn": batch_norm_loss(*statistics, *remembered), "oh": one_hot_loss(logits_t, labels)}
        if self.weights["adv"] and (self.calls >= self.config.warmup or rehearsing()):
            losses["adv"] = adversarial_loss(self.student(x), logits_t)
        losses["total"] = sum(self.weights[name] * value for name, value in losses.items())
        return losses

    def _learned(self) -> list[Tensor]:
        return [parameter for group in self.meta_optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _update(self, gradients: list[Tensor], fast: nn.Module) -> None:
        for parameter, gradient in zip(self._learned(), gradients, strict=True):
            parameter.grad = gradient.detach()
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()
        for buffer, newer in zip(self.generator.buffers(), fast.buffers(), strict=True):
            buffer.copy_(newer)

    def export(
        self, branch: str = "gan1", rng: torch.Generator | None = None, count: int = 512
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """State dicts (branch, decoder) for a later task, with batch-norm buffers that fit the present weights.

        Args:
            branch: "gan1" as released, or "gan2".
            rng: draws the latents that refresh the buffers, on the generator's device. count: how many of them.
        """
        like = next(self.generator.parameters())
        refresh_batch_norm(
            self.generator, draw_latents(count, self.generator.latent_dim, rng, like.device).to(like.dtype)
        )
        return export_parts(self.generator, branch)

    def state_dict(self) -> dict:
        """Generator, meta optimiser, momentum buffer, number of calls."""
        return {
            "generator": self.generator.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "momentum": self.momentum.state_dict(),
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        device = next(self.generator.parameters()).device
        self.momentum.load_state_dict(
            {name: [value.to(device) for value in values] for name, values in state["momentum"].items()}
        )
        self.calls = state["calls"]


def _better(best: tuple[Tensor, Tensor] | None, loss: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The cheaper of two (loss, images) pairs, the earlier on a tie, chosen on the device."""
    if best is None:
        return loss, images
    lower = loss < best[0]
    return torch.where(lower, loss, best[0]), torch.where(lower, images, best[1])
