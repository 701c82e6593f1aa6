import dataclasses
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdnb.data import DATASETS, dataset_spec, load
from kdnb.data.splits import Split
from kdnb.data.tensors import _resize
from kdnb.errors import InputError


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setattr("kdnb.data.locate.data_roots", lambda: [tmp_path])
    return tmp_path


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_fashion(root, train=30, test=10, labels=None):
    random = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        folder = root / "FashionMNIST" / "raw"
        write_idx(folder / f"{stem}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10 if labels is None else labels[:count])


def write_cifar(root, name, count=6, classes=10):
    random = np.random.default_rng(1)
    folder, key = (
        (root / "cifar-10-batches-py", b"labels") if name == "cifar10" else (root / "cifar-100-python", b"fine_labels")
    )
    folder.mkdir()
    files = (
        [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    )
    batches = {}
    for file in files:
        batch = {
            b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            key: random.integers(0, classes, count).tolist(),
        }
        (folder / file).write_bytes(pickle.dumps(batch, 2))
        batches[file] = batch
    return folder, batches


# --- the splits of each set ----------------------------------------------------------------------------------------------------


def rows(split):
    return {image.numpy().tobytes() for image in split.images}


def test_digits_are_split_into_disjoint_parts_of_the_sizes_stated():
    data = load("digits")
    assert (len(data.private), len(data.test), len(data.public), len(data.train)) == (600, 500, 697, 1297)
    assert data.private.images.shape == (600, 1, 16, 16)
    private, public, test = rows(data.private), rows(data.public), rows(data.test)
    assert private.isdisjoint(public) and private.isdisjoint(test) and public.isdisjoint(test)
    assert private | public == rows(data.train)
    assert data.public.labels is None and len(data.judge.labels) == 697


def test_the_same_split_seed_gives_the_same_digits_and_another_gives_others():
    first, again, other = load("digits"), load("digits"), load("digits", split_seed=1)
    assert first.hashes == again.hashes
    assert all(first.hashes[name] != other.hashes[name] for name in ("private", "public", "test"))


def test_images_fill_the_range_from_minus_one_to_one():
    data = load("digits", image_size=8)
    assert data.train.images.min() == -1 and data.train.images.max() == 1
    assert data.train.images.dtype == torch.float32 and data.train.labels.dtype == torch.int64


def test_fashion_mnist_keeps_its_test_set_and_splits_its_training_set(root, monkeypatch):
    monkeypatch.setitem(DATASETS, "fashion_mnist", dataclasses.replace(DATASETS["fashion_mnist"], private=12))
    write_fashion(root)
    data, other = load("fashion_mnist", image_size=32), load("fashion_mnist", image_size=32, split_seed=3)
    assert (len(data.private), len(data.public), len(data.test)) == (12, 18, 10)
    assert rows(data.private).isdisjoint(rows(data.public))
    assert data.hashes["test"] == other.hashes["test"] and data.hashes["private"] != other.hashes["private"]
    assert sorted(data.train.labels.tolist()) == sorted(np.arange(30) % 10)


def test_cifar_pixels_arrive_where_the_archive_says(root):
    _, batches = write_cifar(root, "cifar10")
    data = load("cifar10")
    image = batches["test_batch"][b"data"][2].reshape(3, 32, 32).astype(np.float32)
    assert torch.allclose(data.test.images[2], torch.from_numpy(image / 127.5 - 1), atol=1e-6)
    assert data.test.labels.tolist() == batches["test_batch"][b"labels"]
    assert len(data.train) == 30


def test_cifar100_uses_the_fine_labels(root):
    _, batches = write_cifar(root, "cifar100", classes=100)
    assert load("cifar100").test.labels.tolist() == batches["test"][b"fine_labels"]


# --- refusals ------------------------------------------------------------------------------------------------------------------


def test_images_and_labels_that_do_not_belong_together_are_refused(root):
    write_fashion(root)
    write_idx(root / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte", np.zeros(9))
    with pytest.raises(InputError, match="do not belong together"):
        load("fashion_mnist")


def test_labels_out_of_range_are_refused_with_both_ranges(root):
    write_fashion(root, labels=np.full(30, 10))
    with pytest.raises(InputError, match=r"labels 0\.\.9, its files have 10\.\.10"):
        load("fashion_mnist")


def test_a_cifar_batch_without_its_data_or_of_another_width_is_refused(root):
    folder, _ = write_cifar(root, "cifar10")
    rows = np.zeros((2, 3072), np.uint8)
    for batch in (
        {b"labels": [1]},
        {b"data": np.zeros((2, 99), np.uint8), b"labels": [1, 2]},
        {b"data": None, b"labels": [1]},
        {b"data": [[-1] * 3072], b"labels": [1]},
        {b"data": rows, b"labels": None},
        {b"data": rows, b"labels": [2**70, 1]},
    ):
        (folder / "data_batch_3").write_bytes(pickle.dumps(batch, 2))
        with pytest.raises(InputError, match="cifar10: a batch lacks"):
            load("cifar10")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_reported_with_the_place_to_put_them(root, name):
    with pytest.raises(InputError, match=f"no complete copy of {name} found.*KDNB_DATA"):
        load(name)


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        dataset_spec("cifar_10")
    with pytest.raises(InputError, match="between 8 and 256 pixels, got 4"):
        load("digits", image_size=4)


def test_the_names_can_be_checked_without_loading_torch():
    code = "import sys, kdnb.data; kdnb.data.dataset_spec('imagenet'); assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_are_the_one_set_whose_mirror_images_change_class():
    assert [name for name, spec in DATASETS.items() if not spec.flip] == ["digits"]


# --- resizing ------------------------------------------------------------------------------------------------------------------


def test_resizing_to_the_same_size_returns_the_images():
    images = torch.rand(2, 1, 8, 8)
    assert _resize(images, 8) is images


def test_a_little_larger_means_a_black_frame():
    images = torch.rand(2, 1, 28, 28)
    found = _resize(images, 32)
    assert torch.equal(found[:, :, 2:30, 2:30], images)
    assert found.sum() == pytest.approx(images.sum().item(), rel=1e-5)


def test_much_larger_is_bilinear():
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(_resize(images, 16), F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False))


def test_smaller_is_the_mean_over_areas_of_the_framed_image():
    images = torch.rand(2, 1, 28, 28)
    expected = F.pad(images, (2, 2, 2, 2)).view(2, 1, 16, 2, 16, 2).mean((3, 5))
    assert torch.allclose(_resize(images, 16), expected, atol=1e-6)


# --- a split -------------------------------------------------------------------------------------------------------------------


def make_split():
    return Split(torch.arange(7.0).view(7, 1, 1, 1), torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def test_an_epoch_visits_every_image_once_in_an_order_of_seed_and_epoch():
    split = make_split()
    orders = {tuple(split.permutation(seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(7)) for order in orders) and len(orders) > 6
    assert split.permutation(1, 2).equal(split.permutation(1, 2))
    batches = list(split.epoch(1, 2, 3, range(3)))
    assert torch.equal(torch.cat([images for images, _ in batches]).flatten(), split.permutation(1, 2).float())
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels[split.permutation(1, 2)])


def test_the_rest_of_an_epoch_is_the_end_of_the_whole_one():
    split = make_split()
    [(images, labels)] = split.epoch(1, 2, 3, range(1, 2))
    assert torch.equal(images, list(split.epoch(1, 2, 3, range(3)))[1][0])


def test_batches_come_in_order_with_and_without_labels():
    split = make_split()
    assert [images.flatten().tolist() for images, _ in split.batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [labels for _, labels in Split(split.images).batches(4)] == [None, None]


def test_leaving_a_class_out_leaves_the_others():
    assert make_split().without_class(1).labels.tolist() == [0, 2, 0, 2, 0]


def test_the_hash_changes_with_one_pixel_and_with_one_label():
    first, pixel, label = make_split(), make_split(), make_split()
    pixel.images[3] += 1
    label.labels[3] += 1
    assert len({first.hash, pixel.hash, label.hash, Split(first.images).hash}) == 4
    assert first.hash == make_split().hash


def test_padding_of_the_crop_scales_with_the_size_and_is_never_lost():
    assert load("digits").crop_padding == 1 and load("digits", image_size=32).crop_padding == 2
    assert load("digits", image_size=8).crop_padding == 1
    assert load("digits").normalization == {"in_channels": 1, "num_classes": 10, "mean": (0.5,), "std": (0.5,)}
