"""Classifiers that are not ours (torchvision, timm, a user's own), made to behave like the zoo's."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.models.base import Classifier, Features

POOLED = "pooled"  # as the name of the final map: there is none, the pooled vector stands in


class FeatureTap(Classifier):
    """Wrap any image classifier by the names of its modules.

        FeatureTap(torchvision.models.resnet18(), ["layer1", "layer2", "layer3", "layer4"])

    Args:
        model: (B, C, H, W) -> (B, K).
        layers: module names (as `model.named_modules()` gives them), coarse to fine; their outputs become `feats`.
        pooled: module whose output, flattened, is `pooled`; default: what enters the head.
        head: the final nn.Linear; default: the last nn.Linear of the model. "": none; then `pooled` is the mean of the final map, and
            methods that use a head refuse the network.
        final: module whose output is `final_map`; default: the last of `layers`. "pooled": the pooled vector as a map of 1 x 1, for
            networks that average no map into their head (transformers with a class token, heads with a hidden layer).
        note: for `final="pooled"`, why it is so, as the end of a message.
    Raises:
        InputError: a name the model lacks, no layers, a head that is not linear; and from a forward pass with features: a layer that
            did not run or does not return one tensor, or whose output a later module overwrote in place (tap that one instead).

    `kdnb.models.taps.wrap` finds all of these by itself. Images that need standardising: set `tap.normalize = Normalize(mean, std)`.
    Hooks are set for the pass that asks for features and removed after it, so plain passes cost nothing and copies are independent.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        pooled: str | None = None,
        head: str | None = None,
        final: str | None = None,
        note: str = "",
    ):
        super().__init__()
        names = [name for name, _ in model.named_modules() if name]
        linear = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
        if not layers and final != POOLED:
            raise InputError("name at least one layer to tap; the model has " + ", ".join(names[:20]))
        for name in filter(None, (*layers, pooled, final)):
            check_name("layer", name, [*names, POOLED])
        if head:
            check_name("linear head", head, linear)
        self.model, self.note = model, note
        self.layers, self.pooled, self.final = list(layers), pooled, final or layers[-1]
        head = (linear[-1] if linear else "") if head is None else head
        self.head_name = f"model.{head}" if head else ""

    @property
    def head(self) -> nn.Linear | None:
        return self.get_submodule(self.head_name) if self.head_name else None

    @property
    def plain(self) -> nn.Module:
        return self.model

    def extra_repr(self) -> str:
        return f"layers={self.layers}, final={self.final!r}, head={self.head_name.removeprefix('model.')!r}"

    def forward(self, x: Tensor, return_features: bool = False, preactivations: bool = False):
        x = self.normalize(x)
        return self.extract(x, preactivations) if return_features else self.model(x)

    def preactivations(self, x: Tensor) -> list[Tensor]:
        raise InputError(
            "this method compares values before the last ReLU of each stage, which are known for networks of the zoo only; "
            "take one of kdnb.models.MODELS, or a method that compares maps"
        )

    def extract(self, x: Tensor, preactivations: bool = False) -> Features:
        if preactivations:
            self.preactivations(x)
        seen: dict[str, tuple[Tensor, int]] = {}

        def keep(name: str, output) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"layer {name!r} returns {type(output).__name__}, not a tensor; tap a layer inside it")
            seen[name] = (output, _version(output))

        handles, entrance = [], None
        if self.head is not None:
            entrance = f"input of {self.head_name.removeprefix('model.')}"
            handles.append(self.head.register_forward_pre_hook(lambda _, args: keep(entrance, args[0])))
        for name in {*self.layers, self.final, self.pooled} - {None, POOLED}:
            hook = partial(lambda name, module, args, output: keep(name, output), name)
            handles.append(self.model.get_submodule(name).register_forward_hook(hook))
        try:
            logits = self.model(x)
        finally:
            for handle in handles:
                handle.remove()

        def get(name: str) -> Tensor:
            if name not in seen:
                raise InputError(f"layer {name!r} did not run in this forward pass; tap another")
            output, version = seen[name]
            if version != _version(output):
                raise InputError(
                    f"the output of layer {name!r} was overwritten in place by a later module; tap that module instead"
                )
            return output

        feats, source = [get(name) for name in self.layers], self.pooled or entrance
        if source is not None:
            pooled = get(source).flatten(1)
        else:
            pooled = logits.flatten(1) if self.final == POOLED else get(self.final).mean((2, 3))
        return Features(logits, feats, pooled, pooled[:, :, None, None] if self.final == POOLED else get(self.final))


def _version(tensor: Tensor) -> int:
    """The count of in-place changes; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version
