"""Parameters of notebooks: one table of names for the whole project, and the check that every given value fits it.

A notebook's `parameters` cell holds plain annotated literals; its next cell does

    p = parameters.collect(globals())

A value that is not in the table's range is refused in one sentence before any work starts. To add a parameter, add a line to
`PARAMETERS`; a name means the same thing in every notebook.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from kdnb import data, models
from kdnb.errors import InputError, check_name
from kdnb.methods import METHODS, parse_method

_BRANCH_RULES = ("gan1", "gan2", "less_active", "more_active")


class Parameter(NamedTuple):
    """One line of the table: the annotation in a notebook, the pydantic type, what is allowed (in words), what it is for.

    With `optional` a notebook may annotate it `Optional[...]`, and None then means what that notebook's comment says.
    """

    annotation: str
    type: Any
    allowed: str
    help: str
    optional: bool = False


# --- kinds of parameters -------------------------------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    """YAML reads 1e-6 as text and `yes` as a boolean; the first is a number here, the second is none."""
    if isinstance(value, bool):
        raise ValueError("a yes or no is not a number")
    if isinstance(value, str):
        return float(value) if re.search(r"[.eE]", value) else int(value)
    return value


def _integer(low: int, high: int, help: str) -> Parameter:
    kind = Annotated[int, BeforeValidator(_number), Field(ge=low, le=high)]
    return Parameter("int", kind, f"a whole number from {low} to {high}", help)


def _real(low: float, high: float, help: str, above: bool = False) -> Parameter:
    """A number in [low, high], or in (low, high] with `above`."""
    bound = Field(gt=low, le=high, allow_inf_nan=False) if above else Field(ge=low, le=high, allow_inf_nan=False)
    words = f"a number above {low:g} and at most {high:g}" if above else f"a number from {low:g} to {high:g}"
    return Parameter("float", Annotated[float, BeforeValidator(_number), bound], words, help)


def _choice(kind: str, names: Iterable[str], help: str) -> Parameter:
    names = list(names)
    return Parameter(
        "str",
        Annotated[str, AfterValidator(lambda value: check_name(kind, value, names))],
        f"one of {', '.join(names)}",
        help,
    )


_MODEL_NAMES = "a name of kdnb.models.MODELS, timm:NAME, torchvision:NAME or FILE.py:function"


def _model(help: str) -> Parameter:
    return Parameter("str", Annotated[str, AfterValidator(models.known)], _MODEL_NAMES, help)


def _text(pattern: str, allowed: str, help: str) -> Parameter:
    return Parameter("str", Annotated[str, Field(pattern=f"^(?:{pattern})$", max_length=4096)], allowed, help)


def _integers(
    low: int, high: int, help: str, order: Callable[[list], list] = sorted, words: str = "rising"
) -> Parameter:
    """A list of different whole numbers; rising unless `order` says otherwise."""

    def ordered(values: list[int]) -> list[int]:
        if len(set(values)) != len(values) or list(values) != order(values):
            raise ValueError("order")
        return values

    kind = Annotated[
        list[Annotated[int, BeforeValidator(_number), Field(ge=low, le=high)]],
        Field(max_length=100),
        AfterValidator(ordered),
    ]
    return Parameter("list[int]", kind, f"a list of {words} whole numbers from {low} to {high}", help)


def _methods(help: str) -> Parameter:
    """A list of methods, each with hyper-parameters over its published ones: `["kd", "dkd beta:2"]`."""

    def known(value: str) -> str:
        parse_method(value)
        return value

    kind = Annotated[list[Annotated[str, AfterValidator(known)]], Field(max_length=100)]
    return Parameter("list[str]", kind, "a list of methods, as in ['kd', 'dkd beta:2 warmup:0']", help)


def _different(known: Callable[[str], str], allowed: str, help: str) -> Parameter:
    """A list of one name or several different ones, each of them known."""

    def different(values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("twice")
        return [known(value) for value in values]

    kind = Annotated[list[str], Field(min_length=1, max_length=100), AfterValidator(different)]
    return Parameter("list[str]", kind, f"a list of different names {allowed}", help)


def _choices(kind: str, names: Iterable[str], help: str) -> Parameter:
    names = list(names)
    return _different(lambda value: check_name(kind, value, names), f"out of {', '.join(names)}", help)


def _models(help: str) -> Parameter:
    return _different(models.known, f"of models, each {_MODEL_NAMES}", help)


def _flag(help: str) -> Parameter:
    return Parameter("bool", Annotated[bool, Field(strict=True)], "true or false", help)


def _optional(parameter: Parameter) -> Parameter:
    return parameter._replace(optional=True)


# --- the table -----------------------------------------------------------------------------------------------------------------

PARAMETERS: dict[str, Parameter] = {
    # where and how a run happens
    "seed": _integer(0, 2**32 - 1, "random seed"),
    "seeds": _integers(0, 2**32 - 1, "random seeds, one run each", order=list, words="different"),
    "split_seed": _integer(0, 2**32 - 1, "seed of the split into private, public and test images"),
    "device": _text(r"cpu|mps|cuda(:[0-9]{1,3})?", "cpu, cuda, cuda:N or mps", "torch device"),
    "threads": _integer(0, 1024, "CPU threads of torch, 0 for torch's own choice"),
    "precision": _choice("precision", ("fp32", "bf16", "fp16"), "number format of autocast"),
    "layout": _choice("layout", ("contiguous", "channels_last"), "memory format of images"),
    # data
    "dataset": Parameter(
        "str",
        Annotated[str, Field(max_length=4096), AfterValidator(data.known)],
        f"one of {', '.join(data.DATASETS)}, folder:PATH or FILE.py:function",
        "data set",
    ),
    "image_size": _integer(8, 256, "height and width in pixels"),
    "crop_padding": _integer(0, 64, "padding of the random crop in pixels"),
    "num_samples": _integer(1, 1_000_000, "images to make"),
    # networks
    "model": _model("architecture"),
    "teacher": _model("teacher architecture"),
    "teachers": _models("teacher architectures to compare"),
    "student": _model("student architecture"),
    "judge": _model("architecture of the independent judge"),
    "teacher_checkpoint": _text(
        r"[^\x00\n]*", "the path of a checkpoint, or empty", "teacher weights to use instead of training a teacher"
    ),
    # training
    "epochs": _integer(1, 100_000, "passes over the data, or rounds"),
    "teacher_epochs": _integer(1, 100_000, "passes over the private split when the teacher is trained"),
    "student_epochs": _integer(1, 100_000, "passes over the data when a student is trained"),
    "batch_size": _integer(2, 1_000_000, "images per step"),
    "lr": _real(0, 100, "learning rate (peak)", above=True),
    "weight_decay": _real(0, 10, "L2 coefficient"),
    "milestones": _integers(0, 100_000, "epochs after which the learning rate falls"),
    "clip_norm": _optional(_real(0, 1e6, "limit of the global gradient norm", above=True)),
    # distillation
    "method": _choice("method", METHODS, "distillation method"),
    "others": _methods("further methods to compare with"),
    "temperature": _optional(_real(0, 1000, "softmax temperature tau", above=True)),
    "kd_weight": _optional(_real(0, 1e6, "weight of the distillation term")),
    "ce_weight": _optional(_real(0, 1e6, "weight of the label term")),
    "scales": _optional(_integers(1, 64, "regions per side of each scale")),
    "omitted_class": _optional(_integer(0, 999, "class the student never sees")),
    "ablations": _flag("whether hyper-parameters of the method are varied as well"),
    # bounds
    "num_latents": _integer(1, 10_000, "latent variables of the autoencoder"),
    "hidden": _integer(0, 100_000, "width of the autoencoder's hidden layers, 0 for a linear one"),
    "vae_epochs": _integer(1, 100_000, "passes over the training images when the autoencoder is trained"),
    "correlation": _real(0, 0.9999, "correlation of each pair of Gaussians"),
    "num_pairs": _integer(1, 10_000, "independent pairs of Gaussians"),
    # teacher-free distillation
    "smoothing": _real(0, 0.99, "share of a label that is given to all classes"),
    "poor_epochs": _integer(1, 100_000, "passes over the data that a poorly trained teacher gets"),
    "num_top": _integer(2, 1000, "classes in the top score difference, the first included"),
    "generations": _integer(1, 100, "students after the patriarch"),
    # stored soft labels
    "label_mode": _text(r"[a-z_0-9]+", "a mode of kdnb.losses.soft_labels", "how stored labels are compressed"),
    "num_crops": _integer(1, 10_000, "crops stored of each image"),
    "num_draw": _integer(1, 10_000, "stored crops of an image in a batch"),
    "confidence_low": _real(0, 1, "teacher confidence below which a crop is left out"),
    "confidence_middle": _real(0, 1, "teacher confidence from which a crop keeps its soft label"),
    "confidence_top": _real(0, 1, "teacher confidence above which a crop is left out as too easy"),
    # novel classes
    "num_known": _integer(2, 10_000, "classes with labels; the others are to be discovered"),
    "num_heads": _integer(1, 100, "output heads for the novel classes"),
    "pretrain_epochs": _integer(1, 100_000, "passes over the known classes before discovery"),
    "relation_weight": _real(0, 1e6, "weight of the class relation term"),
    # architecture search
    "depths": _integers(8, 10_000, "depths in the search space, 6n + 2"),
    "widths_first": _integers(1, 10_000, "channels of the first stage in the search space"),
    "widths_second": _integers(1, 10_000, "channels of the second stage in the search space"),
    "population": _integer(1, 100_000, "living individuals of the evolution"),
    "tournament": _integer(1, 100_000, "individuals compared for parenthood"),
    "budget": _integer(1, 10_000_000, "individuals of the evolution in all"),
    # distillation from a generator; attacks
    "warmup": _integer(0, 100_000, "rounds before the student starts"),
    "next_teacher": _model("teacher architecture of the task that reuses the generator"),
    "next_epochs": _integer(1, 100_000, "rounds of the task that reuses the generator"),
    "modes": _choices(
        "generator mode",
        ("anew", "reuse_common", "reuse_finetune", "reuse_fix"),
        "initial states and rates of the generator",
    ),
    "hard_losses": _choices("hard loss", ("none", "no_aea", "aea"), "kinds of hard loss to compare"),
    "branch_rule": _choice("branch rule", _BRANCH_RULES, "which branch of the generator is reused"),
    "branch_rules": _choices(
        "branch rule", _BRANCH_RULES, "rules, by which a branch of the generator is chosen for reuse, to compare"
    ),
    "latent_dim": _integer(1, 100_000, "length of the latent vector"),
    "generator_width": _integer(1, 10_000, "channels of the generator's last convolution"),
    "perturbation_width": _integer(1, 10_000, "channels of the perturbation network's first convolution"),
    "perturbation_blocks": _integer(0, 100, "residual blocks of the perturbation network"),
    "inner_steps": _integer(1, 100_000, "generator steps a round"),
    "lr_generator": _real(0, 100, "learning rate of the generator's inner steps", above=True),
    "bn_momentum": _real(0, 0.999, "share of earlier batches in the batch-norm statistics"),
    "oh_weight": _real(0, 1e6, "weight of the one-hot loss"),
    "adv_weight": _real(0, 1e6, "weight of the adversarial loss"),
    "attack_images": _integer(1, 1_000_000, "images of the bit-flip attacker"),
    "max_flips": _integer(1, 1_000_000, "bits the attacker may flip"),
    "random_flips": _integer(1, 10_000_000, "bits flipped at random as a control"),
    "bits": _integer(2, 16, "bits of a quantised weight"),
    "k_top": _integer(1, 1_000_000, "candidate weights a layer"),
    "repeats": _integer(1, 1000, "independent repeats"),
    "target": _real(0, 1, "test top-1 that counts as reached"),
    "attack_steps": _integer(1, 1_000_000, "steps of the image attack"),
    # diffusion prior and its guidance
    "prior_steps": _integer(1, 10_000_000, "training steps of the diffusion prior"),
    "prior_batch_size": _integer(2, 1_000_000, "images per step of the prior's training"),
    "prior_lr": _real(0, 100, "learning rate of the prior's training", above=True),
    "prior_folder": _text(
        r"[^\x00\n]*", "the path of a folder, or empty", "a diffusers model to use as prior instead of training one"
    ),
    "solver": _choice("solver", ("ddim", "dpmsolver++", "unipc"), "sampler of the prior"),
    "num_steps": _integer(1, 1000, "denoising steps"),
    "gate": _choice("gate", ("entropy", "normalized_entropy", "constant"), "what opens the guidance of a sample"),
    "lambda_max": _real(0, 1e6, "strongest guidance"),
    "eta": _real(0, 1e6, "step share of the guidance"),
    "entropy_threshold": _real(0, 100, "entropy at which the gate is half open, in the gate's unit"),
    "sharpness": _real(0, 1e6, "steepness of the gate", above=True),
    "bn_weight": _real(0, 1e6, "weight of the batch-norm loss"),
    # online data-free distillation
    "images_per_epoch": _integer(1, 1_000_000, "new images a round"),
    "student_steps": _integer(1, 1_000_000, "student steps a round"),
    "buffer_size": _integer(1, 10_000_000, "images the replay buffer holds"),
    "small_buffer": _integer(1, 10_000_000, "images of the small buffer it is compared with"),
}


def _buffers(values: Mapping) -> str | None:
    if values.get("small_buffer", 0) >= values.get("buffer_size", float("inf")):
        return f"small_buffer must be below buffer_size, got {values['small_buffer']} and {values['buffer_size']}"


def _modes(values: Mapping) -> str | None:
    modes = values.get("modes", ["anew", "reuse_common"])
    if "anew" not in modes or len(modes) < 2:
        return f"modes must hold anew and at least one mode to compare with it, got {', '.join(modes)}"


def _guidance(values: Mapping) -> str | None:
    if values.get("ce_weight") == 0 and values.get("bn_weight") == 0 and values.get("lambda_max"):
        return "ce_weight and bn_weight are both 0, which leaves guidance nothing to follow; set lambda_max to 0 for plain sampling"


def _thresholds(values: Mapping) -> str | None:
    found = [values[name] for name in ("confidence_low", "confidence_middle", "confidence_top") if name in values]
    if found != sorted(set(found)):
        return f"confidence_low, confidence_middle and confidence_top must rise, got {', '.join(map(str, found))}"


def _draws(values: Mapping) -> str | None:
    if values.get("num_draw", 0) > values.get("num_crops", float("inf")):
        return f"num_draw must be at most num_crops, got {values['num_draw']} and {values['num_crops']}"


def _evolution(values: Mapping) -> str | None:
    found = [values[name] for name in ("tournament", "population", "budget") if name in values]
    if found != sorted(found):
        return f"tournament, population and budget must not fall, got {', '.join(map(str, found))}"


CONFLICTS = (_buffers, _modes, _guidance, _thresholds, _draws, _evolution)


# --- checking values -----------------------------------------------------------------------------------------------------------


class Parameters(dict):
    """Checked values by name; `p.epochs` is `p["epochs"]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"no parameter {name!r} here; there are {', '.join(self)}. Run the parameters cell again?"
            ) from None


@cache
def _adapter(name: str) -> TypeAdapter:
    return TypeAdapter(PARAMETERS[name].type)


def check(name: str, value: Any) -> Any:
    """The value of one parameter in its own type, or `InputError`."""
    check_name("parameter", name, PARAMETERS)
    if value is None and PARAMETERS[name].optional:
        return None
    try:
        return _adapter(name).validate_python(value)
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # an unknown name: that sentence says it better
            sentence = str(cause)
            raise InputError(sentence if sentence.startswith(f"unknown {name} ") else f"{name}: {sentence}") from None
        raise InputError(f"{name} must be {PARAMETERS[name].allowed}, got {_shown(value)}") from None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        text = f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def resolve(values: Mapping) -> Parameters:
    """Check all values and how they go together.

    Raises:
        InputError: unknown name, wrong type, out of range, unknown choice, or values that exclude each other.

    >>> resolve({"epochs": "20", "lr": "1e-1"})
    {'epochs': 20, 'lr': 0.1}
    """
    found = Parameters((name, check(name, value)) for name, value in values.items())
    for conflict in CONFLICTS:
        if problem := conflict(found):
            raise InputError(problem)
    return found


def collect(namespace: Mapping) -> Parameters:
    """The checked parameters among a notebook's globals: plain values under names of the table, in the order of the table."""
    plain = {
        name: namespace[name]
        for name, line in PARAMETERS.items()
        if isinstance(namespace.get(name), bool | int | float | str | list)
        or (name in namespace and namespace[name] is None and line.optional)
    }
    if not plain:
        raise InputError("no parameters found; run the parameters cell first")
    return resolve(plain)


# --- the parameters cell of a notebook -----------------------------------------------------------------------------------------
