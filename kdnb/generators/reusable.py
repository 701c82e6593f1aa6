"""The reusable generator of AEAHL-RG: two latent branches whose images are averaged and refined by one small decoder.

What a first task has learned (one branch and the decoder) is carried to the next; `prepare` makes the initial state of each mode and
`parameter_groups` says what is trained and how fast.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.generators.latent import LatentGenerator

# mode -> learning-rate factor of (first branch, second branch and decoder); 0 = frozen
MODES = {
    "anew": (1.0, 1.0),
    "reuse_common": (1.0, 1.0),
    "reuse_finetune": (1.0, 0.1),
    "reuse_fix": (1.0, 0.0),
}


class Decoder(nn.Module):
    """(0, 1) image to (0, 1) image: 3x3 convolutions C -> 8 -> 16 -> 8 -> C, batch norm and ReLU between, sigmoid at the end.

    Layer names equal those of the released files. 2,835 parameters for C = 3.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        self.layers = nn.Sequential()
        for index, (width_in, width_out) in enumerate(((channels, 8), (8, 16), (16, 8)), start=2):
            self.layers.add_module(f"Conv{index}", nn.Conv2d(width_in, width_out, 3, padding=1))
            self.layers.add_module(f"Bn{index}", nn.BatchNorm2d(width_out))
            self.layers.add_module(f"Relu{index}", nn.ReLU(inplace=True))
        self.layers.add_module("Conv5", nn.Conv2d(8, channels, 3, padding=1))
        self.layers.add_module("Sigmoid", nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ReusableGenerator(nn.Module):
    """x = d((g1(z) + g2(z)) / 2): two branches, one decoder.

    Args:
        image_size, channels, latent_dim, width: as in `LatentGenerator`.
        twin_branches: start g2 as an exact copy of g1, as the released code does in mode `anew`. The two then see the same z and
            the same gradients and stay equal for ever: one network at twice the price. Default: independent initialisation.

    `forward` gives (-1, 1); `unit_images` the decoder's (0, 1). Source: AEAHL-RG released code (2024).
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        latent_dim: int = 256,
        width: int = 64,
        twin_branches: bool = False,
    ):
        super().__init__()
        self.gan1 = LatentGenerator(image_size, channels, latent_dim, width)
        self.gan2 = (
            copy.deepcopy(self.gan1) if twin_branches else LatentGenerator(image_size, channels, latent_dim, width)
        )
        self.decoder = Decoder(channels)
        self.latent_dim, self.image_size, self.channels = latent_dim, image_size, channels

    def unit_images(self, z: Tensor) -> Tensor:
        """(B, nz) -> (B, C, s, s) in (0, 1)."""
        return self.decoder(0.5 * (self.gan1.unit_images(z) + self.gan2.unit_images(z)))

    def forward(self, z: Tensor) -> Tensor:
        """(B, nz) -> (B, C, s, s) in (-1, 1)."""
        return 2.0 * self.unit_images(z) - 1.0


def prepare(
    generator: ReusableGenerator,
    mode: str,
    branch: dict[str, Tensor] | None = None,
    decoder: dict[str, Tensor] | None = None,
) -> None:
    """Give a fresh generator the initial state of `mode`: nothing to do for `anew`, else g2 and d are loaded, g1 stays random.

    Args:
        generator: freshly built; changed in place.
        mode: one of `MODES`.
        branch, decoder: state dicts of an earlier task (see `export_parts`); needed by the three reuse modes, refused by `anew`.
    Raises:
        InputError: unknown mode, missing or superfluous states, weights that do not fit (image size, channels, latent, width).
    """
    check_name("generator mode", mode, MODES)
    if mode == "anew":
        if branch is not None or decoder is not None:
            raise InputError(
                "mode 'anew' starts from random weights and takes no branch or decoder; use a reuse mode to load them"
            )
        return
    if branch is None or decoder is None:
        raise InputError(f"mode {mode!r} needs the branch and the decoder of an earlier task")
    try:
        generator.gan2.load_state_dict(branch)
        generator.decoder.load_state_dict(decoder)
    except RuntimeError as error:
        raise InputError(
            f"the earlier task's weights do not fit this generator (image size, channels, latent size, width): {error}"
        ) from None


class Reuse(NamedTuple):
    """How a method gets its generator of two branches.

    Attributes:
        mode: one of `MODES`.
        parts: of `export_parts`, for the modes that reuse; None: anew.
    """

    mode: str = "anew"
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def generator(self, image_size: int, channels: int, latent_dim: int, width: int) -> ReusableGenerator:
        """A new one in the initial state of the mode, drawn from torch's global state."""
        made = ReusableGenerator(image_size, channels, latent_dim, width)
        self.load(made)
        return made

    def load(self, generator: ReusableGenerator) -> None:
        """Give a generator with fresh weights the initial state of the mode, see `prepare`."""
        prepare(generator, self.mode, *(self.parts or ()))


def parameter_groups(generator: nn.Module, mode: str, lr: float) -> list[dict]:
    """Optimiser groups of a mode: g1 at `lr`, g2 and d at `lr` (anew, reuse_common), 0.1 `lr` (reuse_finetune) or not at all (reuse_fix).

    Args:
        generator: the meta generator or a fast copy of it; one without branches learns as a whole, in mode `anew` alone.
        mode: one of `MODES`.
        lr: learning rate of the first branch.
    Raises:
        InputError: unknown mode, or another than `anew` for a generator without branches.
    """
    check_name("generator mode", mode, MODES)
    if not isinstance(generator, ReusableGenerator):
        if mode != "anew":
            raise InputError(f"mode {mode!r} needs a ReusableGenerator, got {type(generator).__name__}")
        return [{"params": list(generator.parameters()), "lr": lr}]
    first, rest = MODES[mode]
    groups = [{"params": list(generator.gan1.parameters()), "lr": first * lr}]
    if rest:
        groups.append({"params": [*generator.gan2.parameters(), *generator.decoder.parameters()], "lr": rest * lr})
    return groups


def export_parts(generator: ReusableGenerator, branch: str = "gan1") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a later task loads: state dicts of one branch (`gan1` as released, or `gan2`) and of the decoder, on the CPU."""
    check_name("branch", branch, ("gan1", "gan2"))
    first, second = (
        {name: value.detach().cpu().clone() for name, value in part.state_dict().items()}
        for part in (getattr(generator, branch), generator.decoder)
    )
    return first, second


@torch.no_grad()
def less_active_branch(generator: ReusableGenerator, features, z: Tensor, rng: torch.Generator | None = None) -> str:
    """Name the branch whose images excite the teacher less: the one to be reused, by the rule that AEAHL-RG wrote but never called.

    Args:
        generator: in the mode (train or eval) in which its images are meant.
        features: function from images in (-1, 1) to (B, D) penultimate features, e.g. `lambda x: teacher(x, return_features=True).pooled`.
        z: (B, nz) latents.
        rng: draws the uniform image u that stands in for the other branch in d((g_i(z) + u) / 2).
    Returns:
        "gan1" or "gan2".

    The released rule feeds un-normalised images; here the teacher normalises by itself.
    """
    first, second = generator.gan1.unit_images(z), generator.gan2.unit_images(z)
    noise = torch.rand(first.shape, generator=rng, device=first.device, dtype=first.dtype)
    activity = [features(2.0 * generator.decoder(0.5 * (unit + noise)) - 1.0).abs().sum() for unit in (first, second)]
    return "gan1" if activity[0] <= activity[1] else "gan2"
