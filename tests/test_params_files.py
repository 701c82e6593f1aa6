"""The published experiments as parameter files: every one resolves, builds its pair and binds its methods, without memory or data."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from kdnb.data import dataset_spec
from kdnb.methods import base
from kdnb.methods import build as build_method
from kdnb.models import build
from kdnb.models.base import feature_shapes
from kdnb.parameters import resolve
from kdnb.runner.plan import read_params
from kdnb.training.distil import Setting

PARAMS = Path(__file__).parent.parent / "params"
FILES = sorted(PARAMS.glob("*/04_distillation*.yaml"))
QUICK = read_params("04_distillation", "quick")


def values_of(file: Path):
    return resolve(QUICK | read_params("04_distillation", file.parent.name, file.stem.partition(".")[2]))


def settings_of(p) -> list[Setting]:
    given = {name: p[name] for name in ("scales", "temperature", "ce_weight", "kd_weight") if p[name] is not None}
    return [Setting(p.method, given), *map(Setting.read, p.others)]


@cache
def network(name: str, classes: int, channels: int):
    with torch.device("meta"):
        return build(name, classes, channels)


_shapes = cache(feature_shapes)


@pytest.fixture(autouse=True)
def shapes_once(monkeypatch):
    """The shapes of a network's maps are found once, not once a file."""
    monkeypatch.setattr(base, "feature_shapes", _shapes)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_pair_is_built_and_every_method_fits_it(file):
    p = values_of(file)
    spec = dataset_spec(p.dataset)
    student, teacher = (network(name, spec.num_classes, spec.channels) for name in (p.student, p.teacher))
    with torch.device("meta"):
        for setting in settings_of(p):
            bound = build_method(setting.method, **setting.hyper).bind(
                student,
                teacher,
                (spec.channels, spec.image_size, spec.image_size),
                spec.num_classes,
                p.batch_size,
                p.epochs,
                num_images=1000,
            )
            assert setting.hyper.items() <= bound.hyper.items()


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_value_says_where_it_comes_from(file):
    for line in file.read_text().splitlines():
        if not line.startswith("#") and line != "others:":
            assert re.search(r"# (paper|released code|ours)", line), line


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.parent.name in ("cifar100", "imagenet", "cub200")],
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_names_of_files_are_teacher_and_student(file):
    p = values_of(file)
    assert file.stem.split(".")[1:3] == [p.teacher, p.student] and p.dataset == file.parent.name


def test_light_students_learn_slower_and_the_sdd_code_base_clips():
    for file in sorted(PARAMS.glob("cifar100/04_distillation*.yaml")):
        p, light = values_of(file), {"mobilenetv2", "shufflenetv1", "shufflenetv2", "shufflenetv2_1_5"}
        code = file.stem.split(".")[3:]
        assert p.clip_norm == (40.0 if code in (["sdd"], ["fusion"]) else None), file
        expected = 0.05 if code == ["fusion"] else 0.01 if p.student in light else 0.025 if code == ["mlld"] else 0.05
        assert p.lr == expected, file
        assert (p.batch_size, p.weight_decay, p.milestones) == (64, 5e-4, [150, 180, 210]) and p.epochs == (
            480 if code == ["mlld"] else 240
        )


def test_all_published_pairs_are_there():
    """Tables 1 and 2 of LSKD, table 3 of SDD, table 2 of SimKD, and the two pairs of the data-free papers."""
    pairs = {tuple(file.stem.split(".")[1:3]) for file in PARAMS.glob("cifar100/04_distillation*.yaml")}
    assert len(pairs) == 14 + 6 + 2 + 2
    assert {("resnet32x4", "resnet8x4"), ("wrn_40_2", "vgg8"), ("vgg11", "resnet18"), ("resnet34", "resnet18")} <= pairs
