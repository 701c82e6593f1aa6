"""kdnb.storage.checkpoints: a file is whole or refused, and the last good one always loads."""

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.randomness import generator_for, random_state, seed_everything, set_random_state
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import Checkpointer, dump_state, load_state, parse_state, save_state, state_hash
from kdnb.storage.files import atomic_write
from kdnb.storage.naming import identity_key


def example_state() -> dict:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [{"epoch": 1, "loss": 0.5}],
        "nothing": None,
        "pair": (1, "two"),
        "flag": True,
        7: "integer key",
    }


def assert_equal(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b and type(a) is type(b)


def test_a_nested_state_comes_back_as_it_was(tmp_path):
    state = example_state()
    save_state(tmp_path / "a.safetensors", state)
    assert_equal(dict(state, model=dict(state["model"])), load_state(tmp_path / "a.safetensors"))


def test_every_changed_byte_is_noticed():
    data = dump_state(example_state())
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= 0x10
        with pytest.raises(InputError):
            parse_state(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, -1])
def test_a_truncated_file_is_refused(cut):
    data = dump_state(example_state())
    with pytest.raises(InputError):
        parse_state(data[:cut])


def test_a_header_that_asks_for_terabytes_is_refused_before_allocation():
    data = dump_state(example_state())
    with pytest.raises(InputError, match="claims"):
        parse_state((2**43).to_bytes(8, "little") + data[8:])


def test_a_missing_file_is_one_clear_sentence(tmp_path):
    with pytest.raises(InputError, match="nowhere.safetensors can't be read"):
        load_state(tmp_path / "nowhere.safetensors")


def test_objects_that_are_not_plain_are_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match="not object"):
        save_state(tmp_path / "a.safetensors", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "a"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_checkpointer_keeps_two_generations_and_falls_back_from_a_damaged_one(tmp_path):
    saver = Checkpointer(tmp_path)
    assert saver.load() is None
    for step in (1, 2, 3):
        saver.save(step, {"value": torch.tensor(step)})
    files = sorted(tmp_path.glob("step-*"))
    assert len(files) == 2
    assert saver.load()[0] == 3
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    with pytest.warns(UserWarning, match="falling back"):
        step, state = saver.load()
    assert step == 2 and state["value"] == 2


def test_when_every_checkpoint_is_damaged_that_is_said(tmp_path):
    saver = Checkpointer(tmp_path)
    saver.save(1, {})
    next(tmp_path.glob("step-*")).write_bytes(b"rubbish")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no usable checkpoint"):
        saver.load()


def test_temporary_files_of_a_killed_writer_are_swept(tmp_path):
    (tmp_path / ".tmp-left.safetensors").write_bytes(b"half")
    Checkpointer(tmp_path).save(1, {})
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_whole_state_of_another_kind_is_not_taken_for_a_checkpoint_or_an_artifact(tmp_path):
    save_state(tmp_path / "other.safetensors", {"images": torch.zeros(3)})
    with pytest.raises(InputError, match="other.safetensors is a whole state file, but not pool of round 3"):
        load_state(tmp_path / "other.safetensors", "pool of round 3")
    saver = Checkpointer(tmp_path / "progress")
    saver.save(1, {"value": 1})
    (tmp_path / "progress" / "step-000000000002.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="step-000000000002.* falling back"):
        assert saver.load() == (1, {"value": 1})
    for size in (1, 2):
        artifact("thing", {"size": size}, lambda _, size=size: {"size": size}, tmp_path)
    first, second = (next((tmp_path / "thing").glob(f"{identity_key({'size': size})}/state*")) for size in (1, 2))
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="made anew"):
        assert artifact("thing", {"size": 1}, lambda _: {"size": 1}, tmp_path) == {"size": 1}


def test_states_written_before_they_had_a_purpose_are_still_read():
    data = dump_state({"value": 1}, "x").replace(b'"purpose":', b'"comment":')
    blank = data.index(b'"sha256":"') + 10
    data = data[:blank] + b"0" * 64 + data[blank + 64 :]
    data = data[:blank] + hashlib.sha256(data).hexdigest().encode() + data[blank + 64 :]
    assert parse_state(data, "old", "anything") == {"value": 1}


def test_no_folder_means_nothing_is_kept():
    saver = Checkpointer(None)
    saver.save(1, {})
    assert saver.load() is None


def test_the_state_hash_sees_names_values_shapes_and_types():
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.ones(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).double()},
    ]
    hashes = {state_hash(state) for state in [base, *others]}
    assert len(hashes) == 5
    assert state_hash({"x": torch.ones(1), "a": torch.ones(2)}) == state_hash({"a": torch.ones(2), "x": torch.ones(1)})


def test_equal_recipes_have_equal_keys_whatever_their_order():
    assert identity_key({"a": 1, "b": [2, 3]}) == identity_key({"b": [2, 3], "a": 1})
    assert identity_key({"a": 1}) != identity_key({"a": 2})


def test_an_artifact_is_made_once_and_made_anew_when_damaged(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        return {"value": torch.tensor([1.5])}

    first = artifact("thing", {"size": 1}, make, tmp_path)
    second = artifact("thing", {"size": 1}, make, tmp_path)
    assert len(calls) == 1 and torch.equal(first["value"], second["value"])
    artifact("thing", {"size": 2}, make, tmp_path)
    assert len(calls) == 2
    stored = next(tmp_path.rglob("state.safetensors"))
    assert json.loads(stored.with_name("made_from.json").read_text())["kind"] == "thing"
    stored.write_bytes(stored.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="made anew"):
        for size in (1, 2):
            artifact("thing", {"size": size}, make, tmp_path)
    assert len(calls) == 3


def _make_slowly(root: str, queue) -> None:
    def make(_):
        queue.put(os.getpid())
        return {"value": torch.arange(1000)}

    artifact("shared", {"x": 1}, make, __import__("pathlib").Path(root))


def test_two_processes_that_want_the_same_artifact_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_make_slowly, args=(str(tmp_path), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    made = []
    while not queue.empty():
        made.append(queue.get())
    assert len(made) == 1


def test_the_random_state_of_all_three_generators_is_put_back(tmp_path):
    seed_everything(3)
    save_state(tmp_path / "r.safetensors", random_state())
    import numpy as np

    first = (random.random(), np.random.rand(), np.random.randn(), torch.rand(1))
    set_random_state(load_state(tmp_path / "r.safetensors"))
    assert first == (random.random(), np.random.rand(), np.random.randn(), torch.rand(1))


def test_keyed_generators_depend_on_the_key_alone():
    torch.manual_seed(5)
    a = torch.rand(3, generator=generator_for(1, "augment", 7))
    torch.manual_seed(6)
    b = torch.rand(3, generator=generator_for(1, "augment", 7))
    c = torch.rand(3, generator=generator_for(1, "augment", 8))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    code = (
        "import sys, kdnb, kdnb.data, kdnb.models, kdnb.methods, kdnb.errors\n"
        "print([name for name in ('torch', 'diffusers', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
