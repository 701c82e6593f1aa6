"""Find by itself what distillation looks at inside a network that is not ours: one pass on random images, every module watched."""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.base import Classifier, Normalize
from kdnb.models.foreign import POOLED, FeatureTap

_BATCH = 2


class Event(NamedTuple):
    """One module that ran.

    Attributes:
        name, module: of the network.
        output: (B, C, H, W), the square map it made; None where it made none.
        tokens: whether it made three or more dimensions that are no square map.
        intact: whether nobody overwrote its output since.
        height_in: height of its input, in pixels.
    """

    name: str
    module: nn.Module
    output: Tensor | None
    tokens: bool
    intact: bool
    height_in: int

    @property
    def map(self) -> Tensor:
        assert self.output is not None  # only events with a map are asked
        return self.output

    @property
    def height(self) -> int:
        return self.map.shape[2]


class Trace(NamedTuple):
    """One pass through a network.

    Attributes:
        events: in the order in which modules finished.
        head: name of the last linear layer; None where there is none.
        pooled: (B, D), what entered it.
        logits: (B, K).
    """

    events: list[Event]
    head: str | None
    pooled: Tensor | None
    logits: Tensor


# --- any module as a classifier ------------------------------------------------------------------------------------------------


def as_classifier(model: nn.Module, image_shape: Sequence[int], **taps) -> nn.Module:
    """The model itself where it can give features, else wrapped; `taps` as `wrap`."""
    return model if gives_features(model) else wrap(model, image_shape, **taps)


def gives_features(model: nn.Module) -> bool:
    """Whether its forward pass takes `return_features`."""
    return isinstance(model, Classifier) or "return_features" in inspect.signature(model.forward).parameters


def wrap(
    model: nn.Module,
    image_shape: Sequence[int],
    layers: Sequence[str] | None = None,
    final: str | None = None,
    pooled: str | None = None,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FeatureTap:
    """A classifier of any origin with features; what is not named is found.

    `layers`: the last output of each resolution on the way to the head, largest map first. `head`: the nn.Linear whose output are the
    logits. `final`: the map whose mean over positions is exactly what enters the head; where there is none (a class token, a hidden
    layer after pooling) the pooled vector stands in as a map of 1 x 1, so that a head applied to the final map always gives the
    logits.

    Args:
        model: (B, C, H, W) -> (B, K); its mode, statistics and the random state stay as they are.
        image_shape: (C, H, W) of the images it will see.
        layers, final, pooled, head: as `FeatureTap`, in place of what would be found.
        mean, std: as `kdnb.models.build`; None: the model takes images as they are.
    Raises:
        InputError: the model does not run on such images or does not return logits, or a named final map that does not suit the head.
    """
    trace = _watch(model, image_shape, head)
    trunk = _trunk(trace.events)
    note = ""
    if final is None:
        found = _averaged(trunk, trace.pooled)
        final = found.name if found else POOLED
        note = "" if found else _why(trunk, trace)
    elif final != POOLED and trace.pooled is not None:
        _check_final(final, trace)
    if layers is None:
        layers = _stages(trunk, final)
    head = (trace.head or "") if head is None else head
    tap = FeatureTap(model, layers, pooled=pooled, head=head, final=final, note=note)
    if mean is not None and std is not None:
        tap.normalize = Normalize(mean, std).to(next(model.parameters()).device)
    return tap


# --- the pass ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _watch(model: nn.Module, image_shape: Sequence[int], head: str | None) -> Trace:
    like = next((one for one in model.parameters() if one.is_floating_point()), None)
    if like is None:
        raise InputError(f"{type(model).__name__} has no parameters, so there is nothing to train or to imitate")
    images = torch.rand(_BATCH, *image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen: dict[str, tuple] = {}  # a module that runs twice counts where it ran last
    entered: dict[str, Tensor] = {}

    def after(name: str, module: nn.Module, args: tuple, output) -> None:
        seen.pop(name, None)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(module, nn.Linear) and first is not None:
            entered[name] = first
        tensor = output if isinstance(output, Tensor) else None
        seen[name] = (module, tensor, None if tensor is None else tensor._version, _height(first))

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: after(name, module, args, output))
        for name, module in model.named_modules()
        if name
    ]
    modes = [(module, module.training) for module in model.modules()]
    shape = "x".join(map(str, image_shape))
    try:
        logits = model.eval()(images.to(like.device, like.dtype))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{type(model).__name__} does not run on images of {shape}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != _BATCH:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{type(model).__name__} must give logits (B, K), it gives {given} for {_BATCH} images of {shape}"
        )
    events = []
    for name, (module, tensor, version, height) in seen.items():
        tokens = tensor is not None and tensor.dim() > 2 and not _is_map(tensor)
        intact = tensor is not None and tensor._version == version
        events.append(Event(name, module, tensor if _is_map(tensor) else None, tokens, intact, height))
    if head is None:
        head = next((name for name in reversed(entered) if _same(seen[name][1], logits)), None)
    return Trace(events, head, None if head is None else entered.get(head), logits)


def _height(tensor: Tensor | None) -> int:
    return tensor.shape[2] if tensor is not None and _is_map(tensor) else 0


def _is_map(tensor: Tensor | None) -> bool:
    """(B, C, H, W) with H = W, as square images make it; (B, H, W, C) of window transformers is told apart by that."""
    return tensor is not None and tensor.dim() == 4 and len(tensor) == _BATCH and tensor.shape[2] == tensor.shape[3]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# --- what was found ------------------------------------------------------------------------------------------------------------


def _trunk(events: list[Event]) -> list[Event]:
    """Maps on the way from image to head, without what happens inside blocks and after global pooling.

    A module is looked into where it is a chain (nn.Sequential), a whole part of the network (it shrinks maps fourfold or more, or gives
    vectors, or several tensors); else it is a block, and only its output counts: one that gives tokens hides its attention maps.
    """
    by_name = {event.name: event for event in events}

    def open_(name: str) -> bool:
        event = by_name.get(name)
        if event is None or isinstance(event.module, nn.Sequential):
            return True
        if event.output is None:
            return not event.tokens
        return event.height_in >= 4 * event.height and event.height_in - event.height >= 8

    trunk, lowest = [], None
    for event in events:
        parents = ["".join(event.name[:end]) for end, letter in enumerate(event.name) if letter == "."]
        if event.output is None or not all(open_(parent) for parent in parents):
            continue
        path = [*parents, event.name]
        grows = lowest is not None and event.height > lowest
        if grows or (event.height == 1 and any("Adaptive" in _kind(by_name[name]) for name in path if name in by_name)):
            break  # global pooling, or what spreads a map out again before a hidden layer
        lowest = event.height
        trunk.append(event)
    return trunk


def _kind(event: Event) -> str:
    return type(event.module).__name__


def _averaged(trunk: list[Event], pooled: Tensor | None) -> Event | None:
    """The map whose mean over positions is what enters the head: the largest such (a pooled one is its own mean), the last of that size."""
    if pooled is None:
        return next((event for event in reversed(trunk) if event.intact and "Pool" not in _kind(event)), None)
    fitting = [one for one in trunk if one.intact and _same(one.map.mean((2, 3)), pooled.flatten(1))]
    return max(enumerate(fitting), key=lambda pair: (pair[1].height, pair[0]))[1] if fitting else None


def _stages(trunk: list[Event], final: str) -> list[str]:
    """The last output of each resolution, up to the final map."""
    names = [event.name for event in trunk]
    upto = names.index(final) + 1 if final in names else len(names)
    last = {event.height: event.name for event in trunk[:upto] if event.intact}
    return list(last.values())


def _why(trunk: list[Event], trace: Trace) -> str:
    """Why no map is averaged into the head, as the end of a sentence."""
    if trace.pooled is None or not trunk:
        return "it has no map before its head"
    channels, width = trunk[-1].map.shape[1], trace.pooled.flatten(1).shape[1]
    if len({event.height for event in trunk}) == 1:
        return "its head sees tokens, not the mean of a map"
    return (
        f"its last map, {trunk[-1].name} with {channels} channels, reaches the head ({width} inputs) through more than "
        "averaging: a hidden layer, a normalisation or an activation"
    )


def _check_final(final: str, trace: Trace) -> None:
    """A final map that the user named must be what the head's inputs are the mean of."""
    assert trace.pooled is not None
    named = next((event for event in trace.events if event.name == final), None)
    if named is None or (named.output is not None and _same(named.output.mean((2, 3)), trace.pooled.flatten(1))):
        return  # an unknown name is FeatureTap's matter
    found = _averaged(_trunk(trace.events), trace.pooled)
    advice = (
        f"take final:{found.name}" if found else f"take final:{POOLED}, because {_why(_trunk(trace.events), trace)}"
    )
    raise InputError(f"the mean of the map {final} is not what enters the head {trace.head}; {advice}")
