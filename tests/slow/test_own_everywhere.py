"""Every notebook on one's own pictures, as a folder and as a function, and those that only distil with one's own networks as well."""

from pathlib import Path

import pytest

from kdnb.runner.rehearse import rehearse
from tests.data.test_own import draw
from tests.models import own_nets

OWN = Path(own_nets.__file__)
NETS = {"teacher": f"{OWN}:plain", "student": "torchvision:shufflenet_v2_x0_5"}
CASES: list[tuple[str, str, dict]] = [
    ("01_teacher", "folder", {"model": "torchvision:resnet18"}),
    ("02_synthesis", "folder", {"domains": ["same"], "image_size": 16}),
    ("03_fast_ad", "folder", {"prior_domain": "same", "image_size": 16}),
    ("04_distillation", "folder", NETS | {"omitted_class": 1}),
    ("05_reusable_generator", "folder", {"image_size": 16}),
    ("06_bfa_attack", "folder", {"image_size": 16}),
    ("08_teacher_behaviour", "folder", {"image_size": 16}),
    ("11_soft_labels", "folder", NETS | {"image_size": 32, "label_mode": "marginal_smoothing_k2"}),
    ("14_your_own", "folder", NETS),
    ("01_teacher", "function", {"model": f"{OWN}:plain"}),
    ("04_distillation", "function", {"omitted_class": None}),
    ("05_reusable_generator", "function", {"image_size": 16}),
    ("14_your_own", "function", NETS),
]


@pytest.fixture
def named(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(30):
            draw(tmp_path / "pets" / name / f"{index}.png", 40 * number + index, (32, 32))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\ndef pictures():\n    draw = np.random.default_rng(0)\n"
        "    return draw.random((90, 3, 32, 32), dtype=np.float32), np.arange(90) % 3\n"
    )
    return {"folder": f"folder:{tmp_path / 'pets'}", "function": f"{tmp_path / 'mine.py'}:pictures"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("notebook", "kind", "more"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_a_notebook_takes_own_data_and_networks(notebook, kind, more, named):
    found = rehearse(notebook, overrides=more | {"dataset": named[kind]})
    assert found.outcome.status == "ok", found.describe()
