"""Distillation from a generator that learns to please the teacher: no data and no prior. AEAHL-RG and Fast-Datafree in the common loop.

for every round:  images = synthesizer(z)  (one update of the generator);  pool.push(images)
                  from round `warmup` on:  x ~ pool;  student <- SGD on KD(student(x), teacher(x)) [+ hard loss]
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdnb.attacks.hard_loss import EPSILON, PerturbationTrainer, hard_batch
from kdnb.choices import HARD_LOSSES
from kdnb.data.augmentation import augment
from kdnb.data.splits import OrderedSplit
from kdnb.errors import InputError, check_name
from kdnb.generators.latent import draw_latents, refresh_batch_norm
from kdnb.generators.perturbation import PerturbationGenerator
from kdnb.losses import kd_loss
from kdnb.losses.datafree import hard_mix_loss
from kdnb.randomness import generator_for, seed_everything
from kdnb.samplers.fast import CroppedSynthesizer
from kdnb.samplers.supply import PoolSupply
from kdnb.samplers.synthesizer import MetaConfig, Synthesizer
from kdnb.studies.datafree_loop import GeneratorResult, LoopConfig, distil_from_synthesizer


@dataclass(frozen=True)
class GeneratorConfig(LoopConfig):
    """Constants of the loop; the defaults are the published CIFAR setting with a ResNet-34 teacher (see `released_weights`).

    Attributes:
        epochs: rounds; each makes one batch of images.
        warmup: rounds before the student starts; the adversarial term starts one round earlier, as released.
        latent_dim, width: of the generator. generator: "reusable" (two branches, decoder) or "latent" (one branch alone).
        twin_branches: the released code's identical branches in mode `anew`, see `ReusableGenerator`.
        synthesis_batch, inner_steps, lr_generator, lr_latent, bn_weight, oh_weight, adv_weight, bn_momentum, meta_update: of `MetaConfig`.
        pool_size: images the pool holds; the oldest leave first. Released: all that are made.
        student_steps, batch_size: SGD steps a round and images a step.
        lr, final_lr, momentum, weight_decay: SGD with a cosine over the rounds that have a student phase.
        temperature: tau of the distillation loss.
        hard_loss: "none": KD alone; "no_aea": kd_weight KD + ce_weight CE to the teacher's own label; "aea": the same on batches with
            adversarial examples, made by a perturbation network that learns along with the generator (`attacks.hard_loss`).
        kd_weight, ce_weight: of the two hard losses.
        epsilon, probability: bound and share of the adversarial examples. perturbation_width, perturbation_blocks: size of the network.
        crop_padding, flip: augmentation of what teacher and student see, in synthesis and in distillation.
        eval_every: rounds between evaluations; the last is always evaluated.
    """

    epochs: int = 420
    warmup: int = 20
    lr: float = 0.2
    generator: str = "reusable"
    latent_dim: int = 256
    width: int = 64
    twin_branches: bool = False
    synthesis_batch: int = 256
    inner_steps: int = 10
    lr_generator: float = 2e-3
    lr_latent: float = 1e-2
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    adv_weight: float = 1.33
    bn_momentum: float = 0.9
    meta_update: str = "fomaml"
    pool_size: int = 107_520
    batch_size: int = 256
    temperature: float = 20.0
    hard_loss: str = "none"
    kd_weight: float = 0.9
    ce_weight: float = 0.1
    epsilon: float = EPSILON
    probability: float = 0.001
    perturbation_width: int = 64
    perturbation_blocks: int = 6
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_name("hard loss", self.hard_loss, HARD_LOSSES)
        check_name("generator", self.generator, ("reusable", "latent"))
        least = {"synthesis_batch": 2, "inner_steps": 1, "batch_size": 2, "pool_size": self.batch_size}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    @property
    def synthesis(self) -> MetaConfig:
        """What of it the synthesiser needs."""
        return MetaConfig(
            self.synthesis_batch,
            self.inner_steps,
            self.lr_generator,
            self.lr_latent,
            self.bn_weight,
            self.oh_weight,
            self.adv_weight,
            self.warmup,
            self.bn_momentum,
            self.meta_update,
        )


def distil_from_generator(
    teacher: nn.Module,
    student: nn.Module,
    generator: nn.Module,
    num_classes: int,
    test: OrderedSplit,
    config: GeneratorConfig,
    *,
    mode: str = "anew",
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[..., None] | None = None,
    description: str = "data-free distillation",
) -> GeneratorResult:
    """Train generator and student together; both are left as after the last round, the student in eval mode.

    Args:
        teacher: in eval mode, never updated. student: trained. All images are in [-1, 1].
        generator: a `ReusableGenerator` in the initial state of `mode` (see `prepare`), or a `LatentGenerator` with mode "anew".
        num_classes: K. test: for evaluation only. seed: of every draw.
        folder: checkpoints and the pool's shards; None: the work can't be resumed.
        log: called with each row of the history as keywords.
    Returns:
        `GeneratorResult`. A row has `bn`, `oh`, `adv` (means over the inner steps, unweighted), `loss` (weighted), `loss_first`, `stored`,
        `images` made so far, from the warm-up on `lr` and `train`, at evaluations `top1`, `top5`; `elapsed` seconds without evaluation.
    Raises:
        InputError: what `Synthesizer` refuses. FloatingPointError: the student's loss became infinite or NaN.

    At the end the generator's batch-norm buffers are fitted to its weights, so that it samples alike in eval and training mode.
    A killed run goes on from `folder` with the same bits: generator, both optimisers, batch-norm statistics, student, perturbation
    network and random state are in the checkpoint, the pool is in one shard a round, and all draws are functions of (seed, round, step).

    Source: Fang et al., AAAI 2022 (Fast-Datafree); AEAHL-RG released code (2024). The released pool is one PNG a sample, in 8 bits.
    """
    device = test.device
    teacher.to(device).eval()
    student.to(device)
    generator.to(device)
    seed_everything(seed)
    synthesizer = Synthesizer(generator, teacher, student, num_classes, config.synthesis, mode)
    attacker = _attacker(generator.channels, teacher, config) if config.hard_loss == "aea" else None
    shape = (generator.channels, generator.image_size, generator.image_size)
    supply = PoolSupply(config.pool_size, shape, device, config.crop_padding, config.flip, folder)
    found = distil_from_synthesizer(
        teacher,
        student,
        CroppedSynthesizer(
            synthesizer,
            config.crop_padding,
            config.flip,
            crop_rng=lambda call: generator_for(seed, "synthesis crops", call, device=device),
            on_step=attacker.step if attacker else None,
        ),
        supply,
        partial(_loss, teacher, student, supply, attacker, config),
        test,
        config,
        seed=seed,
        folder=folder,
        log=log,
        description=description,
        parts={"attacker": attacker} if attacker else None,
    )
    z = draw_latents(512, generator.latent_dim, generator_for(seed, "refresh", device=device), device)
    refresh_batch_norm(generator, z)
    generator.eval()
    return found


def _attacker(channels: int, teacher: nn.Module, config: GeneratorConfig) -> PerturbationTrainer:
    network = PerturbationGenerator(channels, config.perturbation_width, config.perturbation_blocks)
    return PerturbationTrainer(network.to(next(teacher.parameters()).device), teacher, config.epsilon)


def _loss(
    teacher: nn.Module,
    student: nn.Module,
    supply: PoolSupply,
    attacker: PerturbationTrainer | None,
    config: GeneratorConfig,
    rng: torch.Generator,
) -> Tensor:
    """The loss of one batch of the supply, attacked or not."""
    crop = partial(augment, padding=config.crop_padding, flip=config.flip, generator=rng)
    images = supply(config.batch_size, rng)
    batch = hard_batch(
        images, teacher, attacker.network if attacker else None, config.epsilon, config.probability, crop, rng
    )
    logits_s = student(batch.images)
    if config.hard_loss == "none":
        return kd_loss(logits_s, batch.logits_t, config.temperature)
    return hard_mix_loss(logits_s, batch.logits_t, config.kd_weight, config.ce_weight, config.temperature, batch.labels)
