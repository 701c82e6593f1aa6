import numpy as np
import pytest
import torch
from PIL import Image

from kdnb.data.crops import random_boxes
from kdnb.data.folders import FRAMINGS, FolderSplit, frame, read_picture
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.randomness import generator_for
from kdnb.storage.checkpoints import Checkpointer
from kdnb.training import loop
from kdnb.training.recipe import Recipe
from tests.material import make_split, write_picture

# --- one picture ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpeg", "RGB"),
        ("a.jpeg", "L"),
        ("a.jpeg", "CMYK"),
        ("a.png", "RGB"),
        ("a.png", "P"),
        ("a.png", "RGBA"),
        ("a.png", "L"),
    ],
)
def test_pictures_of_every_mode_are_read_as_pillow_reads_them(tmp_path, name, mode):
    path = write_picture(tmp_path / name, 11, 17, mode=mode)
    with Image.open(path) as picture:
        expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_picture(path), expected)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_damaged_and_missing_pictures_are_refused_by_name(tmp_path, content):
    path = tmp_path / "n01440764" / "x.jpeg"
    whole = write_picture(path, 50, 50).read_bytes()
    path.write_bytes(whole[:200] if content is None else content)
    with pytest.raises(InputError, match="x.jpeg"):
        read_picture(path)
    path.unlink()
    with pytest.raises(InputError, match="n01440764/x.jpeg can't be read"):
        read_picture(path)


def test_pictures_of_too_many_pixels_or_bytes_and_other_formats_are_refused_before_they_are_decoded(
    tmp_path, monkeypatch
):
    path = write_picture(tmp_path / "a.png", 50, 60)
    monkeypatch.setattr("kdnb.data.folders._MAX_PIXELS", 2999)
    with pytest.raises(InputError, match="60 x 50 pixels"):
        read_picture(path)
    monkeypatch.setattr("kdnb.data.folders._MAX_BYTES", 10)
    with pytest.raises(InputError, match="at most 10"):
        read_picture(path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="can't be read"):
        read_picture(write_picture(tmp_path / "a.gif", 10, 10))


def pillow_frame(path, size, box=None, first=None):
    with Image.open(path) as picture:
        if first:
            picture = picture.resize(first, Image.Resampling.BILINEAR)
        picture = picture.crop(box) if first else picture.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).int()


def test_the_centre_framing_is_the_shorter_side_to_256_of_224_and_its_middle(tmp_path):
    path = write_picture(tmp_path / "a.png", 40, 61)
    found = frame(read_picture(path), "centre", 28)  # 32 x 48
    assert (found.int() - pillow_frame(path, 28, (10, 2, 38, 30), (48, 32))).abs().max() <= 1


def test_the_square_framings_resize_both_sides_and_cut(tmp_path):
    path = write_picture(tmp_path / "a.png", 40, 61)
    picture = read_picture(path)
    assert (
        frame(picture, "centre_of_square", 28).int() - pillow_frame(path, 28, (2, 2, 30, 30), (32, 32))
    ).abs().max() <= 1
    whole = pillow_frame(path, 32, (0, 0, 32, 32), (32, 32))
    corners = set()
    for seed in range(40):
        crop = frame(picture, "random_crop", 28, torch.Generator().manual_seed(seed)).int()
        differences = {
            (top, left): (crop - whole[:, top : top + 28, left : left + 28]).abs().max().item()
            for top in range(5)
            for left in range(5)
        }
        corner = min(differences, key=differences.get)
        assert differences[corner] <= 1
        corners.add(corner)
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(5))


def test_the_random_resized_crop_is_the_box_of_the_generator(tmp_path):
    path = write_picture(tmp_path / "a.png", 40, 61)
    found = frame(read_picture(path), "random_resized_crop", 16, torch.Generator().manual_seed(3))
    top, left, height, width = (
        random_boxes(1, 40, 61, generator=torch.Generator().manual_seed(3))[0] * torch.tensor([40, 61, 40, 61])
    ).round()
    assert (
        found.int() - pillow_frame(path, 16, (int(left), int(top), int(left + width), int(top + height)))
    ).abs().max() <= 1


@pytest.mark.parametrize("framing", FRAMINGS)
def test_every_framing_gives_the_size_asked_for_whatever_the_picture(framing):
    for height, width in ((5, 90), (90, 5), (16, 16), (300, 211), (1, 1)):
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        assert frame(picture, framing, 16, torch.Generator().manual_seed(0)).shape == (3, 16, 16)


# --- a split -------------------------------------------------------------------------------------------------------------------


def test_batches_come_in_order_between_minus_one_and_one(tmp_path):
    split = make_split(tmp_path, evaluation="centre_of_square")
    batches = list(split.batches(3))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    images = torch.cat([images for images, _ in batches])
    for index, name in enumerate(split.names):
        assert torch.equal(
            images[index], frame(read_picture(tmp_path / name), "centre_of_square", 16).float() / 127.5 - 1
        )
    assert images.dtype == torch.float32 and images.min() >= -1 and images.max() <= 1


def test_an_epoch_is_a_function_of_seed_and_epoch(tmp_path):
    split = make_split(tmp_path)

    def epoch(seed, number):
        return torch.cat([images for images, _ in split.epoch(seed, number, 2, range(4))])

    assert torch.equal(epoch(0, 0), epoch(0, 0))
    assert not torch.equal(epoch(0, 0), epoch(1, 0)) and not torch.equal(epoch(0, 0), epoch(0, 1))


def test_crops_belong_to_the_index_and_not_to_the_place_in_the_order(tmp_path):
    split = make_split(tmp_path)
    order = split.permutation(5, 2)
    images = torch.cat([images for images, _ in split.epoch(5, 2, 3, range(3))])
    for position, index in enumerate(order.tolist()):
        picture = read_picture(tmp_path / split.names[index])
        expected = frame(picture, "random_resized_crop", 16, generator_for(5, "crop", 2, index))
        assert torch.equal(images[position], expected.float() / 127.5 - 1)


def test_the_rest_of_an_epoch_is_the_end_of_the_whole_one_and_the_global_state_is_left_alone(tmp_path):
    split = make_split(tmp_path)
    state = torch.get_rng_state()
    whole, rest = list(split.epoch(1, 3, 2, range(4))), list(split.epoch(1, 3, 2, range(2, 4)))
    assert torch.equal(state, torch.get_rng_state())
    for (images, labels), (images_again, labels_again) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, images_again) and torch.equal(labels, labels_again)


def test_the_number_of_threads_changes_nothing(tmp_path):
    one, four = (
        torch.cat([images for images, _ in make_split(tmp_path, workers=workers).epoch(0, 0, 3, range(3))])
        for workers in (1, 4)
    )
    assert torch.equal(one, four)


def test_a_damaged_picture_stops_the_epoch_and_is_named(tmp_path):
    split = make_split(tmp_path)
    (tmp_path / "4.png").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="4.png"):
        list(split.batches(2))


def test_subsets_without_a_class_and_without_labels(tmp_path):
    split = make_split(tmp_path)
    assert split.without_class(1).names == ["0.png", "2.png", "3.png", "5.png", "6.png"]
    assert split.subset(torch.tensor([6, 0])).labels.tolist() == [0, 0]
    [(images, labels)] = split.unlabelled().batches(10)
    assert len(images) == 7 and labels is None
    assert (
        len({split.hash, split.unlabelled().hash, split.without_class(1).hash, make_split(tmp_path, image_size=8).hash})
        == 4
    )
    assert split.hash == make_split(tmp_path).hash


def test_a_split_refuses_unknown_framings_and_labels_of_another_length(tmp_path):
    with pytest.raises(InputError, match="did you mean 'centre'"):
        make_split(tmp_path, training="center")
    with pytest.raises(InputError, match="7 pictures and 2 labels"):
        FolderSplit(tmp_path, ["a"] * 7, torch.zeros(2), 16)


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_training_on_pictures_resumes_bit_for_bit(tmp_path, monkeypatch, stop):
    """Stopped after every step of two epochs, the last step of an epoch included."""
    split = make_split(tmp_path / "pictures")
    recipe = Recipe(epochs=2, batch_size=3, lr=0.1, schedule="constant", flip=True)
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)

    def run(folder):
        torch.manual_seed(0)
        student = build("resnet8w4", 3)
        loop.fit(student, split, split, recipe, folder=folder)
        return student.state_dict()

    whole = run(None)
    save, saves = Checkpointer.save, []

    def save_and_stop(saver, step, state):
        save(saver, step, state)
        saves.append(step)
        if len(saves) == stop:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_and_stop)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    resumed = run(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_some_pictures_are_taken_evenly_as_tensors(tmp_path):
    split = make_split(tmp_path)
    images, labels = next(split.batches(7))
    part = split.take(3)
    assert torch.equal(part.images, images[[0, 2, 4]]) and torch.equal(part.labels, labels[[0, 2, 4]])
    assert len(split.take(100)) == 7 and split.unlabelled().take(2).labels is None
