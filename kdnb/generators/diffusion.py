"""The diffusion prior: a denoiser, unconditional or class-conditional, that a sampler can query, trained here or loaded from a folder of diffusers.

The forward process is x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps with eps ~ N(0, I); the prior estimates eps from x_t and t.
Whatever the model was trained to predict, samplers see `DiffusionPrior.epsilon` and `alphas_cumprod` and nothing else.
diffusers takes seconds to import and is imported inside the functions that need it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.generators.prior_folder import check_prior_folder, read_config

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


# --- the prior as samplers see it ----------------------------------------------------------------------------------------------


def linear_alphas_cumprod(num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """abar_t = prod_{s <= t} (1 - beta_s) for betas on a straight line, (T,) float32 computed in float64.

    Source: Ho, Jain, Abbeel, NeurIPS 2020, section 4 (the default values).
    """
    betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float()


@dataclass
class DiffusionPrior:
    """A frozen denoiser in eval mode with its noise schedule.

    Attributes:
        model: `model(x_t, t).sample` of x_t's shape (a learned variance may follow as further channels and is ignored).
        alphas_cumprod: (T,) abar_t, falling, in (0, 1).
        prediction_type: what the model emits: "epsilon", "v_prediction" (v = sqrt(abar) eps - sqrt(1 - abar) x_0) or "sample" (x_0).
        class_map: for a class-conditional model, (K,) int64: the class of the prior that class k of the teacher asks for; None: its
            own number. An unconditional model takes no notice of classes.
    Raises:
        InputError: an unknown prediction type, or a schedule that is not a falling sequence inside (0, 1).
    """

    model: nn.Module
    alphas_cumprod: Tensor = field(default_factory=linear_alphas_cumprod)
    prediction_type: str = "epsilon"
    class_map: Tensor | None = None

    def __post_init__(self):
        check_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        alphas = self.alphas_cumprod
        if alphas.dim() != 1 or not bool(((alphas > 0) & (alphas < 1)).all() and (alphas.diff() < 0).all()):
            raise InputError(
                "alphas_cumprod must fall from step to step and stay inside (0, 1); a schedule that ends at zero signal "
                "(rescale_betas_zero_snr) has no x0 estimate from epsilon there"
            )
        self.model.eval().requires_grad_(False)

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def num_classes(self) -> int | None:
        """How many classes the model can be asked for; None: it is unconditional."""
        return getattr(getattr(self.model, "config", None), "num_class_embeds", None)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the model's images; None where the model does not say."""
        config = getattr(self.model, "config", None)
        size = getattr(config, "sample_size", None)
        if config is None or size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def for_labels(self, labels: Tensor) -> Callable[[Tensor, int | Tensor], Tensor]:
        """`epsilon` for images of these classes: the classes are checked and mapped here, once for a whole trajectory.

        Args:
            labels: (B,) int64, classes of the teacher.
        Raises:
            InputError: a class that the map or the model does not have.
        """
        if self.num_classes is None:
            return self.epsilon
        highest = int(labels.max())
        if self.class_map is not None and highest >= len(self.class_map):
            raise InputError(f"class {highest} was asked for, class_map has {len(self.class_map)} entries")
        wanted = labels if self.class_map is None else self.class_map.to(labels.device)[labels]
        if int(wanted.max()) >= self.num_classes:
            raise InputError(
                f"the prior knows {self.num_classes} classes and was asked for class {int(wanted.max())}; say with class_map "
                "which of its classes stands for which of the teacher's"
            )
        return partial(self.epsilon, class_labels=wanted)

    def epsilon(self, x_t: Tensor, t: int | Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The estimate of the noise in x_t; gradients flow to x_t if asked for.

            epsilon: eps = y      v_prediction: eps = sqrt(abar) y + sqrt(1 - abar) x_t      sample: eps = (x_t - sqrt(abar) y) / sqrt(1 - abar)

        Args:
            x_t: (B, C, H, W) noisy images.
            t: time step in 0..T-1, one for all or (B,) int64.
            class_labels: (B,) int64 classes of the prior itself, for a class-conditional model; see `for_labels`.
        Returns:
            (B, C, H, W).

        Source: Ho, Jain, Abbeel, NeurIPS 2020, equation 4; Salimans, Ho, ICLR 2022, appendix D (v).
        """
        steps = t.expand(len(x_t)) if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        asked = {} if class_labels is None else {"class_labels": class_labels}
        y = self.model(x_t, steps, **asked).sample[:, : x_t.shape[1]]
        if self.prediction_type == "epsilon":
            return y
        alpha_bar = self.alphas_cumprod.to(x_t)[steps].view(-1, 1, 1, 1)
        if self.prediction_type == "v_prediction":
            return alpha_bar.sqrt() * y + (1 - alpha_bar).sqrt() * x_t
        return (x_t - alpha_bar.sqrt() * y) / (1 - alpha_bar).sqrt()

    def to(self, device: str | torch.device) -> "DiffusionPrior":
        self.model.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self


# --- building ------------------------------------------------------------------------------------------------------------------


def _compact_unet(
    channels: int, image_size: int, shuffle: int = 2, widths=(32, 32), layers: int = 1, norm_groups: int = 8
) -> nn.Module:
    from kdnb.generators.compact_unet import CompactUNet

    return CompactUNet(image_size, channels, shuffle, tuple(widths), layers, norm_groups)


def _unet(
    channels: int, image_size: int, widths=(128, 256, 256, 256), layers: int = 2, norm_groups: int = 32
) -> nn.Module:
    """The layout of Ho et al. for CIFAR: attention at the second resolution (16x16 for 32x32 images)."""
    from diffusers import UNet2DModel

    down = ["AttnDownBlock2D" if level == 1 else "DownBlock2D" for level in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNet2DModel(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        norm_num_groups=norm_groups,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
    )


PRIORS: dict[str, Callable[..., nn.Module]] = {
    "compact_unet": _compact_unet,  # CPU: digits in under a minute
    "unet": _unet,  # GPU: 35.7M parameters at its defaults
}


def build_prior(name: str, channels: int, image_size: int, **kwargs) -> nn.Module:
    """A fresh, untrained denoiser: a model of diffusers, `model(x_t, t).sample` has the shape of x_t.

    Args:
        name: one of `PRIORS`.
        channels, image_size: C and H = W of the images.
        kwargs: `widths`, `layers`, `norm_groups`, and for compact_unet `shuffle`; see `CompactUNet`.
    Returns:
        The model, initialised from torch's global random state.
    Raises:
        InputError: an unknown name, or sizes that do not divide.
    """
    maker = PRIORS[check_name("prior", name, PRIORS)]
    defaults = {key: parameter.default for key, parameter in list(inspect.signature(maker).parameters.items())[2:]}
    for key in kwargs:
        check_name(f"argument of prior {name}", key, defaults)
    chosen = defaults | kwargs
    stride = chosen.get("shuffle", 1) * 2 ** (len(chosen["widths"]) - 1)
    if image_size % stride:
        raise InputError(f"prior {name} with these widths needs an image_size divisible by {stride}, got {image_size}")
    if any(width % chosen["norm_groups"] for width in chosen["widths"]):
        raise InputError(
            f"widths must be divisible by norm_groups, got {list(chosen['widths'])} and {chosen['norm_groups']}"
        )
    return maker(channels, image_size, **kwargs)


# --- folders of diffusers ------------------------------------------------------------------------------------------------------


def load_prior(folder: Path) -> DiffusionPrior:
    """A prior from a local folder that `save_pretrained` of a diffusers model or pipeline wrote.

    The noise schedule and the prediction type come from scheduler/scheduler_config.json or scheduler_config.json; without either they
    are 1000 linear betas from 1e-4 to 0.02 and epsilon. Weights are read from safetensors only, every one of them must fit, and the
    class must be one of diffusers' models or `CompactUNet`. Nothing is downloaded.

    Raises:
        InputError: a file is missing, damaged or a pickle; an unknown class or schedule; a model that needs a text, or labels other
            than class numbers.
    """
    folder = Path(folder)
    model = _load_model(check_prior_folder(folder))
    configs = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    config = next((read_config(path) for path in configs if path.is_file()), None)
    return DiffusionPrior(model) if config is None else DiffusionPrior(model, *_schedule(config))


def _load_model(folder: Path) -> nn.Module:
    config = read_config(folder / "config.json")
    if config.get("quantization_config"):
        raise InputError("quantized weights can't serve as a prior; save the model in float32 or float16")
    kind: Any = _model_class(config.get("_class_name"))
    try:
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds; all of them mean that this folder can't be used
        raise InputError(f"{folder.name} can't be loaded as {kind.__name__}: {error}") from error
    wrong = {name: keys for name, keys in info.items() if keys}
    if wrong:  # diffusers only warns, and leaves random weights
        raise InputError(f"the weights in {folder.name} do not fit {kind.__name__}: {wrong}")
    for tensor in [*model.parameters(), *model.buffers()]:
        # safetensors leaves weights at addresses that vector units do not like; CPU kernels then add in another order, and a loaded
        # prior would differ from the saved one by 2e-7. A copy is aligned and gives the same bits.
        tensor.data = tensor.data.clone()
    _try_once(model)
    return model


def _model_class(name: object) -> type:
    """One of our own or one that diffusers exports as a model; a file can't name anything else."""
    import diffusers

    from kdnb.generators.compact_unet import CompactUNet

    if name == CompactUNet.__name__:
        return CompactUNet
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Model") else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise InputError(
            f"config.json names the class {name!r}; allowed: CompactUNet and the models of diffusers, such as UNet2DModel"
        )
    return kind


def _try_once(model: nn.Module) -> None:
    """One forward pass of one image, so that a model that asks for more than (x_t, t) and a class is refused here and not while sampling."""
    config = model.config
    try:
        size = config.sample_size
        x = torch.zeros(1, config.in_channels, *((size, size) if isinstance(size, int) else size), dtype=model.dtype)
        zero = torch.zeros(1, dtype=torch.int64)
        asked = {"class_labels": zero} if getattr(config, "num_class_embeds", None) else {}
        with torch.no_grad():
            shape = model(x, zero, **asked).sample.shape
    except Exception as error:
        raise InputError(f"{type(model).__name__} can't serve as an image prior: {error}") from error
    if shape[1] < x.shape[1] or shape[2:] != x.shape[2:]:
        raise InputError(
            f"a prior maps images to noise of their shape; {type(model).__name__} maps {tuple(x.shape)} to {tuple(shape)}"
        )


def _schedule(config: dict) -> tuple[Tensor, str]:
    """alphas_cumprod and the prediction type of a scheduler's configuration."""
    from diffusers import DDPMScheduler

    prediction_type = config.get("prediction_type", "epsilon")
    betas = config.get("trained_betas")
    if (
        betas is not None
    ):  # in float64: DDPMScheduler would round them, and a saved prior would come back slightly different
        return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0).float(), prediction_type
    if "beta_schedule" not in config:
        raise InputError(
            f"the scheduler {config.get('_class_name')} has no betas (flow matching and EDM priors are not supported)"
        )
    try:
        return DDPMScheduler.from_config(config).alphas_cumprod, prediction_type
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"the scheduler's configuration can't be used: {error}") from error
