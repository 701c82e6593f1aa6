"""inv evaluate: any file of weights, measured as the metrics say; what can't be measured is refused in one sentence."""

import subprocess
import sys

import pytest
import torch

from kdnb import metrics
from kdnb.data import load
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.runs import start_run
from kdnb.storage.paths import PROJECT
from kdnb.training.evaluate_file import evaluate_file
from kdnb.training.evaluation import evaluate, predict_logits
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import train_or_load


@pytest.fixture(scope="module")
def data():
    return load("digits", 8)


@pytest.fixture
def network(data):
    torch.manual_seed(0)
    return build("resnet8w4", **data.normalization).eval()


@pytest.fixture
def student(network, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path))
    return start_run("demo", {"seed": 0, "threads": 1, "image_size": 8}).save_network("student", network)


def test_a_student_of_ours_needs_no_more_than_its_file(student, network, data):
    found = evaluate_file(student, "digits")
    logits = predict_logits(network, data.test.images).double()
    assert (found.architecture, found.image_size, found.images) == ("resnet8w4", 8, 500)
    assert found.ece == pytest.approx(metrics.ece(logits, data.test.labels).item(), abs=1e-6)
    expected = evaluate(network, data.test)
    assert (found.top1, found.top5) == (pytest.approx(expected["top1"]), pytest.approx(expected["top5"]))
    assert found.nll == pytest.approx(expected["loss"], abs=1e-6)


def test_its_weights_are_loaded_in_three_lines_of_plain_torch(student, network):
    from safetensors.torch import load_file

    net = build("resnet8w4", 10, 1)
    net.load_state_dict(load_file(student))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in network.state_dict().items())


def test_a_teacher_of_the_cache_says_what_it_is(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    teacher = train_or_load("resnet8w4", data, Recipe(epochs=1, batch_size=100, lr=0.02))
    (path,) = tmp_path.rglob("state.safetensors")
    found = evaluate_file(path, "digits")
    assert (found.architecture, found.top1, found.hash) == ("resnet8w4", pytest.approx(teacher.top1), teacher.hash)


def test_a_foreign_file_is_measured_under_the_architecture_given(network, tmp_path, data):
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "teacher.pth")
    with pytest.raises(InputError, match="teacher.pth does not say what network it is of; give --architecture"):
        evaluate_file(tmp_path / "teacher.pth", "digits")
    found = evaluate_file(tmp_path / "teacher.pth", "digits", "resnet8w4", image_size=8)
    assert found.top1 == pytest.approx(evaluate(network, data.test)["top1"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "nowhere.safetensors"}, "nowhere.safetensors can't be read"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"dataset": "cifar100"}, "network for 10 classes, cifar100 has 100|no complete copy of cifar100"),
        ({"architecture": "resnt8"}, "unknown model 'resnt8'"),
        ({"architecture": "resnet8w8"}, "not of resnet8w8.*it fits resnet8w4|shape"),
        ({"image_size": 4}, "between 8 and 256 pixels, got 4"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_sentence(student, given, message):
    arguments = {"path": student, "dataset": "digits"} | given
    if given.get("path"):
        arguments["path"] = student.with_name(given["path"])
    with pytest.raises(InputError, match=message) as caught:
        evaluate_file(**arguments)
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_figures_and_refuses_with_exit_code_2(student):
    command = [sys.executable, "-m", "invoke", "evaluate", str(student)]
    fine = subprocess.run([*command, "--dataset", "digits"], cwd=PROJECT, capture_output=True, text=True)
    assert fine.returncode == 0 and "500 test images of 8x8" in fine.stdout and "ECE" in fine.stdout
    for more, words in (([], "give --dataset"), (["--dataset", "digits", "--device", "gpu"], "device must be")):
        wrong = subprocess.run([*command, *more], cwd=PROJECT, capture_output=True, text=True)
        assert wrong.returncode == 2 and words in wrong.stderr and "Traceback" not in wrong.stderr
