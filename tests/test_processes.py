"""kdnb.processes: a network trained by two processes is the network that one process trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdnb.processes import Team, sum_gradients, team, together
from kdnb.runner.together import run_together
from kdnb.storage.checkpoints import Checkpointer, load_state
from tests import pair

# the plain one; two views; adapters with batch norm; relations over the batch; features; a memory by places; before the last ReLU
CASES = ("ce", "mlld", "srrl", "rkd", "sdd_dkd", "crd", "ofd", "simkd")


def command(cases: str, folder: Path, count: int):
    folder.mkdir(exist_ok=True)
    return lambda rank, meeting: [
        sys.executable,
        "-m",
        "tests.pair",
        cases,
        str(folder),
        str(rank),
        str(count),
        str(meeting),
    ]


def trained(folder: Path, cases: str, count: int) -> list[dict]:
    """What each of `count` processes ended with."""
    assert run_together(command(cases, folder, count), count) == ""
    return [load_state(folder / f"rank{rank}.safetensors") for rank in range(count)]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    return trained(tmp_path_factory.mktemp("pair") / "two", ",".join([*CASES, "dkd", "resume"]), 2)


def largest_difference(one, other) -> float:
    if isinstance(one, torch.Tensor):
        return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list):
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return abs(one - other) if isinstance(one, float) else float(one != other)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_weights_of_one(name, both):
    alone = pair.train(name)
    for member in both:
        for part in ("student", "method", "history"):
            assert largest_difference(alone[part], member[name][part]) < 1e-6, part


@pytest.mark.parametrize("name", CASES)
def test_each_image_is_seen_once_an_epoch(name, both):
    views, epochs = 2 if name == "mlld" else 1, 2
    assert [sum(member[name]["seen"]) for member in both] == [pair.IMAGES // 2 * views * epochs] * 2


def test_processes_stay_equal_to_the_last_bit(both):
    for name in CASES:
        assert largest_difference(both[0][name], both[1][name]) == 0.0


def test_what_was_stopped_goes_on_and_ends_with_the_same_bits(both):
    for member in both:
        assert len(member["resume"]["seen"]) == 2, "the last two of six steps"
        for part in ("student", "method", "history"):
            assert largest_difference(member["resume"][part], member["dkd"][part]) == 0.0


def test_a_killed_process_ends_all_with_one_sentence_and_the_next_call_goes_on(tmp_path, both):
    said = run_together(command("dies", tmp_path, 2), 2)
    assert said.startswith("process 1 was killed by SIGKILL; the others were ended, and the same command goes on")
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "dies") not in left and f"tests.pair dies {tmp_path}" not in left
    step, _ = Checkpointer(tmp_path / "dies" / "progress").load()
    assert step == 4
    for member in trained(tmp_path, "dies", 2):
        assert largest_difference(member["dies"]["student"], both[0]["dkd"]["student"]) == 0.0


def test_a_process_that_refuses_says_why(tmp_path):
    said = run_together(command("no_such_method", tmp_path, 2), 2)
    assert "unknown method 'no_such_method'" in said and "\n" not in said


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 64, 65])
def test_parts_are_the_batch(size, count):
    parts = [Team(rank, count).part(size) for rank in range(count)]
    assert [index for part in parts for index in range(size)[part]] == list(range(size))
    assert max(part.stop - part.start for part in parts) - min(part.stop - part.start for part in parts) <= 1


def test_a_batch_with_fewer_images_than_processes_is_not_cut():
    assert [Team(rank, 3).part(2) for rank in range(3)] == [slice(0, 2)] * 3


def test_one_process_changes_nothing():
    value, parameter = torch.ones(2, 3), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    sum_gradients([parameter])
    assert team() == Team(0, 1) and together(value, 2) is value and parameter.grad.tolist() == [1, 1]
