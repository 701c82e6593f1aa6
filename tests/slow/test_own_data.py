"""Everything that takes a data set takes one's own folder: teacher, methods, prior, generator, attack, label store."""

from pathlib import Path

import pytest
import torch

from kdnb.data import load
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.studies.bfa_attack import attack
from kdnb.studies.distillation import compare
from kdnb.studies.fast_ad import diffusion_source
from kdnb.studies.label_store import StoreConfig, make_store
from kdnb.studies.prior import trained_prior
from kdnb.studies.reusable_generator import generator_config, generator_task
from kdnb.training.distil import Setting, distil, student_recipe
from kdnb.training.teachers import teacher_recipe, train_or_load
from tests.material import write_noise
from tests.models import own_nets

torch.set_num_threads(1)
OWN = Path(own_nets.__file__)
pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(12):
            write_noise(tmp_path / "pets" / name / f"{index}.png", 40 * number + index, (16, 16))
    return load(f"folder:{tmp_path / 'pets'}")


def test_teacher_students_prior_guidance_generator_attack_and_label_store_take_it(data, tmp_path):
    recipe = teacher_recipe(data, epochs=2)
    teacher = train_or_load("resnet8w8", data, recipe, split="train")
    judge = train_or_load(f"{OWN}:plain", data, recipe, split="judge")
    assert 0 <= teacher.top1 <= 1 and judge.hash != teacher.hash

    plain = student_recipe(data, epochs=1, batch_size=8, lr=0.05)
    for name in ("kd", "sdd_dkd", "srrl"):
        assert distil(Setting(name), "resnet8w4", teacher, data, plain).history
    rows = compare({"dkd": Setting("dkd")}, "resnet8w4", teacher, data, plain, [0, 1], omitted_class=1)
    assert len(rows) == 6 and "omitted_top1" in rows[0]

    prior, _ = trained_prior(data, steps=2, batch_size=4, lr=1e-3)
    with diffusion_source(
        prior, data.image_shape, teacher=teacher.model, guidance=GuidanceConfig(), num_steps=2
    ) as draw_images:
        made = draw_images(torch.tensor([0, 1, 2, 0]), torch.Generator().manual_seed(0))
    assert made.shape == (4, *data.image_shape)

    config = generator_config(data, {"epochs": 1, "warmup": 0, "inner_steps": 1, "batch_size": 4, "student_steps": 1})
    assert generator_task(data, teacher, "resnet8w4", config).history

    assert attack(teacher.model, data.private.images[:4], data.test, data.num_classes, max_flips=1)

    make_store(tmp_path / "store", data.train.images, teacher.model, StoreConfig("marginal_smoothing_k2", num_crops=2))
    assert (tmp_path / "store").is_dir()
