"""DAFL, ZSKT, DFAD and DFQ: one generator for the whole training, one gradient step at a time, fresh images for every student step.

    L = w_bn sum_l r_l + w_oh CE(T(x), argmax T(x)) + w_bal sum_k pbar_k ln pbar_k - w_act mean|f_T(x)| - w_adv D(S(x), T(x)),   x = G(z)

The four differ only in their weights and in D: KL(p_T || p_S), or mean |S - T| for DFAD.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdnb.errors import check_name
from kdnb.generators.latent import LatentGenerator, draw_latents
from kdnb.generators.normalized import DaflGeneratorReleased, ZsktGeneratorReleased
from kdnb.generators.reusable import Reuse, parameter_groups
from kdnb.losses.datafree import activation_loss, batch_norm_loss, class_balance_loss, one_hot_loss
from kdnb.losses.disagreement import disagreement_l1_loss, disagreement_loss
from kdnb.models.frozen import frozen
from kdnb.models.probes import BatchNormProbe
from kdnb.samplers.inversion import Problem, require_batch_norm, require_features, require_sizes, stack_losses, weigh
from kdnb.samplers.synthesizer import Synthesis

CRITERIA = {"kl": disagreement_loss, "l1": disagreement_l1_loss}
BETAS = (0.5, 0.999)  # of Adam, as in the CMI benchmark
HEADS = {"dafl_released": DaflGeneratorReleased, "zskt_released": ZsktGeneratorReleased}


@dataclass(frozen=True)
class OneStepConfig:
    """Constants of the generator's step; a term of weight 0 is not computed.

    Attributes:
        generator: "dafl" or "dfq", variants of `LatentGenerator` that differ in their usual latent, or a head of the authors' code,
            "dafl_released" or "zskt_released". latent_dim, width: its sizes.
        batch_size: B of a generator step. num_steps: such steps a call.
        lr: of Adam, which persists. criterion: D, "kl" or "l1".
        bn_weight, oh_weight, adv_weight, balance_weight, act_weight: of the module's equation.
    """

    generator: str = "dfq"
    latent_dim: int = 256
    width: int = 64
    batch_size: int = 256
    num_steps: int = 1
    lr: float = 1e-3
    criterion: str = "kl"
    bn_weight: float = 0.0
    oh_weight: float = 0.0
    adv_weight: float = 0.0
    balance_weight: float = 0.0
    act_weight: float = 0.0

    def __post_init__(self):
        check_name("criterion", self.criterion, CRITERIA)
        check_name("generator", self.generator, ("dafl", "dfq", *HEADS))
        require_sizes(
            batch_size=self.batch_size, num_steps=self.num_steps, latent_dim=self.latent_dim, width=self.width
        )


# The CMI benchmark's settings (zju-vipa/CMI, scripts for CIFAR): batch 256, lr 1e-3. DAFL's balance of 20 would be 46 in the units of
# its own code, where CIFAR-10 has 5 and CIFAR-100 has 20.
BENCHMARK = {
    "dafl": OneStepConfig("dafl", 512, oh_weight=1.0, balance_weight=20.0, act_weight=1e-3),
    "zskt": OneStepConfig(adv_weight=1.0),
    "dfad": OneStepConfig(adv_weight=1.0, criterion="l1"),
    "dfq": OneStepConfig(bn_weight=1.0, oh_weight=1.0, balance_weight=20.0, adv_weight=1.0),
}


class OneStepSynthesizer:
    """One call = `num_steps` Adam steps of the generator; images for the student come from `sample`, new ones each time.

    Args:
        generator: z (B, nz) -> images, with `latent_dim`; trained in place, in training mode during a step.
        teacher, student: classifiers of images in [-1, 1]; frozen and in evaluation mode during a call. DAFL's activation term needs a
            teacher that takes `return_features`.
        config: weights and constants. mode: of a `ReusableGenerator`: which parts learn and how fast.
    Raises:
        InputError: a batch-norm weight with a teacher that has no batch norm, DAFL with one that hands out no features.

    Source: Chen et al., ICCV 2019 (DAFL); Micaelli and Storkey, NeurIPS 2019 (ZSKT); Fang et al., arXiv 1912.11006 (DFAD); Choi et al.,
    CVPR-W 2020 (DFQ), all in the form of the CMI benchmark. The authors of ZSKT and DFAD keep the student in training mode here.
    """

    def __init__(
        self, generator: nn.Module, teacher: nn.Module, student: nn.Module, config: OneStepConfig, mode: str = "anew"
    ):
        if config.bn_weight:
            require_batch_norm(teacher, "DFQ")
        if config.act_weight:
            require_features(teacher, "DAFL")
        self.generator, self.teacher, self.student, self.config = generator, teacher, student, config
        self.weights = {
            name: weight
            for name in ("bn", "oh", "adv", "balance", "act")
            if (weight := getattr(config, f"{name}_weight"))
        }
        self.optimizer = torch.optim.Adam(parameter_groups(generator, mode, config.lr), betas=BETAS)

    def __call__(self, rng: torch.Generator | None = None, z: Tensor | None = None) -> Synthesis:
        """Take the steps. `labels` are the teacher's own; `images` are those of the last step, before its update.

        Args:
            rng: source of the latents, on the generator's device. z: (num_steps, B, nz) to use instead.
        """
        history = []
        self.generator.train()
        with frozen(self.teacher, self.student), BatchNormProbe(self.teacher) as probe:
            for step in range(self.config.num_steps if z is None else len(z)):
                images = self.generator(self._draw(self.config.batch_size, rng) if z is None else z[step])
                logits_t, losses = self._losses(images, probe)
                history.append(losses)
                self.optimizer.zero_grad()
                losses["total"].backward()
                self.optimizer.step()
        return Synthesis(images.detach(), logits_t.detach().argmax(dim=1), stack_losses(history))

    def _draw(self, count: int, rng: torch.Generator | None) -> Tensor:
        like = next(self.generator.parameters())
        return draw_latents(count, self.generator.latent_dim, rng, like.device).to(like.dtype)

    def _losses(self, images: Tensor, probe: BatchNormProbe) -> tuple[Tensor, dict[str, Tensor]]:
        if "act" in self.weights:
            features = self.teacher(images, return_features=True)
            logits_t = features.logits
        else:
            logits_t = self.teacher(images)
        terms = {
            "bn": lambda: batch_norm_loss(probe.means, probe.variances, probe.running_means, probe.running_variances),
            "oh": lambda: one_hot_loss(logits_t),
            "adv": lambda: CRITERIA[self.config.criterion](self.student(images), logits_t),
            "balance": lambda: class_balance_loss(logits_t),
            "act": lambda: activation_loss(features.pooled),
        }
        return logits_t, weigh({name: terms[name]() for name in self.weights}, self.weights)

    @torch.no_grad()
    def sample(self, count: int, rng: torch.Generator | None = None, z: Tensor | None = None) -> Tensor:
        """(count, C, H, W) new images of the generator in evaluation mode; `z` (count, nz) replaces the draw."""
        training = self.generator.training
        images = self.generator.eval()(self._draw(count, rng) if z is None else z)
        self.generator.train(training)
        return images

    def state_dict(self) -> dict:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


def build(problem: Problem, config: OneStepConfig, reuse: Reuse | None = None) -> OneStepSynthesizer:
    """With a new generator, drawn from torch's global state; with `reuse` one of two branches."""
    channels, size = problem.image_shape[:2]
    generator: nn.Module
    if reuse is not None:
        generator = reuse.generator(size, channels, config.latent_dim, config.width)
    elif config.generator in HEADS:
        generator = HEADS[config.generator](size, config.latent_dim, config.width, mean=problem.mean, std=problem.std)
    else:
        generator = LatentGenerator(size, channels, config.latent_dim, config.width, config.generator)
    mode = reuse.mode if reuse else "anew"
    return OneStepSynthesizer(generator.to(problem.device), problem.teacher, problem.student, config, mode)
