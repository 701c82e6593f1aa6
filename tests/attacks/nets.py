"""Small networks that the attack tests share."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """In-place ReLU (one module, called twice) and in-place addition: what makes playing back activations delicate."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y += x
        return self.relu(y)


class SmallNet(nn.Module):
    def __init__(self, num_classes=4, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)  # shared with the tail
        self.block1, self.block2 = Block(channels), Block(channels)
        self.tail = nn.Conv2d(channels, 6, 3, 2, 1)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.block2(self.block1(self.act(self.stem(x))))
        x = F.max_pool2d(self.act(self.tail(x)), 2)
        return self.fc(x.mean(dim=(2, 3)))


def small_net(seed=0):
    """A network with lived-in batch-norm statistics, and 16 images in [-1, 1]."""
    torch.manual_seed(seed)
    model, images = SmallNet(), torch.rand(16, 1, 8, 8) * 2 - 1
    model.train()(images)
    with torch.no_grad():
        model.fc.weight.mul_(5)
    return model.eval(), images


def trained_net(seed=0):
    """Four classes told apart by the bright quarter of the image, learned to perfection; with images and labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(32) % 4
    images = 0.3 * torch.randn(32, 1, 8, 8, generator=rng)
    for k in range(4):
        images[labels == k, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.8
    images = images.clamp(-1, 1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), images, labels
