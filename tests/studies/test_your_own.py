"""What notebook 14 makes and counts: the folder it draws, layers, methods that fit, classes and telling pictures."""

import pytest
import torch

from kdnb.data import load
from kdnb.errors import InputError
from kdnb.methods import METHODS
from kdnb.models import build
from kdnb.studies.your_own import DIGITS, draw_pictures, layer_table, per_class, suitable, telling
from tests.models import own_nets

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("drawn") / "pictures", per_class=4, side=32)


@pytest.fixture(scope="module")
def data(folder):
    return load(f"folder:{folder}")


def test_the_folder_is_one_that_kdnb_reads_and_the_same_each_time(folder, data, tmp_path):
    assert data.spec.class_names == tuple(sorted(DIGITS)) and (data.channels, data.image_size) == (3, 32)
    again = draw_pictures(tmp_path / "again", per_class=4, side=32)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert len(names) == 40
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    other = draw_pictures(tmp_path / "other", per_class=4, side=32, seed=1)
    assert any((folder / name).read_bytes() != (other / name).read_bytes() for name in names)


def test_a_folder_that_is_there_is_left_alone_and_nothing_half_made_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    assert draw_pictures(tmp_path / "mine") == tmp_path / "mine" and not list((tmp_path / "mine").iterdir())
    with pytest.raises(InputError, match="per_class from 3 to 170"):
        draw_pictures(tmp_path / "few", per_class=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_layers_are_listed_with_the_map_that_is_averaged(data):
    rows = layer_table("student", build("resnet8w4", 10), data)
    assert [row["height"] for row in rows] == [32, 32, 16, 8, 8]
    assert rows[-1]["layer"] == "final map (averaged into the head)" and rows[0]["network"] == "student"


def test_every_method_fits_or_says_why(data):
    zoo = build("resnet8w4", 10)
    rows = {row["method"]: row for row in suitable(zoo, zoo, data, 4, 2)}
    assert rows.keys() == METHODS.keys() and rows["reviewkd"]["fits"] and rows["kd"]["compares"] == "logits"
    rows = {row["method"]: row for row in suitable(zoo, own_nets.plain(10, 3), data, 4, 2)}
    assert not rows["reviewkd"]["fits"] and "before their ReLU" in rows["reviewkd"]["because"]
    assert rows["kd"] == {"method": "kd", "compares": "logits", "fits": True, "because": ""}


def test_accuracy_of_each_class_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    logits = {"a": torch.eye(3)[[0, 1, 1, 1]]}
    first, second, third = per_class(logits, labels, ["x", "y", "z"])
    assert (first["images"], first["a"], second["a"]) == (2, 0.5, 1.0) and third["a"] != third["a"]


def test_telling_pictures_are_those_on_which_half_are_right_least_certain_first():
    labels = torch.zeros(4, dtype=torch.long)
    right, wrong = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    a = torch.stack([right, right, wrong, right])
    b = torch.stack([right, wrong, wrong, wrong * 2])
    assert telling({"a": a, "b": b}, labels, 2).tolist() == [3, 1]
