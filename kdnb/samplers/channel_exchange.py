"""SpaceshipNet: the pool holds feature maps of the generator, not images; maps of two images exchange channels and are decoded anew.

L = w_bn sum_l r_l + w_oh CE(T(x), y),   x = G(z), z fixed for a batch
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data.augmentation import augment
from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator, draw_latents
from kdnb.losses.datafree import batch_norm_loss, one_hot_loss
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

DEPTHS = (
    1,
    5,
    9,
)  # layers of `LatentGenerator.conv_blocks` before a map is pooled: first BN, first and second convolution block


def exchange_channels(features: Tensor, picks: Tensor) -> Tensor:
    """Row i keeps its channels picks[i]; the others come from row B - 1 - i.

    Args:
        features: (B, C, H, W). picks: (B, N) int64 channel numbers below C.
    Returns:
        (B, C, H, W).
    Raises:
        InputError: shapes that do not fit.

    Source: Yu et al., CVPR 2023 (SpaceshipNet), channel-wise feature exchange.
    """
    if features.dim() != 4 or picks.dim() != 2 or len(picks) != len(features):
        raise InputError(f"features {tuple(features.shape)} need one row of picks each, got {tuple(picks.shape)}")
    own = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device).scatter_(1, picks, True)
    return torch.where(own[:, :, None, None], features, features.flip(0))


@dataclass(frozen=True)
class ExchangeConfig:
    """Constants; the defaults are SpaceshipNet's on CIFAR.

    Attributes:
        latent_dim, width: of the generator.
        batch_size: B. num_steps: Adam steps a call. lr: of Adam, which persists. bn_weight, oh_weight: of the module's equation.
        pool_size: images whose maps are kept, the newest. probability: of an exchange, a batch of the student.
        crop_padding, flip: what the teacher sees.
    """

    latent_dim: int = 256
    width: int = 64
    batch_size: int = 256
    num_steps: int = 200
    lr: float = 1e-3
    bn_weight: float = 1.0
    oh_weight: float = 0.5
    pool_size: int = 51_200
    probability: float = 0.7
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        require_sizes(batch_size=self.batch_size, num_steps=self.num_steps, pool_size=self.pool_size)
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability must be in [0, 1], got {self.probability}")


class ExchangeSynthesizer:
    """One call = `num_steps` steps of the generator, which is never reset, and the maps of the cheapest step pooled; `sample` decodes.

    Args:
        generator: a `LatentGenerator`, trained in place. teacher: frozen, images in [-1, 1]. num_classes: K. config: constants.
        augment: images -> what the teacher sees, in place of crop and flip.
    Raises:
        InputError: a teacher without batch norm, another kind of generator.

    `state_dict` holds the pools: at the published size 51 200 images are 5.5 GB of maps (the released code keeps them on disk).

    Source: Yu et al., CVPR 2023 (SpaceshipNet).
    """

    def __init__(
        self,
        generator: LatentGenerator,
        teacher: nn.Module,
        num_classes: int,
        config: ExchangeConfig,
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        require_batch_norm(teacher, "SpaceshipNet")
        if not isinstance(generator, LatentGenerator):
            raise InputError(f"channel exchange needs a LatentGenerator, got {type(generator).__name__}")
        self.generator, self.teacher, self.num_classes, self.config = generator, teacher, num_classes, config
        self.augment = augment
        self.optimizer = torch.optim.Adam(generator.parameters(), config.lr, betas=(0.5, 0.999))
        self.weights = {"bn": config.bn_weight, "oh": config.oh_weight}
        self.pools: list[Tensor] = []  # one tensor (N, C, h, w) a depth, oldest first

    def __call__(self, rng: torch.Generator | None = None) -> Synthesis:
        like, config = next(self.generator.parameters()), self.config
        labels = draw_classes(config.batch_size, self.num_classes, rng, like.device)
        z = draw_latents(len(labels), self.generator.latent_dim, rng, like.device).to(like.dtype)
        see = self.augment or partial(augment, padding=config.crop_padding, flip=config.flip, generator=rng)
        self.generator.train()
        cheapest, history = Cheapest(), []
        with frozen(self.teacher), BatchNormProbe(self.teacher) as probe:
            for _ in cut(range(config.num_steps), "generator step"):
                *maps, images = self._maps(z)
                logits_t = self.teacher(see(images))
                statistics = probe.means, probe.variances, probe.running_means, probe.running_variances
                losses = weigh({"bn": batch_norm_loss(*statistics), "oh": one_hot_loss(logits_t, labels)}, self.weights)
                cheapest.offer(losses["total"], images, *maps)
                history.append({name: value.detach() for name, value in losses.items()})
                self.optimizer.zero_grad()
                losses["total"].backward()
                self.optimizer.step()
        images, *maps = cheapest.tensors
        old = self.pools or [pooled[:0] for pooled in maps]
        self.pools = [torch.cat(pair)[-config.pool_size :] for pair in zip(old, maps, strict=True)]
        return Synthesis(images, labels, stack_losses(history))

    def _maps(self, z: Tensor) -> list[Tensor]:
        """The maps of `DEPTHS`, then the images."""
        x = self.generator.l1(z).unflatten(1, self.generator._start)
        maps, start = [], 0
        for stop in (*DEPTHS, len(self.generator.conv_blocks)):
            x = self.generator.conv_blocks[start:stop](x)
            maps.append(x)
            start = stop
        return [*maps[:-1], 2.0 * maps[-1] - 1.0]

    @torch.no_grad()
    def sample(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """Images decoded by the present generator in evaluation mode from pooled maps of a random depth; some have exchanged channels.

        Args:
            count: images, at most as many as are pooled. rng: on the generator's device.
        Returns:
            (min(count, pooled), C, H, W) in (-1, 1).
        """
        if not self.pools:
            raise InputError("no feature maps are pooled yet; call the synthesiser first")
        device = self.pools[0].device
        draw = partial(torch.rand, generator=rng, device=device)
        depth = int(torch.randint(len(DEPTHS), (), generator=rng, device=device))
        pool = self.pools[depth]
        features = pool[torch.randperm(len(pool), generator=rng, device=device)[:count]]
        if draw(()) < self.config.probability:
            channels = features.shape[1]
            picks = draw((len(features), channels)).argsort(dim=1)[:, : channels // 2]
            features = exchange_channels(features, picks)
        training = self.generator.training
        self.generator.eval()
        images = 2.0 * self.generator.conv_blocks[DEPTHS[depth] :](features) - 1.0
        self.generator.train(training)
        return images

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pools": list(self.pools),
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = next(self.generator.parameters()).device
        self.pools = [pool.to(device) for pool in state["pools"]]


def build(problem: Problem, config: ExchangeConfig) -> ExchangeSynthesizer:
    """With a new generator, drawn from torch's global state."""
    channels, size = problem.image_shape[:2]
    generator = LatentGenerator(size, channels, config.latent_dim, config.width).to(problem.device)
    return ExchangeSynthesizer(generator, problem.teacher, problem.num_classes, config)
