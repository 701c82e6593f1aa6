"""NAYER: the generator is asked by class name; new random layers behind the names make each batch different.

L = w_bn sum_l r_l + w_oh CE(T(x), y) + w_adv L_adv,   x = augment(G(y))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data.augmentation import augment
from kdnb.errors import InputError
from kdnb.generators.noisy import NoisyLayerGenerator, random_embeddings
from kdnb.losses.datafree import BatchNormMomentum, adversarial_loss, batch_norm_loss, one_hot_loss
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.rehearsal import cut, rehearsing
from kdnb.samplers.inversion import Cheapest, Problem, require_batch_norm, require_sizes, stack_losses, weigh
from kdnb.samplers.synthesizer import Synthesis


@dataclass(frozen=True)
class NoisyConfig:
    """Constants; the defaults are NAYER's on CIFAR-10 (40 steps on CIFAR-100).

    Attributes:
        embedding_width: of the random vectors that stand for class names where no text encoder's are given; CLIP's are 512 wide.
        noisy_width, width: of the generator.
        batch_size: B, whole cycles of the classes and a random rest. num_steps: Adam steps a loop. lr: of Adam, fresh in every loop.
        bn_weight, oh_weight, adv_weight, bn_momentum: of the losses.
        warmup: calls without the adversarial term. warmup_loops, loops: batches a call during and after them.
        life: calls after which the whole generator starts anew.
        crop_padding, flip: what the classifiers see.
    """

    embedding_width: int = 512
    noisy_width: int = 1000
    width: int = 64
    batch_size: int = 400
    num_steps: int = 30
    lr: float = 4e-3
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    adv_weight: float = 1.33
    bn_momentum: float = 0.9
    warmup: int = 20
    warmup_loops: int = 10
    loops: int = 2
    life: int = 10
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        require_sizes(
            batch_size=self.batch_size,
            num_steps=self.num_steps,
            warmup_loops=self.warmup_loops,
            loops=self.loops,
            life=self.life,
        )


class NoisyLayerSynthesizer:
    """One call = `num_loops` batches; before each the noisy layers are redrawn, its cheapest step is kept.

    Args:
        generator: labels -> images; trained in place. teacher, student: frozen, in evaluation mode in every loop; images in [-1, 1].
        config: constants. augment: images -> what the classifiers see, in place of crop and flip.
    Raises:
        InputError: a teacher without batch norm, too few noisy layers for the batch (one a cycle of classes).

    The released code leaves the student in training mode after the first loop of a call, so that later loops compare with batch
    statistics and move the student's buffers.

    Source: Tran et al., CVPR 2024 (NAYER).
    """

    def __init__(
        self,
        generator: NoisyLayerGenerator,
        teacher: nn.Module,
        student: nn.Module,
        config: NoisyConfig,
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        require_batch_norm(teacher, "NAYER")
        self.num_classes = generator.embeddings.shape[0]
        needed = math.ceil(config.batch_size / self.num_classes)
        if len(generator.le1) < needed:
            raise InputError(
                f"a batch of {config.batch_size} images of {self.num_classes} classes needs {needed} noisy layers, "
                f"the generator has {len(generator.le1)}"
            )
        self.generator, self.teacher, self.student, self.config = generator, teacher, student, config
        self.augment = augment
        self.weights = {"bn": config.bn_weight, "oh": config.oh_weight, "adv": config.adv_weight}
        self.momentum = BatchNormMomentum(config.bn_momentum)
        self.calls = 0

    @property
    def renews(self) -> bool:
        """Whether the next call starts with a new generator."""
        return self.calls % self.config.life == 0 or (self.calls - self.config.warmup) % self.config.life == 0

    @property
    def num_loops(self) -> int:
        """Batches that the next call makes."""
        return self.config.warmup_loops if self.calls < self.config.warmup else self.config.loops

    def __call__(self, rng: torch.Generator | None = None) -> Synthesis:
        if self.renews:
            self.generator.renew(rng)
        num_loops, made = self.num_loops, []
        self.calls += 1
        for _ in cut(range(num_loops), "batch"):
            self.generator.redraw(rng)
            made.append(self.loop(self.draw_labels(rng), rng))
        return Synthesis(
            torch.cat([one.images for one in made]),
            torch.cat([one.labels for one in made]),
            {name: torch.cat([one.losses[name] for one in made]) for name in made[0].losses},
        )

    def draw_labels(self, rng: torch.Generator | None = None) -> Tensor:
        """(B,): all classes in order, as often as they fit, and random ones for the rest."""
        device, count = self.generator.embeddings.device, self.config.batch_size
        cycles = torch.arange(self.num_classes, device=device).repeat(count // self.num_classes)
        rest = torch.randint(self.num_classes, (count - len(cycles),), generator=rng, device=device)
        return torch.cat([cycles, rest])

    def loop(self, labels: Tensor, rng: torch.Generator | None = None) -> Synthesis:
        """`num_steps` steps for one batch with the noisy layers as they are; the batch-norm memory is updated once, at the end."""
        see = self.augment or partial(augment, padding=self.config.crop_padding, flip=self.config.flip, generator=rng)
        optimizer = torch.optim.Adam(self.generator.parameters(), self.config.lr, betas=(0.5, 0.999))
        self.generator.train()
        cheapest, history = Cheapest(), []
        with frozen(self.teacher, self.student), BatchNormProbe(self.teacher) as probe:
            for _ in cut(range(self.config.num_steps), "generator step"):
                images = self.generator(labels)
                x = see(images)
                logits_t = self.teacher(x)
                statistics = probe.means, probe.variances
                remembered = probe.running_means, probe.running_variances
                losses = {
                    "bn": batch_norm_loss(*self.momentum.mix(*statistics), *remembered),
                    "oh": one_hot_loss(logits_t, labels),
                }
                if self.weights["adv"] and (self.calls > self.config.warmup or rehearsing()):
                    losses["adv"] = adversarial_loss(self.student(x), logits_t)
                losses = weigh(losses, self.weights)
                cheapest.offer(losses["total"], images)
                history.append({name: value.detach() for name, value in losses.items()})
                optimizer.zero_grad()
                losses["total"].backward()
                optimizer.step()
            self.momentum.update(*statistics)
        return Synthesis(cheapest.tensors[0], labels, stack_losses(history))

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "momentum": self.momentum.state_dict(),
            "calls": self.calls,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        device = self.generator.embeddings.device
        self.momentum.load_state_dict(
            {name: [value.to(device) for value in values] for name, values in state["momentum"].items()}
        )
        self.calls = state["calls"]


def build(problem: Problem, config: NoisyConfig, embeddings: Tensor | None = None) -> NoisyLayerSynthesizer:
    """With a new generator, drawn from torch's global state.

    Args:
        embeddings: (K, D) of the class names; default `random_embeddings`, which know nothing of names.
    Raises:
        InputError: another number of rows than classes.
    """
    if embeddings is None:
        embeddings = random_embeddings(problem.num_classes, config.embedding_width)
    if embeddings.dim() != 2 or len(embeddings) != problem.num_classes:
        raise InputError(
            f"class embeddings must be ({problem.num_classes}, D), one row a class, got {tuple(embeddings.shape)}"
        )
    channels, size = problem.image_shape[:2]
    num_layers = math.ceil(config.batch_size / problem.num_classes)
    generator = NoisyLayerGenerator(embeddings, num_layers, config.noisy_width, size, channels, config.width)
    return NoisyLayerSynthesizer(generator.to(problem.device), problem.teacher, problem.student, config)
