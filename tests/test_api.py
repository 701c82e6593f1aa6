"""The few lines of plain Python, as they stand in docs/python.md, and what they refuse."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdnb
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.training.importers import load_classifier
from kdnb.training.recipe import Recipe
from tests.material import write_noise
from tests.models import own_nets

torch.set_num_threads(1)
TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
QUICK = {"epochs": 1, "batch_size": 32}


def untrained(data):
    torch.manual_seed(0)
    return build("resnet8w4", **data.normalization)


def distil_small(student, *more, data=None, **given):
    data = data or kdnb.load("digits", image_size=8)
    return kdnb.distil(untrained(data), student, data, *more, **QUICK | given)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(6):
            write_noise(tmp_path / "pets" / name / f"{index}.png", 40 * number + index)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda text: text.splitlines()[2][:30])
def test_the_documented_lines_run_as_written(block, capsys):
    code = [line for line in block.splitlines() if line]
    assert len(code) <= 10 and sum(line.startswith(("import", "from")) for line in code) <= 2
    exec(compile(block, "docs/python.md", "exec"), {})
    assert capsys.readouterr().out


def test_importing_kdnb_loads_nothing_heavy():
    code = "import sys, kdnb; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); kdnb.distil; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_attribute_is_named():
    with pytest.raises(AttributeError, match="no attribute 'distill'; it offers compare, distil"):
        kdnb.distill  # noqa: B018


def test_a_named_student_comes_from_the_cache_the_second_time():
    data = kdnb.load("digits", image_size=8)
    teacher = kdnb.teacher("resnet8w4", data, epochs=1)
    first, second = (kdnb.distil(teacher, "resnet8w4", data, "dkd beta:2", warmup=0, **QUICK) for _ in range(2))
    assert first.setting.hyper == {"beta": 2, "warmup": 0}
    assert first.made.seconds == second.made.seconds and first.top1 == second.top1


def test_a_module_is_copied_not_touched_and_its_result_can_be_judged():
    data, net = kdnb.load("digits", image_size=8), own_nets.plain(10, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = kdnb.distil(own_nets.plain(10, 1), net, data, **QUICK)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert kdnb.evaluate(found, data)["top1"] == found.top1 == kdnb.evaluate(found.student.plain, data)["top1"]


def test_saved_weights_load_in_plain_torch_and_in_our_importers():
    found = distil_small("resnet8w4")
    path = found.save("out", licence="mit")
    net = build("resnet8w4", num_classes=10, in_channels=1)
    net.load_state_dict(load_file(path))
    model = load_classifier(path, "resnet8w4", **found.data.normalization).model
    images = found.data.test.images[:8]
    assert torch.equal(model(images), found.student.eval()(images))
    card = (path.parent / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and found.teacher.hash in card and f"{found.top1:.4f}" in card
    assert 'kdnb.models.build("resnet8w4", num_classes=10, in_channels=1)' in card and found.data.hashes["test"] in card


def test_a_foreign_student_is_saved_under_its_own_names():
    found = distil_small("torchvision:resnet18", data=kdnb.load("pets", image_size=32))
    state = load_file(found.save("out"))
    from torchvision.models import resnet18

    resnet18(num_classes=3).load_state_dict(state)


def test_a_method_with_a_head_of_its_own_saves_it_beside_the_student():
    found = distil_small("resnet8w4", "simkd")
    path = found.save("out")
    assert (path.parent / "adapters.safetensors").is_file()
    assert "the student's own head was not trained" in (path.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distil_small("resnet9"), "unknown model 'resnet9'"),
        (lambda: kdnb.distil("resnet8w4", "resnet8w4", "digit"), "unknown dataset 'digit'"),
        (lambda: distil_small("resnet8w4", "dk"), "unknown method 'dk'"),
        (lambda: distil_small(lambda: 3), "a function that returns one, got int"),
        (lambda: kdnb.evaluate("resnet8w4", "digits"), "names a network without weights"),
        (lambda: kdnb.load((torch.rand(4, 2, 8, 8), torch.arange(4))), "1 or 3 channels"),
        (lambda: kdnb.load(3), "the data must give images and labels"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_recipe_of_ones_own_replaces_the_default():
    recipe = Recipe(epochs=1, batch_size=200, lr=0.1)
    assert distil_small("resnet8w4", recipe=recipe).recipe is recipe
