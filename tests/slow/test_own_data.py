"""Everything that takes a data set takes one's own folder: teacher, methods, prior, generator, attack, label store."""

import pytest
import torch

from kdnb.data import load
from tests.data.test_own import draw

torch.set_num_threads(1)
pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(12):
            draw(tmp_path / "pets" / name / f"{index}.png", 40 * number + index, (16, 16))
    return load(f"folder:{tmp_path / 'pets'}")
