"""The stem of CUB-200: what the code of SDD puts before networks for small images when they see photographs of 224x224 pixels."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.models.base import Classifier


class PooledConv2d(nn.Conv2d):
    """A convolution whose output is max-pooled, 3x3 at stride 2 with padding 1; no entry of the state dict is renamed for it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(super().forward(x), 3, stride=2, padding=1)


def replace_stem(model: Classifier) -> None:
    """Replace the first convolution, in place, by one of 7x7 at stride 2 (padding 3, no bias).

    Where the first convolution has stride 2 already (MobileNetV2), the new one is max-pooled, so that the resolution still falls twofold
    against the original network. At 224 pixels the map before pooling is 28x28 (`resnet32x4_cub`), 14x14 (ShuffleNetV1, VGG, ResNet-50)
    or 7x7 (MobileNetV2).

    Args:
        model: for small images: its first convolution is 1x1 or 3x3. Its state dict keeps its names, but for a bias of that convolution.
    Raises:
        InputError: a larger first convolution.

    The new weights are drawn by He's rule, W ~ N(0, 2 / (k^2 C_out)), in every network. Source: Wei, Luo, Luo, CVPR 2024 (SDD), released
    code. Its ResNet-50 is treated like the others here: no max pool after the stem.
    """
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if max(old.kernel_size) > 3:
        raise InputError(
            f"the stem of {type(model).__name__} is for large images already: {old.kernel_size[0]}x{old.kernel_size[1]}"
        )
    kind = PooledConv2d if old.stride == (2, 2) else nn.Conv2d
    new = kind(old.in_channels, old.out_channels, 7, stride=2, padding=3, bias=False, device=old.weight.device)
    nn.init.normal_(new.weight, 0.0, math.sqrt(2.0 / (49 * new.out_channels)))
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
