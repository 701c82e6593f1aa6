"""Made-up and damaged input for everything that reads: what comes out is a value or `InputError`, nothing else.

Every property has two tests: a few fixed examples in every run, and as many random ones as `MANY` says in the slow part. A failing random test
names its seed; `fuzzed(..., seed=N)` repeats it.
"""

import functools
import hashlib
import io
import json
import math
import pickle
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from kdnb.data.folders import read_picture
from kdnb.data.formats import read_cifar_batch, read_idx
from kdnb.errors import InputError
from kdnb.parameters import PARAMETERS, Parameters, check, resolve
from kdnb.runner.plan import parse_overrides, plan, read_params
from kdnb.storage.checkpoints import dump_state, parse_state
from kdnb.storage.files import read_record, write_record
from kdnb.storage.header import check_classes, read_header
from kdnb.storage.naming import canonical
from kdnb.studies.label_store import make_store, open_store
from kdnb.training.importers import read_weights
from tests.material import FIXTURES, STORE, STORE_IMAGES, LabelTeacher

SOME, MANY = 25, 2500  # examples of every property


def fuzzed(strategy: st.SearchStrategy, seed: int | None = None) -> Callable:
    """Turn `check(given, folder)` into the two tests of a property."""

    def decorate(check: Callable) -> Callable:
        @pytest.mark.parametrize("examples", [SOME, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(examples, tmp_path, record_property, monkeypatch):
            monkeypatch.setenv("KDNB_NOTEBOOKS", str(FIXTURES))
            monkeypatch.setenv("KDNB_PARAMS", str(tmp_path / "params"))
            monkeypatch.setenv("KDNB_OUTPUTS", str(tmp_path / "outputs"))
            (tmp_path / "params" / "standard").mkdir(parents=True)
            chosen, seen = seed or (1 if examples == SOME else random.SystemRandom().getrandbits(32)), 0

            @hypothesis.seed(chosen)
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @hypothesis.given(strategy)
            def property_holds(given):
                nonlocal seen
                seen += 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(given, tmp_path)

            try:
                property_holds()
            except BaseException as error:
                error.add_note(f"seed of this search: {chosen}")
                raise
            record_property("fuzz examples", seen)

        return test

    return decorate


def value_or_refusal(read: Callable, *arguments):
    """What `read` gives, None where it refuses."""
    try:
        return read(*arguments)
    except InputError as error:
        assert str(error) and len(str(error)) < 5000
        return None


# --- material ------------------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw, *originals: bytes) -> bytes:
    """One of the originals after a few edits: bytes changed, cut out, put in, doubled, or the end cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(1, 16))
        kind = draw(st.sampled_from(("change", "change", "insert", "remove", "double", "cut", "number")))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "number":
            data[at : at + 4] = draw(
                st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"9999"))
            )
        elif kind == "cut":
            del data[at:]
    return bytes(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["tensor", "dict", "tuple", "t0", "F32", "U8", "F8_E4M3", 2**63, -1, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$", "name", "items", "shape", "dtype", "data_offsets", "state", "__metadata__"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
STATE = {
    "weights": torch.arange(6.0).view(2, 3),
    "pair": (1, [torch.zeros(2, dtype=torch.float16)]),
    "text": "Größe",
    "nothing": None,
}
STATES = (
    dump_state(STATE, "thing"),
    dump_state({"model": {"conv": torch.zeros(2, 1, 3, 3), "fc.weight": torch.zeros(10, 4)}}),
    dump_state([]),
)
PLAIN = save({"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)})


def framed(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def hashed(structure: object, header: dict) -> bytes:
    """A state file of any structure whose hash holds."""
    blank = "0" * 64
    tensors = {"t0": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}} | header
    metadata = {
        "format": "kdnb-state-1",
        "sha256": blank,
        "state": structure if isinstance(structure, str) else json.dumps(structure),
    }
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(16)
    return data.replace(blank.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def saved(content: object, old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


WEIGHTS = {"fc.weight": torch.arange(8.0).view(2, 4), "fc.bias": torch.zeros(2), "count": torch.tensor(3)}
CHECKPOINTS = [saved({"model": WEIGHTS, "epoch": 3, "optimizer": {"lr": 0.1}}, old) for old in (False, True)] + [
    saved(WEIGHTS, True)
]


# --- states and their headers --------------------------------------------------------------------------------------------------


@fuzzed(st.binary(max_size=200) | damaged(*STATES))
def test_bytes_are_a_whole_state_or_refused(data, folder):
    found = value_or_refusal(parse_state, data)
    assert found is None or data in STATES


@fuzzed(
    st.tuples(
        JSON | st.sampled_from(["[" * 50_000, '{"$": "tuple", "items": ' * 20_000]),
        st.dictionaries(st.sampled_from(["t0", "t1"]), JSON, max_size=1),
    )
)
def test_a_state_of_any_structure_is_read_or_refused_even_where_its_hash_holds(given, folder):
    data = hashed(*given)
    value_or_refusal(parse_state, data, "state", "thing")
    (folder / "x.safetensors").write_bytes(data)
    value_or_refusal(check_classes, folder / "x.safetensors", 10, "digits")


@fuzzed(st.binary(max_size=200) | damaged(*STATES, PLAIN) | st.builds(framed, JSON, st.binary(max_size=40)))
def test_a_header_is_read_or_refused(data, folder):
    path = folder / "x.safetensors"
    path.write_bytes(data)
    header = value_or_refusal(read_header, path)
    assert header is None or isinstance(header, dict)
    value_or_refusal(check_classes, path, 10, "digits")


@fuzzed(st.binary(max_size=200) | st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_record_is_what_was_written_or_refused(given, folder):
    path = folder / "run.json"
    if isinstance(given, bytes):
        path.write_bytes(given)
        assert value_or_refusal(read_record, path) is None
    else:
        write_record(path, given)
        assert canonical(read_record(path)) == canonical(given)


# --- checkpoints from elsewhere ------------------------------------------------------------------------------------------------


def only_tensors(path: Path) -> None:
    found = value_or_refusal(read_weights, path)
    assert found is None or all(isinstance(value, torch.Tensor) for value in found.values())


@fuzzed(
    st.binary(max_size=200)
    | damaged(*CHECKPOINTS)
    | st.builds(lambda start, rest: start + rest, st.sampled_from([b"PK\3\4", b"\x80\x02"]), st.binary(max_size=100))
)
def test_a_torch_file_gives_tensors_or_is_refused(data, folder):
    (folder / "x.pth").write_bytes(data)
    only_tensors(folder / "x.pth")


@fuzzed(
    damaged(PLAIN, *STATES)
    | st.builds(framed, st.dictionaries(st.text(max_size=4), JSON, max_size=3), st.binary(max_size=40))
)
def test_a_safetensors_file_gives_tensors_or_is_refused(data, folder):
    (folder / "x.safetensors").write_bytes(data)
    only_tensors(folder / "x.safetensors")


OPCODES = [
    bytes([code])
    for code in b"(.0125BCFGIJKLMNRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x8f\x92\x93\x94\x95"
]

WORDS = [
    *OPCODES,
    b"K\1",
    b"X\1\0\0\0a",
    b"N",
    b"(t",
    b")",
    b"}",
    b"]",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"\x8e\0\0\0\0\0\1\0\0",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"cos\nsystem\n",
    b"cnumpy._core.multiarray\n_reconstruct\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
]


@fuzzed(st.lists(st.sampled_from(WORDS), max_size=25))
def test_any_program_of_a_pickle_gives_data_or_is_refused(words, folder):
    path = folder / "x"
    path.write_bytes(b"\x80\x02" + b"".join(words) + b".")
    only_tensors(path)
    found = value_or_refusal(read_cifar_batch, path)
    assert found is None or isinstance(found, dict)


# --- data files ----------------------------------------------------------------------------------------------------------------

IDX = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + bytes(24)
CIFAR = pickle.dumps(
    {b"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"labels": [3, 8], b"batch_label": b"batch 1"}, 2
)


@fuzzed(
    st.binary(max_size=60)
    | damaged(IDX)
    | st.builds(lambda start, rest: b"\0\0" + start + rest, st.binary(min_size=2, max_size=2), st.binary(max_size=60))
)
def test_an_idx_file_holds_what_its_header_says_or_is_refused(data, folder):
    (folder / "x").write_bytes(data)
    found = value_or_refusal(read_idx, folder / "x")
    assert found is None or found.nbytes == len(data) - 4 - 4 * data[3]


@fuzzed(st.binary(max_size=60) | damaged(CIFAR, pickle.dumps({b"data": [1, 2.5, "x", (None, True)]}, 4)))
def test_a_cifar_batch_is_a_dict_or_refused(data, folder):
    (folder / "x").write_bytes(data)
    found = value_or_refusal(read_cifar_batch, folder / "x")
    assert found is None or isinstance(found, dict)


def pictures() -> list[bytes]:
    found, rng = [], np.random.default_rng(0)
    for form, mode, options in (
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("JPEG", "RGB", {"quality": 30}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ):
        pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        picture = (
            Image.fromarray(pixels[..., 0].astype(np.uint16))
            if mode == "I;16"
            else Image.fromarray(pixels).convert(mode)
        )
        picture.save(buffer := io.BytesIO(), form, **options)
        found.append(buffer.getvalue())
    return found


@fuzzed(
    damaged(*pictures())
    | st.builds(
        lambda start, rest: start + rest,
        st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]),
        st.binary(max_size=100),
    )
)
def test_a_picture_is_three_planes_of_bytes_or_refused(data, folder):
    (folder / "x.png").write_bytes(data)
    found = value_or_refusal(read_picture, folder / "x.png")
    assert found is None or (found.dtype == torch.uint8 and found.shape[0] == 3)


# --- label stores --------------------------------------------------------------------------------------------------------------


@functools.cache
def store() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), STORE_IMAGES, LabelTeacher(), STORE)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def put(folder: Path, **changed: bytes) -> Path:
    (folder / "store").mkdir(exist_ok=True)
    for name, data in (store() | changed).items():
        (folder / "store" / name).write_bytes(data)
    return folder / "store"


@fuzzed(
    st.sampled_from(sorted(store())).flatmap(
        lambda name: st.tuples(st.just(name), damaged(store()[name]) | st.binary(max_size=60))
    )
)
def test_a_label_store_is_read_as_it_was_made_or_refused(given, folder):
    name, data = given
    found = value_or_refusal(open_store, put(folder, **{name: data}), STORE_IMAGES)
    assert (
        found is None
        or data == store()[name]
        or (name == "index.json" and json.loads(data) == json.loads(store()[name]))
    )


@fuzzed(st.tuples(st.sampled_from(["recipe", "shards", "num_classes", "format", "mode", "images", "hash"]), JSON))
def test_an_index_made_up_with_a_hash_that_holds_is_read_or_refused(given, folder):
    name, value = given
    index = json.loads(store()["index.json"])
    del index["sha256"]
    place = {"mode": index["recipe"], "images": index["recipe"], "hash": index["shards"][1]}.get(name, index)
    place[name] = value
    text = canonical(index)
    index["sha256"] = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    value_or_refusal(open_store, put(folder, **{"index.json": json.dumps(index).encode()}), STORE_IMAGES)


# --- parameters ----------------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**4000, 10**4400),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.dates(),
    st.sampled_from(
        [
            "1e-6",
            "nan",
            "inf",
            "1e999",
            "9" * 5000,
            "wrn_16_2",
            "wrn_99999999999999999999_1",
            "wrn_" + "9" * 5000 + "_1",
            "resnet8",
            "kd",
            "dkd beta:2",
            "kd beta:" + "(" * 200,
            "cpu",
            "\ud800",
            1e400,
            -0.0,
        ]
    ),
    st.lists(st.integers() | st.text(max_size=5) | st.floats(), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@fuzzed(st.tuples(st.sampled_from(sorted(PARAMETERS)), VALUES))
def test_any_value_of_a_parameter_is_of_its_type_or_refused(given, folder):
    name, value = given
    found = value_or_refusal(check, name, value)
    if found is not None:
        kind = {"int": int, "float": float, "str": str, "bool": bool, "list[int]": list, "list[str]": list}[
            PARAMETERS[name].annotation
        ]
        assert type(found) is kind and (kind is not float or math.isfinite(found))


@fuzzed(st.dictionaries(st.sampled_from(sorted(PARAMETERS)) | st.text(max_size=6), VALUES, max_size=4))
def test_any_values_together_are_resolved_or_refused(values, folder):
    found = value_or_refusal(resolve, values)
    assert found is None or (isinstance(found, Parameters) and list(found) == list(values))


LINES = st.sampled_from(
    [
        "epochs: 5",
        "lr: 1e-2",
        "seed: yes",
        "epochs: 2001-99-99",
        "epochs: 2001-01-01 00:00:00 +99:99",
        "epochs: 0b_",
        "epochs: 0x" + "f" * 5000,
        "epochs: " + "9" * 5000,
        "lr: .inf",
        "lr: 190:20:30.15",
        "lr: !!float x",
        "seed: !!int x",
        "a: !!timestamp x",
        "lr: !!bool x",
        "lr: !!binary x",
        "lr: !!null x",
        "epochs: !<x> 1",
        "epochs: !!python/object/apply:os.system [x]",
        "!!set {a}",
        "!!set {}",
        "epochs: [" * 3000,
        "- " * 3000,
        "? " * 3000,
        "? 0x" + "f" * 5000 + "\n: 1",
        "? 1\n: 2",
        "2: 3",
        "~: 1",
        "lr: &a [1, 2]",
        "extends: standard/_base.yaml",
        "extends: standard/fine.yaml",
        "extends: [x]",
        "extends: 0x" + "f" * 5000,
        "seed: *a",
        "<<: *a",
        "=: 1",
        "%YAML 9.9",
        "---",
        "...",
        "\t",
        "'",
        "{",
        "\ufeff",
        "\x85a: 1",
    ]
)


@fuzzed(
    st.text(max_size=40)
    | st.lists(LINES | st.text(max_size=20), max_size=6).map("\n".join)
    | damaged(b"epochs: 5\nlr: 1e-2\nseed: 3  # ours\n")
)
def test_any_text_is_a_parameter_file_or_refused(text, folder):
    (folder / "params" / "standard" / "_base.yaml").write_text("seed: 3\n")
    path = folder / "params" / "standard" / "fine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    assert isinstance(value_or_refusal(read_params, "fine", "standard"), dict | None)
    made = value_or_refusal(plan, "fine", "standard")
    assert made is None or {*made.changed} <= {*made.parameters}


@fuzzed(
    st.lists(
        st.text(max_size=20)
        | st.builds(
            "{}={}".format,
            st.sampled_from(["epochs", "lr", "device", "x"]),
            LINES.map(lambda line: line.partition(": ")[2]) | st.text(max_size=20),
        ),
        max_size=3,
    )
)
def test_any_words_on_the_command_line_are_overrides_or_refused(pairs, folder):
    found = value_or_refusal(parse_overrides, pairs)
    if found is not None:
        made = value_or_refusal(plan, "fine", "quick", found)
        assert made is None or {*made.changed} <= {*found}


def test_nested_aliases_on_the_command_line_are_refused_before_they_grow():
    laughs = (
        "[&a [x], "
        + ", ".join(f"&{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 9)}]" for level in range(12))
        + "]"
    )
    with pytest.raises(InputError, match="epochs can't be read"):
        parse_overrides([f"epochs={laughs}"])
