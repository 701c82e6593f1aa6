"""Networks that a user might bring; read by tests as a file."""

from torch import nn


def plain(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


class Deep(nn.Module):
    """A backbone inside, blocks with residual branches, a hidden layer before the head."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.backbone = Backbone(width)
        self.hidden = nn.Linear(4 * width, 24)
        self.out = nn.Linear(24, num_classes)

    def forward(self, x):
        return self.out(self.hidden(self.backbone(x).mean((2, 3))).relu())


class Backbone(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.first = Block(width, 2 * width)
        self.second = Block(2 * width, 4 * width)

    def forward(self, x):
        return self.second(self.first(self.stem(x)))


class Block(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.inner = nn.Conv2d(c_in, c_in, 3, padding=1)
        self.down = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x):
        return self.down(self.inner(x).relu() + x)


def tokens(num_classes, in_channels, image_size):
    """Patches of four pixels, one linear layer each, averaged."""
    return Tokens(num_classes, in_channels)


class Tokens(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.embed = nn.Linear(16 * in_channels, 12)
        self.out = nn.Linear(12, num_classes)

    def forward(self, x):
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # (B, N, 16 C)
        return self.out(self.embed(patches).mean(1))


def wrong_count(num_classes):
    return plain(num_classes + 1, 3)


def no_module():
    return 7


def fails(num_classes):
    raise RuntimeError("no weights today")


def needs_more(num_classes, depth):
    return plain(num_classes, 3)
