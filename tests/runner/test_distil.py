"""`inv distil` as a plan: names and files are checked before a kernel starts."""

from pathlib import Path

import pytest
import torch

from kdnb.errors import InputError
from kdnb.runner.distil import plan_distillation
from tests.material import write_noise
from tests.models import own_nets

OWN = Path(own_nets.__file__)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "dog")):
        for index in range(4):
            write_noise(tmp_path / "pets" / name / f"{index}.png", 40 * number + index)
    return tmp_path / "pets"


def planned(teacher=f"{OWN}:plain", student="resnet8x4", data="pets", method="dkd", **more):
    return plan_distillation(teacher, student, data, method, **more)


def test_a_folder_and_code_of_ones_own_become_parameters_of_notebook_04(pets):
    found = planned(epochs="3", more={"lr": 0.02})
    assert found.notebook == "04_distillation"
    assert found.parameters.dataset == f"folder:{pets}" and found.parameters.teacher == f"{OWN}:plain"
    assert (found.parameters.epochs, found.parameters.lr, found.parameters.omitted_class) == (3, 0.02, None)


def test_a_teachers_weights_must_be_there(pets, tmp_path):
    with pytest.raises(InputError, match="none.pth does not exist"):
        planned(checkpoint="none.pth")
    torch.save(own_nets.plain(2, 3).state_dict(), tmp_path / "teacher.pth")
    assert planned(checkpoint="teacher.pth").parameters.teacher_checkpoint == str(tmp_path / "teacher.pth")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher": ""}, "give --teacher: inv distil"),
        ({"teacher": "torchvision:resnet1"}, "unknown model 'torchvision:resnet1'; did you mean"),
        ({"student": "own.py:make"}, "own.py does not exist"),
        ({"data": "pests"}, "unknown dataset 'pests'"),
        ({"data": "./pests"}, "pests does not exist"),
        ({"data": "folder:pests"}, "pests does not exist"),
        ({"method": "dk"}, "unknown method 'dk'; did you mean"),
        ({"epochs": "0"}, "epochs must be a whole number"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(pets, wrong, message):
    with pytest.raises(InputError, match=message):
        planned(**wrong)


def test_an_empty_class_is_refused_before_the_run(pets):
    (pets / "eel").mkdir()
    with pytest.raises(InputError, match="no pictures .* of the class eel"):
        planned()
