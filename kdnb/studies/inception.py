"""The Frechet distance in the features of Inception, as published FID values take it, beside our own in the teacher's features."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from kdnb.metrics import frechet_distance
from kdnb.storage.paths import inception_weights
from kdnb.training.evaluation import in_batches
from kdnb.training.importers import read_weights


class InceptionDistance:
    """FID of images to the same real images.

        d = ||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)   of 2048 pooled features

    The number falls with the number of images at equal quality, and fewer than 2048 leave the covariances singular: compare
    distances of equally many images only, with published ones only where 50,000 were used.

    Args:
        real: (N, C, H, W) in [-1, 1], C = 1 or 3.
    Raises:
        InputError: no weights, or no package to read them (`kdnb.storage.paths.inception_weights`); a file of another kind.

    Source: Heusel et al., NeurIPS 2017.
    """

    def __init__(self, real: Tensor):
        self.network = _network(inception_weights()).to(real.device)
        self.real = self.features(real)

    def __call__(self, images: Tensor) -> float:
        """Distance of (M, C, H, W) images in [-1, 1], dimensionless."""
        return frechet_distance(self.features(images), self.real).item()

    def features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """(N, 2048); the network takes bytes, and scales them to 299 x 299 itself."""
        pixels = ((images.expand(-1, 3, -1, -1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return in_batches(lambda part: self.network(part)[0], pixels, batch_size)


def _network(weights: Path) -> nn.Module:
    """torch-fidelity unpickles whatever it is given, so it gets a copy of what our own reader took for plain weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"
        torch.save(read_weights(weights), safe)
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(safe))
