"""Every kind of stored file, damaged in thousands of ways: it is refused by name, or the last good one is taken with a warning; never another
exception, never other values. And what a file asks for in memory is bounded by what it is."""

import functools
import os
import random
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save

from kdnb.data.folders import read_picture
from kdnb.data.formats import read_cifar_batch, read_idx
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.reports.run_files import read_run
from kdnb.runs import Run
from kdnb.samplers.supply import PoolSupply
from kdnb.storage.cache import artifact
from kdnb.storage.checkpoints import Checkpointer, load_state, save_state
from kdnb.storage.files import read_record, write_record
from kdnb.storage.header import check_classes
from kdnb.studies.bfa_attack import attack
from kdnb.studies.label_store import make_store
from kdnb.training.importers import read_weights
from tests.material import GENERATOR_LOOP, STORE, STORE_IMAGES, LabelTeacher, run_generator_loop
from tests.slow.routines import digest, images, network
from tests.slow.savers import read_store, state

EACH = 900  # corruptions of every file
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Kind(NamedTuple):
    """`make(folder)` stores; `read(folder)` gives a digest of what is read back. `file` is damaged; `word` is in the message, the file's name
    where nothing else is said. `older` says what is read, with a warning, in place of a damaged file: None means that it is refused. Without
    `exact` the file's hash is over its values: bytes between them may differ."""

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], str]
    word: str = ""
    older: Callable[[], str] | None = None
    exact: bool = True


# --- what is stored ------------------------------------------------------------------------------------------------------------


def make_checkpoints(folder: Path, steps: int) -> None:
    for step in range(1, steps + 1):
        Checkpointer(folder).save(step, state(step))


def read_artifact(folder: Path) -> str:
    return digest(artifact("thing", {"size": 1}, lambda _: state(1), folder))


def make_pool(folder: Path) -> None:
    run_generator_loop(GENERATOR, folder=folder)


GENERATOR = type(GENERATOR_LOOP)(**vars(GENERATOR_LOOP) | {"epochs": 2, "inner_steps": 1, "student_steps": 1})


def read_pool(folder: Path) -> str:
    supply = PoolSupply(GENERATOR.pool_size, (1, 8, 8), "cpu", folder=folder)
    supply.load_state_dict({"sizes": [GENERATOR.synthesis_batch] * 2})
    return digest(supply.contents())


@functools.cache
def target() -> torch.nn.Module:
    return network(num_classes=4, channels=1)


def search(folder: Path) -> str:
    return digest(
        attack(
            target(), images(8, 1, 8), Split(images(8, 1, 8, 5), torch.arange(8) % 4), 1000, max_flips=2, folder=folder
        ).rows
    )


def make_run(folder: Path) -> None:
    kept = Run("demo", "quick", {"seed": 0}, folder)
    kept.note(parameters=kept.parameters)
    kept.table("numbers", [{"x": number, "y": number / 3} for number in range(20)])
    kept.result("top1", 0.5)


def read_kept(folder: Path) -> str:
    """A run whose files are not what it wrote is shown with its problems; here they count as a refusal."""
    found = read_run(folder)
    if found.problems:
        raise InputError("; ".join(found.problems))
    return digest([found.record, found.results, [path.read_text() for path in sorted(folder.glob("tables/*"))]])


def store(folder: Path) -> None:
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)


RECORD = {
    "parameters": {"seed": 0, "lr": 0.1, "milestones": [1, 2]},
    "word": "Größe",
    "status": "ok",
    "versions": {"torch": "2.0"},
}
KEY = "fe36923e15fedd49"  # of the recipe in `read_artifact`
KINDS: dict[str, Kind] = {
    "state": Kind(
        "x.safetensors",
        lambda folder: save_state(folder / "x.safetensors", state(1), "x"),
        lambda folder: digest(load_state(folder / "x.safetensors", "x")),
    ),
    "newest checkpoint": Kind(
        "step-000000000002.safetensors",
        lambda folder: make_checkpoints(folder, 2),
        lambda folder: digest(Checkpointer(folder).load()),
        older=lambda: digest((1, state(1))),
    ),
    "only checkpoint": Kind(
        "step-000000000001.safetensors",
        lambda folder: make_checkpoints(folder, 1),
        lambda folder: digest(Checkpointer(folder).load()),
    ),
    "artifact": Kind(f"thing/{KEY}/state.safetensors", read_artifact, read_artifact, older=lambda: digest(state(1))),
    "run.json": Kind(
        "run.json",
        lambda folder: write_record(folder / "run.json", RECORD),
        lambda folder: digest(read_record(folder / "run.json")),
    ),
    "execution.json": Kind(
        "execution.json",
        lambda folder: write_record(folder / "execution.json", RECORD),
        lambda folder: digest(read_record(folder / "execution.json")),
    ),
    "table": Kind("tables/numbers.csv", make_run, read_kept),
    "results": Kind("results.csv", make_run, read_kept),
    "label index": Kind("index.json", store, read_store, word="index of the label store", exact=False),
    "label shard": Kind("labels-00001.safetensors", store, read_store),
    "pool shard": Kind("pool/round-000001.safetensors", make_pool, read_pool),
    "trail": Kind("trail.safetensors", search, search),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Path]:
    """A folder for every kind, made once and put right after every corruption."""
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in KINDS}
    for name, folder in folders.items():
        KINDS[name].make(folder)
    return folders


# --- damage --------------------------------------------------------------------------------------------------------------------


def corruptions(data: bytes, others: list[bytes], count: int) -> Iterator[bytes]:
    """So many contents that differ from `data`: other files' first, then cuts, flipped bits, zeros, exchanged blocks, appended bytes by turns."""
    rng, made = random.Random(count), 0
    whole = iter([b"", b"\0", bytes(len(data)), data + data, *others])
    while made < count:
        damaged = next(whole, None)
        if damaged is None:
            damaged = (_cut, _flipped, _flipped, _zeroed, _exchanged, _appended)[made % 6](data, rng)
        if damaged != data:
            made += 1
            yield damaged


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        found[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _exchanged(data: bytes, rng: random.Random) -> bytes:
    length = rng.randint(1, max(1, len(data) // 4))
    a, b = sorted((rng.randrange(len(data) - 2 * length + 1), rng.randrange(len(data) - 2 * length + 1)))
    b += length
    return data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]


def _appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b"x", rng.randbytes(rng.randint(1, 40)), data[-8:]))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_by_name_or_replaced_by_the_last_good_one(name, stored, record_property):
    kind, folder = KINDS[name], stored[name]
    path, good = folder / kind.file, kind.read(folder)
    data, word = path.read_bytes(), kind.word or path.name
    others = [(stored[other] / KINDS[other].file).read_bytes() for other in KINDS if other != name]
    for number, damaged in enumerate(corruptions(data, others, EACH)):
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = kind.read(folder)
            except InputError as error:
                assert kind.older is None and word in str(error) and len(str(error)) < 2000, (number, damaged)
            else:
                fallen_back = kind.older and found == kind.older() and any(word in str(one.message) for one in caught)
                assert fallen_back or (not kind.exact and found == good), (number, damaged)
        path.write_bytes(data)
    assert kind.read(folder) == good
    record_property("corruptions", EACH)


def test_both_generations_may_be_damaged_at_once_and_that_is_said(stored, tmp_path):
    make_checkpoints(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(InputError, match="no usable checkpoint: .*000002.*; .*000001"),
    ):
        Checkpointer(tmp_path).load()


# --- memory --------------------------------------------------------------------------------------------------------------------


def claims(header: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


def zipped(path: Path, size: int) -> None:
    """A torch file whose directory says that its tensor has so many bytes."""
    torch.save({"fc.weight": torch.zeros(10, 4)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
    at = data.rindex(entry.filename.encode()) - 46 + 20  # the sizes in the directory's entry
    data[at : at + 8] = struct.pack("<II", size, size)
    path.write_bytes(data)


def old_torch(path: Path) -> None:
    """A torch file from before 1.6 that asks for a tensor of 2**40 numbers."""
    torch.save({"fc.weight": torch.zeros(10, 4)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K(Nt", b"\x8a\x06\0\0\0\0\0\x01Nt"))


def png(width: int, height: int) -> bytes:
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


HUGE = '{"t0":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
GREEDY: dict[str, tuple[bytes | Callable[[Path], None], Callable[[Path], object]]] = {
    "a state's header of terabytes": (struct.pack("<Q", 2**43) + b"{}", load_state),
    "a state's tensor of terabytes": (claims(HUGE), load_state),
    "weights of terabytes": (claims(HUGE), read_weights),
    "a header of terabytes at a look": (claims(HUGE), lambda path: check_classes(path, 10, "digits")),
    "a deep header": (claims("[" * 1_000_000), lambda path: check_classes(path, 10, "digits")),
    "weights with a wrong size": (save({"w": torch.zeros(4)}).replace(b"[4]", b"[9]"), read_weights),
    "a zip entry of gigabytes": (lambda path: zipped(path, 2**32 - 2), read_weights),
    "an old torch tensor of terabytes": (old_torch, read_weights),
    "idx of terabytes": (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31) + bytes(100), read_idx),
    "a pickle with two billion objects": (b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".", read_cifar_batch),
    "a pickled text of terabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**42) + b"abc.", read_cifar_batch),
    "a pickled array of terabytes": (b"\x80\x02cnumpy\nndarray\n\x8a\x06\0\0\0\0\0\x10\x85R.", read_cifar_batch),
    "an old torch file with two billion objects": (b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".", read_weights),
    "a picture of gigapixels": (png(100_000, 100_000), read_picture),
    "a deep record": (b"[" * 1_000_000, read_record),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_a_file_claims_to_need_is_not_allocated(name, tmp_path):
    content, read = GREEDY[name]
    path = tmp_path / "greedy"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    refused, grown = in_a_child(lambda: read(path))
    assert refused and grown < 8 * path.stat().st_size + 64 * 2**20


def test_reading_a_whole_file_takes_a_small_multiple_of_its_size(tmp_path):
    path = tmp_path / "x.safetensors"
    save_state(path, {"weights": torch.zeros(2**23), "more": [torch.zeros(2**20, dtype=torch.int32)] * 4})
    refused, grown = in_a_child(lambda: load_state(path))
    assert not refused and 2**25 < grown < 8 * path.stat().st_size + 64 * 2**20


def in_a_child(action: Callable[[], object]) -> tuple[bool, int]:
    """Whether `action` raised `InputError` in a process of its own, and by how many bytes that process grew."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        before, code = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 2
        try:
            action()
            code = 0
        except InputError:
            code = 1
        finally:
            os.write(writer, struct.pack("<q", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
            os._exit(code)
    os.close(writer)
    grown = struct.unpack("<q", os.read(reader, 8))[0]
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 1), "it ended in another way"
    return code == 1, grown * 1024
