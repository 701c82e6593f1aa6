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

from kdnb import choices, data, models
from kdnb.errors import InputError, check_name
from kdnb.live import check_names, one_sentence_errors
from kdnb.methods import METHODS, parse_method
from kdnb.models.names import parse_foreign


class Parameter(NamedTuple):
    """One line of the table of parameters.

    Attributes:
        annotation: as a notebook writes it.
        type: for pydantic, with the range.
        allowed: the same in words.
        help: what it is for.
        optional: a notebook may annotate it `Optional[...]`, and None then means what that notebook's comment says.
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
    low: int, high: int, help: str, order: Callable[[list], list] = sorted, words: str = "rising", least: int = 0
) -> Parameter:
    """A list of different whole numbers, `least` of them or more; rising unless `order` says otherwise."""

    def ordered(values: list[int]) -> list[int]:
        if len(set(values)) != len(values) or list(values) != order(values):
            raise ValueError("order")
        return values

    kind = Annotated[
        list[Annotated[int, BeforeValidator(_number), Field(ge=low, le=high)]],
        Field(min_length=least, max_length=100),
        AfterValidator(ordered),
    ]
    words = f"{words} whole numbers from {low} to {high}" + (", one or more" if least else "")
    return Parameter("list[int]", kind, f"a list of {words}", help)


def _scales(help: str) -> Parameter:
    """Regions per side: every scale is pooled from a grid of 4 x 4 cells, whatever the size of the final map."""

    def of_the_grid(values: list[int]) -> list[int]:
        if any(value not in (1, 2, 4) for value in values):
            raise ValueError("grid")
        return values

    line = _integers(1, 4, help, least=1)
    return line._replace(
        type=Annotated[line.type, AfterValidator(of_the_grid)],
        allowed="a rising list of 1, 2 and 4, the regions per side that a grid of 4 x 4 cells can be cut into",
    )


def _depths(help: str) -> Parameter:
    """Depths of CIFAR ResNets."""

    def of_stages(values: list[int]) -> list[int]:
        if any((value - 2) % 6 for value in values):
            raise ValueError("depth")
        return values

    line = _integers(8, 10_000, help, least=1)
    return line._replace(
        type=Annotated[line.type, AfterValidator(of_stages)],
        allowed="a rising list of depths 6n + 2 (8, 14, 20, ...)",
    )


def _methods(help: str) -> Parameter:
    """A list of methods, each with hyper-parameters over its published ones: `["kd", "dkd beta:2"]`."""

    def known(value: str) -> str:
        parse_method(value)
        return value

    kind = Annotated[list[Annotated[str, AfterValidator(known)]], Field(max_length=100)]
    return Parameter("list[str]", kind, "a list of methods, as in ['kd', 'dkd beta:2 warmup:0']", help)


def _different(known: Callable[[str], str], allowed: str, help: str, least: int = 1) -> Parameter:
    """A list of `least` or more different names, each of them known."""

    def different(values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("twice")
        return [known(value) for value in values]

    kind = Annotated[list[str], Field(min_length=least, max_length=100), AfterValidator(different)]
    return Parameter("list[str]", kind, f"a list of different names {allowed}", help)


def _choices(kind: str, names: Iterable[str], help: str, least: int = 1) -> Parameter:
    names = list(names)
    return _different(lambda value: check_name(kind, value, names), f"out of {', '.join(names)}", help, least)


def _models(help: str) -> Parameter:
    return _different(models.known, f"of models, each {_MODEL_NAMES}", help)


def _path(help: str) -> Parameter:
    return _text(r"[^\x00\n]*", "the path of a file, or empty", help)


def _paths(help: str) -> Parameter:
    kind = Annotated[list[Annotated[str, Field(pattern=r"^[^\x00\n]+$", max_length=4096)]], Field(max_length=100)]
    return Parameter("list[str]", kind, "a list of paths of files", help)


def _dataset(help: str, empty: bool = False) -> Parameter:
    def known(name: str) -> str:
        return name if empty and not name else data.known(name)

    allowed = f"one of {', '.join(data.DATASETS)}, folder:PATH or FILE.py:function{', or empty' * empty}"
    return Parameter("str", Annotated[str, Field(max_length=4096), AfterValidator(known)], allowed, help)


def _flag(help: str) -> Parameter:
    return Parameter("bool", Annotated[bool, Field(strict=True)], "true or false", help)


def _optional(parameter: Parameter) -> Parameter:
    return parameter._replace(optional=True)


def _group(name: str, members: Mapping[str, Parameter], help: str) -> Parameter:
    """Several settings in one text, `schedule:cosine ema_decay:0.999`, for what few runs change; `group` reads it.

    Each member is checked like a parameter of its own.
    """

    def readable(text: str) -> str:
        _read_group(name, members, text)
        return text

    example = ", ".join(members)
    kind = Annotated[str, Field(max_length=4096), AfterValidator(readable)]
    return Parameter("str", kind, f"a text of name:value pairs out of {example}", help)


def _read_group(name: str, members: Mapping[str, Parameter], text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in text.split():
        key, colon, value = pair.partition(":")
        if not colon or key in found:
            raise InputError(f"write name:value name:value ..., each name once; got {_shown(pair)}")
        line = members[check_name(f"setting of {name}", key, members)]
        try:
            found[key] = TypeAdapter(line.type).validate_python({"true": True, "false": False}.get(value, value))
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            known = isinstance(cause, InputError)
            raise InputError(str(cause) if known else f"{key} must be {line.allowed}, got {value[:80]!r}") from None
    return found


# --- settings that few runs change ---------------------------------------------------------------------------------------------

# fields of `kdnb.training.recipe.Recipe` beside those that are parameters themselves
TRAINING = {
    "schedule": _choice("schedule", choices.SCHEDULES, "how the learning rate falls"),
    "lr_gamma": _real(0, 1, "factor of the learning rate at a milestone", above=True),
    "final_lr": _real(0, 100, "learning rate at the end of a cosine"),
    "warmup_epochs": _real(0, 1000, "epochs of a linear warm-up"),
    "momentum": _real(0, 0.9999, "momentum of SGD"),
    "nesterov": _flag("Nesterov's momentum"),
    "clip_norm": _real(0, 1e6, "limit of the global gradient norm", above=True),
    "precision": _choice("precision", choices.PRECISIONS, "number format of autocast"),
    "layout": _choice("layout", choices.LAYOUTS, "memory format of images"),
    "compile": _flag("whether torch compiles the student"),
    "ema_decay": _real(0, 0.999999, "decay of the averaged weights that are evaluated and kept", above=True),
    "eval_every": _integer(1, 100_000, "epochs between evaluations"),
}
# fields of `kdnb.studies.generator_loop.GeneratorConfig`, likewise
LOOP = {
    "inner_steps": _integer(1, 100_000, "generator steps a round"),
    "latent_dim": _integer(1, 100_000, "length of the latent vector"),
    "generator_width": _integer(1, 10_000, "channels of the generator's last convolution"),
    "lr_latent": _real(0, 100, "learning rate of the latents in the inner steps", above=True),
    "bn_momentum": _real(0, 0.999, "share of earlier batches in the batch-norm statistics"),
    "buffer_size": _integer(1, 10_000_000, "images the pool holds"),
    "weight_decay": _real(0, 10, "L2 coefficient of the student"),
    "final_lr": _real(0, 100, "learning rate of the student after the last round"),
    "perturbation_width": _integer(1, 10_000, "channels of the perturbation network's first convolution"),
    "perturbation_blocks": _integer(0, 100, "residual blocks of the perturbation network"),
    "kd_weight": _real(0, 1e6, "alpha, weight of distillation in the hard losses"),
    "ce_weight": _real(0, 1e6, "beta, weight of the teacher's hard labels there"),
    "epsilon": _real(0, 255, "bound of an adversarial perturbation, in 1/255 of the pixel range"),
    "probability": _real(0, 1, "p_a, share of images that are attacked whatever happens"),
    "twin_branches": _flag("whether the second branch starts as a copy of the first, as released"),
    "meta_update": _choice("meta update", choices.META_UPDATES, "step of the generator itself"),
}
# fields of `kdnb.samplers.cadr.GuidanceConfig` (`kdnb.studies.guidance.guidance_from` knows the two that are spelled otherwise)
GUIDANCE = {
    "gate": _choice("gate", choices.GATES, "what opens the guidance of a sample"),
    "lambda_max": _real(0, 1e6, "strongest guidance"),
    "eta": _real(0, 1e6, "step share of the guidance"),
    "entropy_threshold": _real(0, 100, "entropy at which the gate is half open, in the gate's unit"),
    "sharpness": _real(0, 1e6, "steepness of the gate", above=True),
    "ce_weight": _real(0, 1e6, "weight of the label loss (joint), or length of its term (separate)"),
    "bn_weight": _real(0, 1e6, "weight of the batch-norm loss (joint), or length of its term (separate)"),
    "ce_reduction": _choice(
        "reduction", choices.REDUCTIONS, "whether the label loss is summed or averaged over a batch"
    ),
    "squared_norms": _flag("whether the batch-norm loss squares its norms"),
    "xi": _real(0, 1, "guard of the normalisation of the gradient", above=True),
    "views": _integer(1, 64, "shifted and noised views the class gradient is averaged over, the image among them"),
    "variant": _choice("variant", choices.VARIANTS, "sign and clamp: corrected, or the reference's, as published"),
}
# fields of `kdnb.studies.fast_ad.OnlineConfig`, and the data set's augmentation as one of them
ONLINE = {
    "temperature": _real(0, 1000, "softmax temperature tau", above=True),
    "momentum": _real(0, 0.9999, "momentum of SGD"),
    "weight_decay": LOOP["weight_decay"],
    "lr_gamma": TRAINING["lr_gamma"],
    "layout": TRAINING["layout"],
    "augment": _flag("whether images for the student are cropped and flipped as the data set's recipes do"),
    "eval_every": _integer(1, 100_000, "rounds between evaluations"),
}
GROUPS = {"training": TRAINING, "loop": LOOP, "guidance": GUIDANCE, "online": ONLINE}


# --- the table -----------------------------------------------------------------------------------------------------------------

PARAMETERS: dict[str, Parameter] = {
    # where and how a run happens
    "seed": _integer(0, 2**32 - 1, "random seed"),
    "seeds": _integers(0, 2**32 - 1, "random seeds, one run each", order=list, words="different", least=1),
    "device": _text(r"cpu|mps|cuda(:[0-9]{1,3})?", "cpu, cuda, cuda:N or mps", "torch device"),
    "threads": _integer(0, 1024, "CPU threads of torch, 0 for torch's own choice"),
    "layout": TRAINING["layout"],
    # data
    "dataset": _optional(_dataset("data set")),
    "next_dataset": _dataset("data set of the second task, empty for the same one", empty=True),
    "image_size": _integer(8, 256, "height and width in pixels"),
    "num_samples": _integer(1, 1_000_000, "images to make"),
    # networks
    "model": _model("architecture"),
    "teacher": _optional(_model("teacher architecture")),
    "teachers": _models("teacher architectures to compare"),
    "student": _optional(_model("student architecture")),
    "judge": _model("architecture of the independent judge"),
    "poor_teacher": _model("architecture of the teacher that is trained poorly"),
    "teacher_checkpoint": _path("teacher weights to use instead of training a teacher"),
    "teacher_checkpoints": _paths("weights of the teachers, in their order, to use instead of training them"),
    "next_teacher_checkpoint": _path("weights of the second task's teacher"),
    "teacher_split": _choice("split", choices.SPLITS, "images a teacher is trained on: the private half, or all"),
    "split": _choice("split", choices.SPLITS, "images all networks are trained on: the private half, or all"),
    # training
    "epochs": _integer(1, 100_000, "passes over the data, or rounds"),
    "teacher_epochs": _integer(0, 100_000, "passes when a teacher is trained, 0 for those of the data set's recipe"),
    "student_epochs": _integer(1, 100_000, "passes over the data when a student is trained"),
    "batch_size": _integer(2, 1_000_000, "images per step"),
    "lr": _real(0, 100, "learning rate (peak)", above=True),
    "weight_decay": _real(0, 10, "L2 coefficient"),
    "milestones": _integers(0, 100_000, "epochs after which the learning rate falls"),
    "clip_norm": _optional(TRAINING["clip_norm"]),
    "training": _group("training", TRAINING, "more of the recipe: schedule, precision, averaged weights, ..."),
    # distillation
    "method": _choice("method", METHODS, "distillation method"),
    "others": _methods("further methods to compare with"),
    "temperature": _optional(_real(0, 1000, "softmax temperature tau", above=True)),
    "kd_weight": _optional(_real(0, 1e6, "weight of the distillation term")),
    "ce_weight": _optional(_real(0, 1e6, "weight of the label term")),
    "scales": _optional(_scales("regions per side of each scale")),
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
    "label_mode": _text(
        r"ori|hard|smoothing|marginal_(smoothing|renorm)_k[1-9][0-9]{0,3}",
        "ori, hard, smoothing, marginal_smoothing_kN or marginal_renorm_kN",
        "how stored labels are compressed",
    ),
    "num_crops": _integer(1, 10_000, "crops stored of each image"),
    "num_draw": _integer(1, 10_000, "stored crops of an image in a batch"),
    "crop_low": _real(0, 1, "smallest share of the area that a stored crop shows", above=True),
    "crop_high": _real(0, 1, "largest share of the area that a stored crop shows", above=True),
    "confidence_low": _real(0, 1, "teacher confidence below which a crop is left out"),
    "confidence_middle": _real(0, 1, "teacher confidence from which a crop keeps its soft label"),
    "confidence_top": _real(0, 1, "teacher confidence above which a crop is left out as too easy"),
    # novel classes
    "num_known": _integer(2, 10_000, "classes with labels; the others are to be discovered"),
    "num_heads": _integer(1, 100, "output heads for the novel classes"),
    "head_hidden": _integer(1, 100_000, "hidden width of each head"),
    "head_width": _integer(1, 100_000, "output width of each head"),
    "num_large": _integer(1, 100, "views of most of an image"),
    "num_small": _integer(0, 100, "views of a part of an image"),
    "pretrain_epochs": _integer(1, 100_000, "passes over the known classes before discovery"),
    "pretrain_batch_size": _integer(2, 1_000_000, "images per step on the known classes"),
    "pretrain_lr": _real(0, 100, "learning rate (peak) on the known classes", above=True),
    "relation_weight": _real(0, 1e6, "weight of the class relation term"),
    # architecture search
    "depths": _depths("depths in the space that is trained in full, 6n + 2"),
    "widths_first": _integers(1, 10_000, "channels of the first stage in that space", least=1),
    "widths_second": _integers(1, 10_000, "channels of the second stage in that space", least=1),
    "search_depths": _depths("depths in the space that is searched, 6n + 2"),
    "search_widths_first": _integers(1, 10_000, "channels of the first stage in the space that is searched", least=1),
    "search_widths_second": _integers(1, 10_000, "channels of the second stage in the space that is searched", least=1),
    "width_third": _integer(1, 10_000, "channels of the third stage, those of the teacher's"),
    "stage_blocks": _integers(1, 1000, "blocks of a stage, each stage for itself, in place of a depth for all"),
    "score_images": _integer(2, 100_000, "images in the batch that an architecture is scored on"),
    "cap": _real(0, 1, "most parameters an architecture may have, as a share of the largest in the space", above=True),
    "population": _integer(1, 100_000, "living individuals of the evolution"),
    "tournament": _integer(1, 100_000, "individuals compared for parenthood"),
    "budget": _integer(1, 10_000_000, "individuals of the evolution in all"),
    # distillation from a generator; attacks
    "warmup": _integer(0, 100_000, "rounds before the student starts"),
    "next_teacher": _model("teacher architecture of the task that reuses the generator"),
    "next_epochs": _integer(1, 100_000, "rounds of the task that reuses the generator"),
    "modes": _choices(
        "generator mode",
        choices.GENERATOR_MODES,
        "initial states and rates of the generator",
    ),
    "hard_losses": _choices("hard loss", choices.HARD_LOSSES, "kinds of hard loss to compare"),
    "branch_rule": _choice("branch rule", choices.BRANCH_RULES, "which branch of the generator is reused"),
    "branch_rules": _choices(
        "branch rule", choices.BRANCH_RULES, "rules, by which a branch of the generator is chosen for reuse, to compare"
    ),
    "reuse_path": _path("generator of an earlier run, checkpoints/generator.safetensors there, that is reused"),
    "synthesizers": _choices(
        "data-free method", choices.SYNTHESIZERS, "data-free methods to compare, empty for all", least=0
    ),
    "reuse_with": _choices(
        "data-free method with a generator to reuse",
        choices.REUSABLE_METHODS,
        "data-free methods whose generator is reused for the next teacher",
        least=0,
    ),
    "other_synthesizers": _choices(
        "data-free method", choices.DATAFREE_METHODS, "further data-free methods whose images are taken", least=0
    ),
    "synthetic": _flag("whether images of a data-free generator are looked at as well"),
    "loop": _group("loop", LOOP, "more constants of the loop: latent, width of the generator, ..."),
    "lr_generator": _real(0, 100, "learning rate of the generator's inner steps", above=True),
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
        r"[^\x00\n]*",
        "the path of a folder or file, or empty",
        "a diffusers model, or a file of weights for `prior`, to use instead of training one",
    ),
    "prior": _choice("prior", choices.PRIORS, "architecture of the prior, where one is trained"),
    "prior_domain": _choice("domain", choices.DOMAINS, "what the prior has seen, against the teacher's data"),
    "domains": _choices("domain", choices.DOMAINS, "what the priors that are compared have seen"),
    "solver": _choice("solver", choices.SOLVERS, "sampler of the prior"),
    "num_steps": _integer(1, 1000, "denoising steps"),
    "rule": _choice("rule", choices.RULES, "one gradient of both losses (joint), or each at its own length (separate)"),
    "guidance": _group("guidance", GUIDANCE, "constants of the rule, over those it was published or tried with"),
    "balanced": _flag("whether the classes asked for take turns, rather than being drawn"),
    "inception_fid": _flag("whether the Frechet distance is taken in Inception's features as well"),
    "bn_weight": _real(0, 1e6, "weight of the batch-norm loss"),
    # online data-free distillation
    "online": _group("online", ONLINE, "more constants of the loop: temperature, weight decay, augmentation, ..."),
    "images_per_epoch": _integer(1, 1_000_000, "new images a round"),
    "student_steps": _integer(1, 1_000_000, "student steps a round"),
    "buffer_size": _integer(1, 10_000_000, "images the replay buffer holds"),
    "small_buffer": _integer(1, 10_000_000, "images of the small buffer it is compared with"),
}


def _buffers(values: Mapping) -> str | None:
    if values.get("small_buffer", 0) >= values.get("buffer_size", float("inf")):
        return f"small_buffer must be below buffer_size, got {values['small_buffer']} and {values['buffer_size']}"
    return None


def _modes(values: Mapping) -> str | None:
    modes = values.get("modes", ["anew", "reuse_common"])
    if "anew" not in modes or len(modes) < 2:
        return f"modes must hold anew and at least one mode to compare with it, got {', '.join(modes)}"
    return None


def _guidance(values: Mapping) -> str | None:
    given = group(values, "guidance") if "guidance" in values else {}
    if given.get("ce_weight") == 0 and given.get("bn_weight") == 0 and given.get("lambda_max") != 0:
        return "ce_weight and bn_weight are both 0, which leaves guidance nothing to follow; set lambda_max to 0 for plain sampling"
    if given.get("variant") == "reference" and values.get("rule", "joint") != "joint":
        return (
            f"variant:reference is the published joint rule's arithmetic; with rule {values['rule']} it has no meaning"
        )
    if given.get("variant") == "reference" and values.get("solver", "ddim") != "ddim":
        return f"variant:reference is the published arithmetic of ddim; it is not defined for {values['solver']}"
    return None


def _thresholds(values: Mapping) -> str | None:
    found = [values[name] for name in ("confidence_low", "confidence_middle", "confidence_top") if name in values]
    if found != sorted(set(found)):
        return f"confidence_low, confidence_middle and confidence_top must rise, got {', '.join(map(str, found))}"
    return None


def _draws(values: Mapping) -> str | None:
    if values.get("num_draw", 0) > values.get("num_crops", float("inf")):
        return f"num_draw must be at most num_crops, got {values['num_draw']} and {values['num_crops']}"
    return None


def _evolution(values: Mapping) -> str | None:
    found = [values[name] for name in ("tournament", "population", "budget") if name in values]
    if found != sorted(found):
        return f"tournament, population and budget must not fall, got {', '.join(map(str, found))}"
    return None


def _classes(values: Mapping) -> str | None:
    """Numbers that a data set's count of classes bounds."""
    dataset = values.get("dataset")
    classes = data.class_count(dataset) if dataset else None
    if classes is None:  # nobody knows before the data are there
        return None
    if (values.get("omitted_class") or 0) >= classes:
        return f"omitted_class must be one of {dataset}'s classes 0 to {classes - 1}, got {values['omitted_class']}"
    if values.get("num_known", 0) > classes - 2:
        return f"num_known must leave 2 of {dataset}'s {classes} classes to be discovered, got {values['num_known']}"
    if values.get("num_top", 0) > classes:
        return f"num_top must be at most the {classes} classes of {dataset}, got {values['num_top']}"
    kept = re.search(r"_k(\d+)$", values.get("label_mode", ""))
    if kept and int(kept[1]) > classes:
        return f"label_mode can keep at most the {classes} classes of {dataset}, got {values['label_mode']}"
    return None


_NEED_TENSORS = {"prior_steps", "max_flips", "vae_epochs", "generations", "num_crops", "num_known", "score_images"}


def _streamed(values: Mapping) -> str | None:
    spec = data.DATASETS.get(values.get("dataset") or "")
    if spec is not None and spec.streamed and _NEED_TENSORS & set(values):
        whole = ", ".join(name for name, one in data.DATASETS.items() if not one.streamed)
        return f"{values['dataset']} stays on disk, and this notebook needs all images in memory; it can have {whole}"
    return None


def _image_size(values: Mapping) -> str | None:
    makes_images = {"modes", "prior_steps", "attack_steps", "synthesizers"} & set(
        values
    )  # a generator, a prior, or both
    if makes_images and values.get("image_size", 4) % 4:
        return (
            f"image_size must be a multiple of 4, because images are made in two doublings, got {values['image_size']}"
        )
    return None


def _next_dataset(values: Mapping) -> str | None:
    names = values.get("dataset", ""), values.get("next_dataset", "")
    if all(name in data.DATASETS for name in names):
        first, second = (data.DATASETS[name].channels for name in names)
        if first != second:
            return f"a generator of {names[0]} images ({first} channels) can't be reused for {names[1]} ({second})"
    return None


def _rounds(values: Mapping) -> str | None:
    for name in ("epochs", "next_epochs"):
        if "modes" in values and values.get(name, float("inf")) <= values.get("warmup", -1):
            return f"{name} must be above warmup, or no student is trained, got {values[name]} and {values['warmup']}"
    return None


def _milestones(values: Mapping) -> str | None:
    name = next((name for name in ("student_epochs", "epochs") if name in values), None)
    if name and values.get("milestones") and values["milestones"][-1] > values[name]:
        return f"milestones must not lie beyond {name} = {values[name]}, got {values['milestones']}"
    schedule = group(values, "training").get("schedule", "multistep") if "training" in values else "multistep"
    if values.get("milestones") and schedule != "multistep":
        return f"milestones are for the schedule multistep; with {schedule} the list must be empty"
    if "training" in values and not values.get("milestones") and "schedule:multistep" in values["training"].split():
        return "the schedule multistep needs milestones"
    return None


def _layout(values: Mapping) -> str | None:
    """torch on a CPU kills the process in the backward pass of a narrow 1 x 1 convolution with stride in channels_last."""
    further = group(values, "training") if "training" in values else {}
    layout = further.get("layout", values.get("layout"))
    if layout != "channels_last" or values.get("device") != "cpu":
        return None
    narrow = [values[name] for name in ("student", "model") if name in values and _is_narrow(values[name])]
    widths = [
        width for name, line in values.items() if name.startswith(("widths_", "search_widths_")) for width in line
    ]
    if narrow or min(widths, default=8) < 8:
        what = narrow[0] if narrow else "the search space"
        return (
            f"layout must be contiguous on a CPU: {what} has stages under 8 channels, and channels_last crashes there"
        )
    return None


def _is_narrow(model: str) -> bool:
    if parse_foreign(model):  # its widths are known when it is made
        return False
    spec = models.find(model)
    return spec.module == "resnet" and min(spec.kwargs["widths"][1:3]) < 8


def _other_scales(values: Mapping) -> str | None:
    for text in values.get("others", []):
        if scales := parse_method(text)[1].get("scales"):
            try:
                check("scales", scales)
            except InputError as error:
                return f"others: {error}"
    return None


def _views(values: Mapping) -> str | None:
    if values.get("num_large", 2) + values.get("num_small", 0) < 2:
        return "num_large and num_small must give two views at least"
    return None


def _crops(values: Mapping) -> str | None:
    if values.get("crop_low", 0) > values.get("crop_high", 1):
        return f"crop_low must be at most crop_high, got {values['crop_low']} and {values['crop_high']}"
    if values.get("student_epochs", 0) % values.get("num_draw", 1):
        return f"student_epochs must be a multiple of num_draw, got {values['student_epochs']} and {values['num_draw']}"
    if values.get("batch_size", 0) % values.get("num_draw", 1):
        return f"batch_size must be a multiple of num_draw, got {values['batch_size']} and {values['num_draw']}"
    return None


def _checkpoints(values: Mapping) -> str | None:
    given, wanted = values.get("teacher_checkpoints"), values.get("teachers", [])
    if given and len(given) != len(wanted):
        return f"teacher_checkpoints must name one file for each of the {len(wanted)} teachers, got {len(given)}"
    return None


def _public_images(values: Mapping) -> str | None:
    drawn = set(values.get("synthesizers") or choices.DIFFUSION_SOURCES) & set(choices.DIFFUSION_SOURCES)
    own_prior = "prior_steps" in values and drawn and not values.get("prior_folder")
    if own_prior and values.get("teacher_split") == "train" and not values.get("teacher_checkpoints"):
        return (
            "teacher_split must be private where the prior is trained here, on public images that the teacher must not have "
            "seen; or give prior_folder"
        )
    return None


CONFLICTS = (
    _buffers,
    _modes,
    _guidance,
    _thresholds,
    _draws,
    _evolution,
    _classes,
    _streamed,
    _image_size,
    _next_dataset,
    _rounds,
    _milestones,
    _layout,
    _other_scales,
    _views,
    _crops,
    _checkpoints,
    _public_images,
)


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


def group(values: Mapping, name: str) -> dict[str, Any]:
    """The settings that a group parameter holds.

    >>> group({"training": "schedule:cosine ema_decay:0.999"}, "training")
    {'schedule': 'cosine', 'ema_decay': 0.999}
    """
    return _read_group(name, GROUPS[name], values[name])


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
    """The checked parameters among a notebook's globals: plain values under names of the table, in the order of the table.

    Raises:
        InputError: as `resolve`; no parameter at all, or a name in the parameters cell that is none (`kdnb.live`).
    """
    one_sentence_errors()
    check_names(namespace, PARAMETERS)
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
