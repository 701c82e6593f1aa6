import dataclasses

import pytest
import torch
from PIL import Image

from kdnb.data import DATASETS, layouts, load
from kdnb.data.check import check_files
from kdnb.errors import InputError


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A data root, and the three data sets with 3 classes in place of their own number."""
    monkeypatch.setattr("kdnb.data.locate.data_roots", lambda: [tmp_path])
    for name in layouts.LAYOUTS:
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], num_classes=3))
    return tmp_path


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (level, level, level)).save(path)


def write_imagenet(root):
    for split, count in (("train", 4), ("val", 2)):
        for label, wnid in enumerate(
            ("n03", "n01", "n02")
        ):  # alphabetical order gives the labels, not the order of writing
            for index in range(count):
                picture(root / split / wnid / f"{wnid}_{index}.JPEG", 50 * label + index)
    (root / "train" / "n01" / "notes.txt").write_text("not a picture")


def write_tiny_imagenet(root):
    rows = []
    for label, wnid in enumerate(("n01", "n02", "n03")):
        for index in range(4):
            picture(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 50 * label)
        picture(root / "val" / "images" / f"val_{label}.JPEG", 50 * label)
        rows.insert(0, f"val_{label}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


def write_cub200(root):
    images, classes, training = [], [], []
    for index in range(12):
        name = f"{index % 3 + 1:03d}.Bird/bird_{index}.jpg"
        picture(root / "images" / name, 20 * index)
        images.append(f"{index + 1} {name}")
        classes.append(f"{index + 1} {index % 3 + 1}")
        training.append(f"{index + 1} {int(index < 8)}")
    for stem, rows in (("images", images), ("image_class_labels", classes), ("train_test_split", training)):
        (root / f"{stem}.txt").write_text("\n".join(rows) + "\n")


def test_imagenet_labels_follow_the_sorted_class_folders(small):
    write_imagenet(small / "imagenet")
    data = load("imagenet", image_size=16)
    assert len(data.train) == 12 and len(data.test) == 6
    expected = {"n01": 0, "n02": 1, "n03": 2}
    for split in (data.train, data.test):
        assert [expected[name.split("/")[1]] for name in split.names] == split.labels.tolist()
    assert data.test.evaluation == "centre" and data.train.training == "random_resized_crop"


def test_tiny_imagenet_takes_the_labels_of_its_test_pictures_from_the_list(small):
    write_tiny_imagenet(small / "tiny-imagenet-200")
    data = load("tiny_imagenet")
    assert data.test.names == ["val/images/val_2.JPEG", "val/images/val_1.JPEG", "val/images/val_0.JPEG"]
    assert data.test.labels.tolist() == [2, 1, 0]
    [(images, labels)] = data.test.batches(8)
    assert images.shape == (3, 3, 64, 64)
    assert torch.allclose(images.mean((1, 2, 3)), labels * 50 / 127.5 - 1, atol=0.02)
    assert data.crop_padding == 8


def test_tiny_imagenet_with_its_test_pictures_sorted_into_class_folders_is_read_too(small):
    root = small / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / "val" / "val_annotations.txt").unlink()
    for label, wnid in enumerate(("n01", "n02", "n03")):
        (root / "val" / wnid).mkdir()
        (root / "val" / "images" / f"val_{label}.JPEG").rename(root / "val" / wnid / f"val_{label}.JPEG")
    (root / "val" / "images").rmdir()
    assert load("tiny_imagenet").test.labels.tolist() == [0, 1, 2]


def test_cub200_is_split_by_its_own_list_and_counts_classes_from_one(small):
    write_cub200(small / "CUB_200_2011")
    data = load("cub200", image_size=16)
    assert len(data.train) == 8 and len(data.test) == 4
    assert data.test.labels.tolist() == [2, 0, 1, 2]
    assert data.test.names[0] == "images/003.Bird/bird_8.jpg"
    assert (data.train.training, data.test.evaluation, data.crop_padding) == ("random_crop", "centre_of_square", 0)


def test_private_and_public_pictures_are_disjoint_and_a_function_of_the_seed(small):
    write_imagenet(small / "imagenet")
    data, again, other = load("imagenet"), load("imagenet"), load("imagenet", split_seed=1)
    assert len(data.private) == 6 and set(data.private.names).isdisjoint(data.public.names)
    assert set(data.private.names) | set(data.public.names) == set(data.train.names)
    assert data.public.labels is None and torch.equal(data.judge.labels, data.train.labels[6:])
    assert data.hashes == again.hashes and data.hashes["private"] != other.hashes["private"]
    assert data.hashes["test"] == other.hashes["test"]


def test_missing_data_are_reported_with_the_place_to_put_them(small):
    for name, folder in (
        ("imagenet", "KDNB_DATA/imagenet"),
        ("tiny_imagenet", "tiny-imagenet-200"),
        ("cub200", "CUB_200_2011"),
    ):
        with pytest.raises(InputError, match=folder):
            load(name)
        with pytest.raises(InputError, match=folder):
            check_files(name)


def test_the_quick_look_finds_what_is_there(small):
    write_cub200(small / "cub200")
    check_files("cub200")


def test_a_wrong_number_of_classes_is_refused_with_both_numbers(small, monkeypatch):
    write_imagenet(small / "imagenet")
    monkeypatch.setitem(DATASETS, "imagenet", dataclasses.replace(DATASETS["imagenet"], num_classes=1000))
    with pytest.raises(InputError, match="1000 classes, its training set has 3"):
        load("imagenet")


def test_class_folders_that_differ_between_training_and_test_are_refused(small):
    write_imagenet(small / "imagenet")
    (small / "imagenet" / "val" / "n09").mkdir()
    with pytest.raises(InputError, match="3 class folders and val 4"):
        load("imagenet")


def test_empty_sets_and_files_in_place_of_folders_are_refused(small):
    for split in ("train", "val"):
        (small / "imagenet" / split).mkdir(parents=True)
    with pytest.raises(InputError, match="holds no picture"):
        load("imagenet")
    (small / "imagenet" / "train").rmdir()
    (small / "imagenet" / "train").write_text("")
    with pytest.raises(InputError, match="can't be read"):
        load("imagenet")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("val_0.JPEG", "2 columns"),
        ("", "2 columns"),
        ("\xff\xfe", "can't be read"),
        ("val_0.JPEG\tn77", "names the class 'n77'"),
        ("../../secret.png\tn01", "lies outside"),
    ],
)
def test_damaged_lists_of_tiny_imagenet_are_refused(small, row, message):
    root = small / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / "val" / "val_annotations.txt").write_bytes(row.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        load("tiny_imagenet")


@pytest.mark.parametrize(
    ("stem", "content", "message"),
    [
        ("images", "1 001.Bird/a.jpg\n", "1, 12, 12 pictures"),
        ("image_class_labels", "", "2 columns"),
        ("image_class_labels", "\n".join(f"{i + 1} x" for i in range(12)), "class numbers"),
        ("image_class_labels", "\n".join(f"{i + 1} {i % 3}" for i in range(12)), r"labels -1\.\.1"),
        ("train_test_split", "\n".join(f"{i + 1} 2" for i in range(12)), "zeros and ones"),
        ("images", "\n".join(f"{i + 1} /etc/x.jpg" for i in range(12)), "lies outside"),
    ],
)
def test_damaged_lists_of_cub200_are_refused(small, stem, content, message):
    root = small / "CUB_200_2011"
    write_cub200(root)
    (root / f"{stem}.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        load("cub200", image_size=16)
