"""Material that several tests share: files, networks, settings in their smallest form."""

import base64
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdnb.data.folders import FolderSplit
from kdnb.data.splits import Split
from kdnb.generators.reusable import ReusableGenerator
from kdnb.methods import build as build_method
from kdnb.models import build
from kdnb.models.base import Features
from kdnb.storage.files import write_record
from kdnb.studies.datafree_run import distil_by
from kdnb.studies.datafree_settings import SETTINGS, Setting
from kdnb.studies.fast_ad import OnlineConfig
from kdnb.studies.generator_loop import GeneratorConfig, distil_from_generator
from kdnb.studies.label_store import StoreConfig

FIXTURES = Path(__file__).parent / "notebooks"  # one failure each

# --- files -------------------------------------------------------------------------------------------------------------------


def write_picture(path, height, width, seed=0, mode="RGB", **options):
    """A smooth random picture, so that JPEG and resampling barely change it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    return path


def make_split(folder, num=7, **kwargs):
    names = [f"{index}.png" for index in range(num)]
    for index, name in enumerate(names):
        write_picture(folder / name, 20 + index, 30 - index, index)
    return FolderSplit(
        folder,
        names,
        torch.arange(num) % 3,
        **{"image_size": 16, "training": "random_resized_crop", "workers": 2} | kwargs,
    )


def write_noise(path, value, size=(24, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(value)).convert(mode).save(path)


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def make_run(outputs: Path, seed: int, value: float, notebook="01_teacher", profile="quick", **parameters) -> Path:
    folder = outputs / profile / notebook / f"seed{seed}-{'-'.join(map(str, parameters.values()))}"
    (folder / "figures").mkdir(parents=True)
    values = {"seed": seed} | parameters
    write_record(
        folder / "run.json",
        {"parameters": values, "versions": {"torch": "2.0"}, "hardware": {"cores": 2}, "commit": "abc"},
    )
    write_record(folder / "execution.json", {"status": "ok", "seconds": 3.5, "peak_memory_mib": 700})
    (folder / "results.csv").write_text(f"notebook,metric,value,seed\n{notebook},top1,{value},{seed}\n")
    (folder / "figures" / "curves.png").write_bytes(PIXEL)
    notebook_node = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_markdown_cell("the end")]
    )
    nbformat.write(notebook_node, folder / "notebook.ipynb")
    return folder


# --- training ----------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal: nothing in the loop may catch it."""


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("elapsed", "cpu")} for row in history]


def method_loss(name: str, logits_s: Tensor, logits_t: Tensor | None, labels: Tensor, **hyper) -> Tensor:
    """The whole loss of a method that reads logits alone, in its first epoch."""
    method = build_method(name, **hyper)
    student = Features(logits_s, [], None, None)
    teacher = None if logits_t is None else Features(logits_t, [], None, None)
    return torch.stack(list(method(student, teacher, labels, 1).values())).sum()


def classifier(seed: int, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet8w4", num_classes=num_classes, in_channels=1)


def few_images() -> Split:
    """Nine noisy images of three classes."""
    return Split(torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1), torch.arange(9) % 3)


# --- synthesis ---------------------------------------------------------------------------------------------------------------


def fused(seed: int = 2, **arguments) -> ReusableGenerator:
    torch.manual_seed(seed)
    return ReusableGenerator(image_size=8, channels=1, latent_dim=6, width=4, **arguments)


GENERATOR_LOOP = GeneratorConfig(
    epochs=4,
    warmup=1,
    latent_dim=6,
    width=4,
    synthesis_batch=8,
    inner_steps=2,
    pool_size=20,
    student_steps=2,
    batch_size=8,
    lr=0.05,
    temperature=4.0,
    crop_padding=1,
    perturbation_width=4,
    perturbation_blocks=1,
)


def run_generator_loop(config: GeneratorConfig = GENERATOR_LOOP, generator: nn.Module | None = None, **arguments):
    student, generator = classifier(0), generator if generator is not None else fused()
    found = distil_from_generator(
        classifier(9).eval(), student, generator, 3, few_images(), config, seed=5, **arguments
    )
    return student, generator, found


ONLINE_LOOP = OnlineConfig(
    epochs=4,
    images_per_epoch=12,
    student_steps=3,
    batch_size=8,
    buffer_size=20,
    lr=0.05,
    milestones=(2,),
    crop_padding=1,
)


class GuidingTeacher(nn.Module):
    """conv - BN - ReLU - conv - BN - ReLU - mean - linear, with statistics of its own so that the BN loss has a target."""

    def __init__(self, classes: int = 4, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        ).double()
        for layer in (self.net[1], self.net[4]):
            layer.momentum = 1.0
        self.net(torch.randn(256, 1, 8, 8, dtype=torch.float64) / 2)  # running statistics of the prior's own images ...
        for layer in (self.net[1], self.net[4]):
            layer.running_mean += 0.05  # ... and not quite
        self.net[-1].weight.data *= 12
        self.net[-1].bias.data -= self.net.eval()(torch.randn(256, 1, 8, 8, dtype=torch.float64) / 2).mean(dim=0)
        self.passed = 0
        self.eval().requires_grad_(False)

    def forward(self, x):
        self.passed += len(x)
        return self.net(x)


class GaussianPrior:
    """Exact noise estimate for images N(0, s^2 I): eps = sqrt(1 - abar) x / (abar s^2 + 1 - abar)."""

    def __init__(self, scale: float = 0.5):
        self.scale, self.calls = scale, 0
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.num_train_timesteps = 1000

    def epsilon(self, x, t):
        self.calls += 1
        a = self.alphas_cumprod[t]
        return (1 - a).sqrt() * x / (a * self.scale**2 + 1 - a)


class FloatPrior(GaussianPrior):
    def __init__(self):
        super().__init__()
        self.alphas_cumprod = self.alphas_cumprod.float()


def guided_step(batch: int = 6, seed: int = 1, t: int = 500):
    generator = torch.Generator().manual_seed(seed)
    prior = GaussianPrior()
    x_t = torch.randn(batch, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (batch,), generator=generator)
    return prior, x_t, prior.epsilon(x_t, t), prior.alphas_cumprod[t], labels


def statistics_loss(teacher, images):
    """L_BN written out: distances of the statistics of what enters each batch-norm layer from the layer's buffers."""
    loss = 0.0
    for index, layer in enumerate(teacher.net):
        if isinstance(layer, nn.BatchNorm2d):
            entering = teacher.net[:index](images).transpose(0, 1).flatten(1)  # (C, B * H * W)
            mean = entering.mean(dim=1)
            variance = (entering - mean[:, None]).square().mean(dim=1)
            loss = loss + (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
    return loss


class DroppingDenoiser(nn.Module):
    """A small denoiser whose dropout uses the global random state: resumption must put that back too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1)
        )

    def forward(self, x_t, t):
        return SimpleNamespace(sample=self.layers(x_t))


SMALLEST = {
    "latent_dim": 5,
    "width": 2,
    "batch_size": 6,
    "num_steps": 2,
    "crop_padding": 1,
    "stages": ((1, 3),),
    "warmup": 1,
    "warmup_loops": 1,
    "loops": 1,
    "life": 2,
    "embedding_width": 4,
    "noisy_width": 5,
    "head_width": 4,
    "bank_size": 12,
    "negatives": 8,
    "pool_size": 14,
}


def three_classes(name: str = "digits") -> SimpleNamespace:
    """What a run needs of a data set: three classes of 8x8 grey images."""
    spec = SimpleNamespace(mean=(0.4,), std=(0.3,))
    return SimpleNamespace(name=name, channels=1, image_size=8, num_classes=3, spec=spec, test=few_images())


def smallest_setting(name: str, **student) -> Setting:
    """A method's digits setting in its smallest form."""
    synthesis, config = SETTINGS["digits"][name]
    sizes = {field: value for field, value in SMALLEST.items() if hasattr(synthesis, field)}
    shorter = {
        "epochs": 4,
        "warmup": 1,
        "student_steps": 2,
        "batch_size": 6,
        "pool_size": 14,
        "eval_every": 2,
        "lr": 0.02,
    }
    return Setting(replace(synthesis, **sizes), replace(config, **shorter | student))


def run_datafree(name: str, chosen: Setting | None = None, **arguments):
    """(student, result) of a method in its smallest form."""
    student = classifier(0)
    teacher = arguments.pop("teacher", None) or classifier(9).eval()
    found = distil_by(name, teacher, student, three_classes(), chosen or smallest_setting(name), seed=5, **arguments)
    return student, found


# --- stored labels -----------------------------------------------------------------------------------------------------------

STORE_IMAGES = torch.rand(7, 1, 10, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
STORE = StoreConfig(num_crops=5, size=8, batch_size=4, images_per_shard=3)


class LabelTeacher(nn.Module):
    """A linear classifier with dropout, so that a forgotten eval mode shows; counts what it was asked."""

    def __init__(self, seed=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.fc = nn.Linear(64, 6)
        self.fc.weight.data = torch.randn(6, 64, generator=generator)
        self.fc.bias.data = torch.randn(6, generator=generator)
        self.crops_seen = 0

    def forward(self, x):
        self.crops_seen += len(x)
        return self.fc(torch.dropout(x.flatten(1), 0.5, self.training))
