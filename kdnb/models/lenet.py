"""LeNet-5 as the data-free papers train it on digits. LeCun, Bottou, Bengio, Haffner, Proceedings of the IEEE 1998, with ReLU and max pooling."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.models.base import Classifier


class LeNet5(Classifier):
    """Three 5 x 5 convolutions without padding, max pooling after the first two, two linear layers; no batch normalisation.

    Args:
        num_classes: K >= 2.
        in_channels: image channels.
    Raises:
        InputError: images under 32 x 32, which the third convolution has no room for.
    Taps: f0..f2 after the ReLU of each convolution; the final map is what the first linear layer, applied at every place, makes of
    f2: at 32 x 32 one place of 84 channels, as published.
    """

    head_name = "fc2"

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, num_classes)

    def taps(self, x: Tensor) -> list[Tensor]:
        if min(x.shape[-2:]) < 32:
            raise InputError(f"lenet5 needs images of 32x32 or more, got {x.shape[-2]}x{x.shape[-1]}")
        first = F.relu(self.conv1(x))
        second = F.relu(self.conv2(F.max_pool2d(first, 2)))
        return [first, second, F.relu(self.conv3(F.max_pool2d(second, 2)))]

    def last(self, tap: Tensor) -> Tensor:
        return F.relu(self.fc1(tap.movedim(1, -1))).movedim(-1, 1)
