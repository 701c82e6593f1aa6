"""CMI: a generator that starts anew for every batch, and a memory that makes each image unlike all that were made before.

    L = w_bn sum_l r_l + w_oh CE(T(x), y) + w_adv L_adv + w_cr L_cr,   x = G(z)

L_cr is `contrastive_inversion_loss` between two views of each image and the remembered views of earlier ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data.augmentation import augment
from kdnb.data.crops import random_boxes, replay_crops
from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator, draw_latents, reset_weights
from kdnb.generators.reusable import Reuse, parameter_groups
from kdnb.losses.contrastive import ProjectionHead, contrastive_inversion_loss, instance_features
from kdnb.losses.datafree import adversarial_loss, batch_norm_loss, one_hot_loss
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.rehearsal import cut
from kdnb.samplers.inversion import (
    Cheapest,
    Problem,
    draw_classes,
    require_batch_norm,
    require_sizes,
    stack_losses,
    weigh,
)
from kdnb.samplers.synthesizer import Synthesis

LOCAL_SCALE = (0.25, 1.0)  # area of the local view's crop, as released


class EmbeddingBank:
    """The newest `capacity` rows of width D, a ring; all of them can be had when it is full.

    Args:
        capacity: rows that stay. width: D.
        device, dtype: of the rows.
    Raises:
        InputError: capacity or width below 1, rows of another width.

    The released bank, when it has just become exactly full, hands out no row at all, so that one batch is made with a loss of NaN.
    """

    def __init__(
        self,
        capacity: int,
        width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        require_sizes(capacity=capacity, width=width)
        self.capacity, self.pushed = capacity, 0
        self.rows = torch.zeros(capacity, width, device=device, dtype=dtype)

    def __len__(self) -> int:
        return min(self.pushed, self.capacity)

    @property
    def pointer(self) -> int:
        """Where the next row goes."""
        return self.pushed % self.capacity

    def push(self, rows: Tensor) -> None:
        """Store (B, D), over the oldest rows once the ring is full; of more than `capacity` rows the last stay."""
        if rows.dim() != 2 or rows.shape[1] != self.rows.shape[1]:
            raise InputError(f"the bank holds rows of width {self.rows.shape[1]}, got shape {tuple(rows.shape)}")
        skipped = max(0, len(rows) - self.capacity)
        start = self.pushed + skipped
        places = (torch.arange(len(rows) - skipped, device=self.rows.device) + start) % self.capacity
        self.rows[places] = rows[skipped:].detach().to(self.rows)
        self.pushed += len(rows)

    def sample(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """`count` stored rows drawn without replacement, or all of them if there are fewer; `rng` on the bank's device."""
        if len(self) <= count:
            return self.rows[: len(self)]
        return self.rows[torch.randperm(len(self), generator=rng, device=self.rows.device)[:count]]

    def state_dict(self) -> dict:
        return {"rows": self.rows[: len(self)].clone(), "pushed": self.pushed}

    def load_state_dict(self, state: dict) -> None:
        stored = min(state["pushed"], self.capacity)
        if tuple(state["rows"].shape) != (stored, self.rows.shape[1]):
            raise InputError(
                f"a state of {tuple(state['rows'].shape)} rows does not fit a bank {tuple(self.rows.shape)}"
            )
        self.rows[:stored] = state["rows"].to(self.rows)
        self.pushed = state["pushed"]


@dataclass(frozen=True)
class MemoryConfig:
    """Constants; the defaults are CMI's on CIFAR, from scratch.

    Attributes:
        latent_dim, width: of the generator.
        batch_size: B. num_steps: Adam steps a batch. lr: of the generator, z and, in an optimiser of its own, the head.
        bn_weight, oh_weight, adv_weight, cr_weight: of the module's equation; oh 0.5 when 50 000 images were inverted before.
        temperature: tau of the contrast. head_width: of the projections; 256 as run, the released class has 128.
        bank_size, negatives: rows remembered, and how many are drawn a step.
        crop_padding, flip: of both views; the local view is a random crop of a quarter to the whole area besides.
    """

    latent_dim: int = 256
    width: int = 64
    batch_size: int = 256
    num_steps: int = 200
    lr: float = 1e-3
    bn_weight: float = 1.0
    oh_weight: float = 1.0
    adv_weight: float = 0.5
    cr_weight: float = 0.8
    temperature: float = 0.1
    head_width: int = 256
    bank_size: int = 40_960
    negatives: int = 4096
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        require_sizes(
            batch_size=self.batch_size,
            num_steps=self.num_steps,
            head_width=self.head_width,
            bank_size=self.bank_size,
            negatives=self.negatives,
        )


class MemorySynthesizer:
    """One call = the generator reset, `num_steps` steps of it, z and the projection head, and the cheapest step's batch remembered.

    Args:
        generator: z -> images, with `latent_dim`; trained in place. teacher, student: frozen, in evaluation mode; images in [-1, 1].
        num_classes: K. config: constants.
        views: images -> (global view, local view) in place of random crops.
        head: the projection head; default a new `ProjectionHead`, drawn from torch's global state.
        reuse: for a `ReusableGenerator`: what each batch starts from in place of random weights, and which parts learn and how fast.
    Raises:
        InputError: a teacher without batch norm, sizes below 1.

    Source: Fang et al., IJCAI 2021 (CMI).
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: nn.Module,
        student: nn.Module,
        num_classes: int,
        config: MemoryConfig,
        views: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        head: nn.Module | None = None,
        reuse: Reuse | None = None,
    ):
        require_batch_norm(teacher, "CMI")
        self.generator, self.teacher, self.student = generator, teacher, student
        self.num_classes, self.config, self.views, self.reuse = num_classes, config, views, reuse
        like = next(generator.parameters())
        with BatchNormProbe(teacher) as probe:
            width = sum(layer.num_features for layer in probe.layers)
        self.head = head or ProjectionHead(width, config.head_width).to(device=like.device, dtype=like.dtype)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), config.lr)
        self.bank = EmbeddingBank(config.bank_size, 2 * width, like.device, like.dtype)
        self.weights = {
            name: weight for name in ("bn", "oh", "adv", "cr") if (weight := getattr(config, f"{name}_weight"))
        }

    def __call__(self, rng: torch.Generator | None = None) -> Synthesis:
        like = next(self.generator.parameters())
        reset_weights(self.generator, rng)
        if self.reuse is not None:
            self.reuse.load(self.generator)
        labels = draw_classes(self.config.batch_size, self.num_classes, rng, like.device)
        z = draw_latents(len(labels), self.generator.latent_dim, rng, like.device).to(like.dtype)
        return self.invert(labels, z, rng)

    def invert(self, labels: Tensor, z: Tensor, rng: torch.Generator | None = None) -> Synthesis:
        """The call without its reset and draws: (B,) wanted classes and (B, nz) start latents."""
        config, views = self.config, self.views or partial(self._crops, rng=rng)
        z = z.detach().clone().requires_grad_()
        groups = parameter_groups(self.generator, self.reuse.mode if self.reuse else "anew", config.lr)
        optimizer = torch.optim.Adam([*groups, {"params": [z]}], config.lr, betas=(0.5, 0.999))
        self.generator.train()
        cheapest, history = Cheapest(), []
        with frozen(self.teacher, self.student), BatchNormProbe(self.teacher, keep_inputs=True) as probe:
            for _ in cut(range(config.num_steps), "generator step"):
                images = self.generator(z)
                losses, features = self._losses(*views(images), labels, probe, rng)
                cheapest.offer(losses["total"], images, features)
                history.append({name: value.detach() for name, value in losses.items()})
                optimizer.zero_grad()
                self.head_optimizer.zero_grad()
                losses["total"].backward()
                optimizer.step()
                self.head_optimizer.step()
        images, features = cheapest.tensors
        self.bank.push(features)
        return Synthesis(images, labels, stack_losses(history))

    def _losses(
        self, whole: Tensor, part: Tensor, labels: Tensor, probe: BatchNormProbe, rng: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses, and the features to remember: (B, 2 D), those of the local view first."""
        logits_t = self.teacher(whole)
        terms = {
            "bn": batch_norm_loss(probe.means, probe.variances, probe.running_means, probe.running_variances),
            "oh": one_hot_loss(logits_t, labels),
        }
        features_whole = instance_features(probe.inputs)
        if "adv" in self.weights:
            terms["adv"] = adversarial_loss(self.student(whole), logits_t)
        self.teacher(part)
        features_part = instance_features(probe.inputs)
        if "cr" in self.weights:
            cached_local, cached_global = None, None
            if len(self.bank):
                cached_local, cached_global = (
                    self.head(half) for half in self.bank.sample(self.config.negatives, rng).chunk(2, dim=1)
                )
            terms["cr"] = contrastive_inversion_loss(
                self.head(features_part),
                self.head(features_whole),
                cached_local,
                cached_global,
                self.config.temperature,
            )
        losses = {name: terms[name] for name in self.weights}
        return weigh(losses, self.weights), torch.cat([features_part, features_whole], dim=1)

    def _crops(self, images: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Global view: crop after padding, flip; local view: a resized crop, flip."""
        count, (height, width) = len(images), images.shape[2:]
        whole = augment(images, self.config.crop_padding, self.config.flip, rng)
        seed = int(torch.randint(2**31, (), generator=rng, device=images.device))  # boxes are drawn on the CPU
        boxes = random_boxes(count, height, width, LOCAL_SCALE, generator=torch.Generator().manual_seed(seed))
        flips = torch.rand(count, 1, generator=rng, device=images.device) < 0.5 * self.config.flip
        return whole, replay_crops(images, boxes[:, None].to(images.device), flips, height)[:, 0]

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "head": self.head.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict(),
            "bank": self.bank.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("generator", "head", "head_optimizer", "bank"):
            getattr(self, name).load_state_dict(state[name])


def build(problem: Problem, config: MemoryConfig, reuse: Reuse | None = None) -> MemorySynthesizer:
    """With a new generator and head, drawn from torch's global state; with `reuse` a generator of two branches."""
    channels, size = problem.image_shape[:2]
    make = LatentGenerator if reuse is None else reuse.generator
    generator = make(size, channels, config.latent_dim, config.width).to(problem.device)
    return MemorySynthesizer(generator, problem.teacher, problem.student, problem.num_classes, config, reuse=reuse)
