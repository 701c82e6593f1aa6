"""The published experiments as parameter files: every one resolves, builds its pair and binds its methods, without memory or data."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from kdnb.data import dataset_spec
from kdnb.methods import METHODS, base
from kdnb.methods import build as build_method
from kdnb.models import build
from kdnb.models.base import feature_shapes
from kdnb.parameters import resolve
from kdnb.runner.plan import experiments, profiles, read_params
from kdnb.runner.sweep_files import read_sweep, sweep_names
from kdnb.training.distil import Setting

PARAMS = Path(__file__).parent.parent / "params"
NOTEBOOK = "04_distillation"
EXPERIMENTS = [(profile, name) for profile in profiles() for name in experiments(profile) if NOTEBOOK in name]
PAIRS = [(profile, name) for profile, name in EXPERIMENTS if profile in ("cifar100", "imagenet", "cub200")]
SWEEPS = {name: read_sweep(name, files=False) for name in sweep_names()}
METHOD_RUNS = [run.plan.parameters for run in SWEEPS["digits_methods"].runs]
CIFAR100 = [name for profile, name in PAIRS if profile == "cifar100"]
NEWER = ("logits", "features", "dskd")
QUICK = read_params(NOTEBOOK, "quick")


def values_of(profile: str, name: str):
    return resolve(QUICK | read_params(name, profile))


def words_of(name: str) -> list[str]:
    """Teacher, student and code base out of an experiment's name."""
    return name.removeprefix(f"{NOTEBOOK}/").split("-")


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


@pytest.mark.parametrize(
    "p",
    [values_of(profile, name) for profile, name in EXPERIMENTS] + METHOD_RUNS,
    ids=[f"{profile}-{name}" for profile, name in EXPERIMENTS] + [p.method for p in METHOD_RUNS],
)
def test_the_pair_is_built_and_every_method_fits_it(p):
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


@pytest.mark.parametrize(
    "file", sorted(PARAMS.glob(f"*/{NOTEBOOK}*/*.yaml")), ids=lambda file: str(file.relative_to(PARAMS))
)
def test_every_value_says_where_it_comes_from(file):
    for line in file.read_text().splitlines():
        if not line.startswith(("#", "extends: ")) and line != "others:":
            assert re.search(r"# (paper|released code|ours)", line), line


@pytest.mark.parametrize("profile, name", PAIRS)
def test_names_of_files_are_teacher_and_student(profile, name):
    p = values_of(profile, name)
    stem = "_cub" if profile == "cub200" else ""
    assert [word + stem for word in words_of(name)[:2]] == [p.teacher, p.student] and p.dataset == profile


def test_light_students_learn_slower_and_the_sdd_code_base_clips():
    light = {"mobilenetv2", "shufflenetv1", "shufflenetv2", "shufflenetv2_1_5"}
    for name in CIFAR100:
        p, code = values_of("cifar100", name), "".join(words_of(name)[2:])
        fusion = code.startswith("fusion")
        assert p.clip_norm == (40.0 if fusion or code == "sdd" else None), name
        assert p.lr == (0.05 if fusion else 0.01 if p.student in light else 0.025 if code == "mlld" else 0.05), name
        assert (p.batch_size, p.weight_decay, p.milestones) == (64, 5e-4, [150, 180, 210])
        assert p.epochs == (480 if code == "mlld" else 240), name


def test_all_published_pairs_are_there():
    """Tables 1 and 2 of LSKD, table 3 of SDD, table 2 of SimKD, and the two pairs of the data-free papers."""
    pairs = {tuple(words_of(name)[:2]) for name in CIFAR100}
    assert len(pairs) == 14 + 6 + 2 + 2
    assert {("resnet32x4", "resnet8x4"), ("wrn_40_2", "vgg8"), ("vgg11", "resnet18"), ("resnet34", "resnet18")} <= pairs


def test_newer_methods_run_all_their_published_pairs_and_controls_change_one_thing_each():
    codes = {code: {tuple(words_of(name)[:2]) for name in CIFAR100 if name.endswith(f"-{code}")} for code in NEWER}
    assert codes["logits"] == codes["features"] == codes["dskd"] and len(codes["logits"]) == 13
    p = values_of("cifar100", f"{NOTEBOOK}/resnet32x4-resnet8x4-controls")
    published = {setting.method: build_method(setting.method).hyper for setting in settings_of(p)}
    full = [build_method(setting.method, **setting.hyper).hyper for setting in settings_of(p)]
    assert len(full) == len({(setting.method, str(hyper)) for setting, hyper in zip(settings_of(p), full, strict=True)})
    kept = [name for name, hyper in published.items() if hyper in full]
    assert {"lskd", "rld", "rld_lskd", "dist", "nkd", "abkd", "wkd_l", "ctkd", "cat_kd"} <= set(kept)


def test_the_fusion_runs_its_pairs_on_both_data_sets():
    fusion = {(profile, *words_of(name)[:2]) for profile, name in PAIRS if "-fusion" in name}
    sdd = {(profile, *words_of(name)[:2]) for profile, name in PAIRS if name.endswith("-sdd")}
    assert {student for _, teacher, student in fusion if teacher == "wrn_40_2"} == {
        "vgg8",
        "shufflenetv1",
        "mobilenetv2",
    }
    assert {pair for pair in fusion if pair[0] == "cub200"} == {pair for pair in sdd if pair[0] == "cub200"}
    assert {values_of("cub200", name).lr for profile, name in PAIRS if profile == "cub200" and "-fusion" in name} == {
        0.01
    }


def test_one_experiment_compares_all_sets_of_scales():
    p = values_of("cifar100", f"{NOTEBOOK}/resnet32x4-resnet8x4-fusion_scales")
    found = [(setting.method, setting.hyper["scales"]) for setting in settings_of(p)]
    sets = [[1], [1, 2], [1, 4], [1, 2, 4]]
    assert found == [(method, scales) for method in ("sdd_kd_lskd", "sdd_dkd_lskd") for scales in sets]


# --- sweeps --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_stands_for_different_runs_and_its_baseline_is_among_them(name):
    found = SWEEPS[name]
    assert len({run.plan.folder for run in found.runs}) == len(found.runs) > 0
    assert (PARAMS / "sweeps" / f"{name}.yaml").read_text().startswith("# "), "a sweep says what it is for"
    if found.baseline:
        assert any(found.baseline.items() <= run.plan.parameters.items() for run in found.runs)


def test_one_sweep_has_every_method_once():
    assert sorted(p.method for p in METHOD_RUNS) == sorted(METHODS)


def test_every_published_pair_is_in_a_sweep_with_five_seeds():
    swept = {(run.profile, run.experiment, *run.plan.parameters.seeds) for run in SWEEPS["cifar100_pairs"].runs}
    assert swept == {("cifar100", name, seed) for name in CIFAR100 for seed in range(5)}


def test_every_table_of_the_readme_has_a_sweep():
    root = PARAMS.parent
    tables = {path.stem for path in (root / "outputs" / "published").glob("*.csv")}
    quoted = {name for name in tables if f"`{name}.csv`" in (root / "README.md").read_text()}
    assert quoted and quoted <= SWEEPS.keys()
