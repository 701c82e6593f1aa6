"""Classifiers that are not ours (torchvision, timm, a user's own), made to behave like the zoo's."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kdnb.errors import InputError, check_name
from kdnb.models.base import Classifier, Features


class FeatureTap(Classifier):
    """Wrap any image classifier by the names of its modules.

        FeatureTap(torchvision.models.resnet18(), ["layer1", "layer2", "layer3", "layer4"])

    Args:
        model: (B, C, H, W) -> (B, K).
        layers: module names (as `model.named_modules()` gives them), coarse to fine; their outputs become `feats`.
        pooled: module whose output, flattened, is `pooled`; default: what enters the head.
        head: the final nn.Linear; default: the last nn.Linear of the model.
        final: module whose output is `final_map`; default: the last of `layers`.
    Raises:
        InputError: a name the model lacks, no layers, a head that is not linear; and from a forward pass with features: a layer that
            did not run or does not return one tensor, or whose output a later module overwrote in place (tap that one instead).

    Images that need standardising: set `tap.normalize = Normalize(mean, std)`. Hooks are set for the pass that asks for features and
    removed after it, so plain passes cost nothing and copies are independent.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        pooled: str | None = None,
        head: str | None = None,
        final: str | None = None,
    ):
        super().__init__()
        names = [name for name, _ in model.named_modules() if name]
        linear = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
        if not layers:
            raise InputError("name at least one layer to tap; the model has " + ", ".join(names[:20]))
        if not linear:
            raise InputError("the model has no nn.Linear inside that could be its head")
        for name in filter(None, (*layers, pooled, final)):
            check_name("layer", name, names)
        self.model = model
        self.layers, self.pooled, self.final = list(layers), pooled, final or layers[-1]
        self.head_name = "model." + (linear[-1] if head is None else check_name("linear head", head, linear))

    def forward(self, x: Tensor, return_features: bool = False):
        x = self.normalize(x)
        return self.extract(x) if return_features else self.model(x)

    def extract(self, x: Tensor) -> Features:
        seen: dict[str, tuple[Tensor, int]] = {}

        def keep(name: str, output) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"layer {name!r} returns {type(output).__name__}, not a tensor; tap a layer inside it")
            seen[name] = (output, _version(output))

        head = self.head_name.removeprefix("model.")
        handles = [self.head.register_forward_pre_hook(lambda _, args: keep(f"input of {head}", args[0]))]
        for name in {*self.layers, self.final, self.pooled} - {None}:
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

        pooled = get(self.pooled or f"input of {head}").flatten(1)
        return Features(logits, [get(name) for name in self.layers], pooled, get(self.final))


def _version(tensor: Tensor) -> int:
    """The count of in-place changes; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version
