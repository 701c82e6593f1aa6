"""The user's own pictures, arrays and functions become a data set like any other, or are refused in one sentence."""

import subprocess
import sys

import pytest
import torch

from kdnb import parameters
from kdnb.data import class_count, known, load, own_arrays, own_images
from kdnb.data.check import check_files
from kdnb.errors import InputError
from tests.material import write_noise

torch.set_num_threads(1)


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(10):
            write_noise(root / name / f"{index}.png", 40 * number + index)
    return root


def test_one_folder_is_split_by_seed_within_each_class(pets):
    data = load(f"folder:{pets}")
    assert (data.name, data.num_classes, data.channels, data.image_size) == ("folder:pets", 3, 3, 24)
    assert data.spec.class_names == ("cat", "dog", "eel") and data.crop_padding == 3 and not data.spec.flip
    assert torch.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert torch.bincount(data.private.labels).tolist() == [4, 4, 4] == torch.bincount(data.judge.labels).tolist()
    assert len(data.train) == 24 and data.public.labels is None
    again, other = load(f"folder:{pets}"), load(f"folder:{pets}", split_seed=1)
    assert data.hashes == again.hashes and data.hashes["test"] != other.hashes["test"]


def test_mean_and_std_are_those_of_the_training_pictures_and_are_recorded(pets):
    data = load(f"folder:{pets}")
    pixels = (data.train.images + 1) / 2
    assert data.spec.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert data.spec.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-4)
    assert data.hashes["measured"].startswith("3 classes, 3x24x24, mean 0.")


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_test_folder_is_kept_as_it_is(pets, test):
    (pets / "train").mkdir()
    for name in ("cat", "dog", "eel"):
        (pets / name).rename(pets / "train" / name)
        write_noise(pets / test / name / "deep" / "x.JPG", 3)
    data = load(f"folder:{pets}")
    assert len(data.train) == 30 and data.test.labels.tolist() == [0, 1, 2]


def test_a_streamed_folder_gives_the_same_pictures_and_measures(pets):
    held, streamed = load(f"folder:{pets}"), load(f"folder:{pets} stream:yes")
    assert streamed.spec.streamed and streamed.spec.mean == held.spec.mean
    assert torch.equal(next(streamed.test.batches(6))[0], held.test.images)


def test_a_set_larger_than_the_limit_is_streamed(pets, monkeypatch):
    monkeypatch.setattr(own_images, "IN_MEMORY", 1000)
    assert load(f"folder:{pets}").spec.streamed


def test_size_channels_and_flip_can_be_set(pets):
    data = load(f"folder:{pets} size:16 channels:1 flip:yes")
    assert data.train.images.shape == (24, 1, 16, 16) and data.spec.flip and len(data.spec.mean) == 1
    assert load(f"folder:{pets}", image_size=8).image_size == 8


def test_grey_folders_have_one_channel_and_mixed_ones_are_refused(pets):
    write_noise(pets / "dog" / "grey.png", 1, mode="L")
    with pytest.raises(InputError, match=r"pets mixes grey pictures \(dog/grey.png\).*channels:3 after the folder"):
        load(f"folder:{pets}")
    assert load(f"folder:{pets} channels:3").channels == 3
    for path in pets.rglob("*.png"):
        write_noise(path, 5, mode="L")
        path.rename(path.with_suffix(".PNG"))
    write_noise(pets / "dog" / "9.PNG", 90, mode="L")
    assert load(f"folder:{pets}").channels == 1


@pytest.mark.parametrize("cut", [40, 300], ids=["in the header", "in the pixels"])
def test_broken_pictures_are_named_and_left_out_only_on_request(pets, cut):
    victim = pets / "eel" / "4.png"
    victim.write_bytes(victim.read_bytes()[:20] if cut == 40 else victim.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"1 picture\(s\) in pets can't be read, eel/4.png among them.*skip:broken"):
        load(f"folder:{pets}")
    data = load(f"folder:{pets} skip:broken")
    assert len(data.train) + len(data.test) == 29 and data.hashes["skipped"] == "1 pictures: eel/4.png"


def empty(root):
    (root / "fox").mkdir()


def one_class(root):
    for name in ("dog", "eel"):
        (root / name).rename(root.parent / name)


def few(root):
    for path in sorted((root / "cat").iterdir())[2:]:
        path.unlink()


def no_classes(root):
    for path in list(root.rglob("*.png")):
        path.rename(root / f"{path.parent.name}{path.name}")
    for path in list(root.iterdir()):
        if path.is_dir():
            path.rmdir()


def other_classes(root):
    (root / "train").mkdir()
    for name in ("cat", "dog", "eel"):
        (root / name).rename(root / "train" / name)
        write_noise(root / "val" / name.replace("eel", "elk") / "x.png", 1)


def only_test(root):
    (root / "test").mkdir()
    for name in ("cat", "dog", "eel"):
        (root / name).rename(root / "test" / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, r"pets has no pictures \(.jpeg, .jpg, .png, .bmp, .webp\) of the class fox"),
        (one_class, "pets has one class, cat; a classifier needs at least 2"),
        (few, r"pets has 2 picture\(s\) of the class cat; at least 3 are needed: 1 for testing"),
        (no_classes, "pets holds no class folders"),
        (other_classes, "must have the same class folders; eel is in train only"),
        (only_test, "pets has a folder test and no folder train beside it"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_before_a_picture_is_opened(pets, spoil, message):
    spoil(pets)
    with pytest.raises(InputError, match=message):
        check_files(f"folder:{pets}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:", "folder: alone"),
        ("folder:x size:4", "size must be a number of pixels from 8 to 256"),
        ("folder:x skip:all", "skip must be broken"),
        ("folder:x sise:64", "unknown setting 'sise'; did you mean 'size'"),
        ("digit", "unknown dataset 'digit'; did you mean 'digits'"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence(name, message):
    with pytest.raises(InputError, match=message):
        parameters.check("dataset", name)


def test_names_are_checked_without_torch_and_become_absolute(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    assert known("folder:pets size:16") == f"folder:{pets} size:16"
    assert class_count("folder:pets") == 3
    code = f"import sys; from kdnb.data.check import check_files; check_files({f'folder:{pets}'!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- functions and arrays ------------------------------------------------------------------------------------------------------

SOURCE = """
import numpy as np
import torch

rng = np.random.default_rng(0)
IMAGES, LABELS = rng.integers(0, 256, (30, 3, 16, 16), dtype=np.uint8), np.arange(30) % 3

def four(): return IMAGES, LABELS, IMAGES[:6], LABELS[:6]
def two(): return IMAGES, LABELS
def named(): return {"train": (IMAGES, LABELS), "class_names": ["a", "b", "c"]}
def pairs(): return {"train": torch.utils.data.TensorDataset(torch.rand(30, 1, 12, 12), torch.tensor(LABELS))}
def pictures():
    from PIL import Image
    return [(Image.fromarray(image.transpose(1, 2, 0)), int(label)) for image, label in zip(IMAGES, LABELS)]
def bad_range(): return IMAGES.astype(float), LABELS
def bad_shape(): return IMAGES.transpose(0, 2, 3, 1), LABELS
def bad_labels(): return IMAGES, LABELS[:-1]
def bad_entry(): return {"training": (IMAGES, LABELS)}
def sizes(): return [(torch.rand(1, 8 + i % 2, 8), i % 2) for i in range(8)]
def gap(): return IMAGES, np.where(LABELS == 1, 0, LABELS)
def nothing(): return 5
def raises(): return 1 / 0
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("function", "shape", "sizes"),
    [
        ("four", (3, 16), (30, 6)),
        ("two", (3, 16), (24, 6)),
        ("named", (3, 16), (24, 6)),
        ("pairs", (1, 12), (24, 6)),
        ("pictures", (3, 16), (24, 6)),
    ],
)
def test_what_a_function_gives_becomes_a_data_set(own, function, shape, sizes):
    name = f"{own}:{function}"
    check_files(name)
    data = load(name)
    assert (data.channels, data.image_size, data.num_classes) == (*shape, 3)
    assert (len(data.train), len(data.test)) == sizes
    assert -1 <= float(data.train.images.min()) < -0.9 and 0.9 < float(data.train.images.max()) <= 1
    assert data.name == f"mine.py:{function}" and class_count(name) is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("bad_range", "bytes, or floats from 0 to 1, got values from 0 to 255"),
        ("bad_shape", r"\(N, C, H, W\) with 1 or 3 channels, or \(N, H, W\), got \(30, 16, 16, 3\)"),
        ("bad_labels", "one whole number an image"),
        ("bad_entry", "entries train, test and class_names"),
        ("sizes", "images of different shapes"),
        ("gap", "no pictures .* of the class 1"),
        ("nothing", "must give images and labels"),
        ("raises", r"mine.py:raises failed in line \d+: ZeroDivisionError"),
        ("fuor", "unknown function in mine.py 'fuor'; did you mean 'four'"),
    ],
)
def test_what_a_function_does_wrong_is_said_in_one_sentence(own, function, message):
    with pytest.raises(InputError, match=message):
        load(f"{own}:{function}")


def test_standardised_floats_reach_networks_as_they_are():
    from kdnb.models.base import Normalize

    images = torch.randn(12, 3, 8, 8)
    data = own_arrays.from_arrays("x", (images, torch.arange(12) % 2), None, standardized=True)
    normalize = Normalize(data.spec.mean, data.spec.std)
    torch.testing.assert_close(normalize(data.train.images), data.train.images)
    assert float(data.train.images.amin()) < -1
