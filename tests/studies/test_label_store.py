import json
from dataclasses import replace

import pytest
import torch

from kdnb.data.crops import replay_crops
from kdnb.errors import InputError
from kdnb.losses.soft_labels import compress_labels, restore_labels
from kdnb.storage.naming import canonical
from kdnb.studies.label_store import StoreConfig, make_store, open_store
from tests.material import STORE, STORE_IMAGES, LabelTeacher

N, K, MODES = 7, 6, ["ori", "hard", "smoothing", "marginal_smoothing_k3", "marginal_renorm_k3"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def _everything(store):
    """Boxes, flips and labels of all crops of all images."""
    images = torch.arange(len(store))
    return store.boxes, store.flips, store.labels(images, torch.arange(store.num_crops).expand(len(store), -1))


@pytest.mark.parametrize("mode", MODES)
def test_stored_labels_are_those_of_the_teacher_on_the_replayed_crops(folder, mode):
    teacher = LabelTeacher().train()
    boxes, flips, labels = _everything(make_store(folder, STORE_IMAGES, teacher, replace(STORE, mode=mode)))
    assert teacher.training and boxes.shape == (N, 5, 4)  # 35 crops in batches of 4 and shards of 15: none is lost
    crops = replay_crops(STORE_IMAGES, boxes, flips, 8).flatten(0, 1)
    probs = teacher.eval()(crops).softmax(-1).view(N, 5, K)
    assert torch.allclose(labels, restore_labels(compress_labels(probs, mode), mode, K), atol=1e-6)


def test_the_teacher_is_asked_at_the_given_temperature(folder):
    store = make_store(folder, STORE_IMAGES, LabelTeacher(), replace(STORE, mode="ori", temperature=4.0))
    crops = replay_crops(STORE_IMAGES, store.boxes, store.flips, 8).flatten(0, 1)
    assert torch.allclose(store.probs.flatten(0, 1), (LabelTeacher().eval()(crops) / 4).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_read_is_what_was_made_to_the_bit(folder, mode, half):
    made = make_store(folder, STORE_IMAGES, LabelTeacher(), replace(STORE, mode=mode, half=half))
    read = open_store(folder, STORE_IMAGES)
    assert read.mode == mode and read.num_classes == K and read.recipe == made.recipe
    assert all(torch.equal(a, b) for a, b in zip(_everything(made), _everything(read), strict=True))
    assert read.probs is None or read.probs.dtype == (torch.float16 if half else torch.float32)


def test_the_same_settings_make_the_same_store(tmp_path):
    for name in "ab":
        make_store(tmp_path / name, STORE_IMAGES, LabelTeacher(), STORE)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["index.json", "labels-00000.safetensors", "labels-00001.safetensors", "labels-00002.safetensors"]
    assert (tmp_path / "a" / "index.json").read_bytes() == (
        tmp_path / "b" / "index.json"
    ).read_bytes()  # it names all content by hash


def test_half_of_the_crops_are_mirrored_unless_forbidden(tmp_path):
    flips = make_store(tmp_path / "a", STORE_IMAGES, LabelTeacher(), replace(STORE, num_crops=40)).flips
    assert 0.4 < flips.float().mean() < 0.6
    assert not make_store(tmp_path / "b", STORE_IMAGES, LabelTeacher(), replace(STORE, flip=False)).flips.any()


def test_an_interrupted_store_goes_on_from_its_last_shard(folder):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    whole = (folder / "index.json").read_bytes()
    (folder / "labels-00002.safetensors").unlink()
    (folder / "index.json").unlink()
    with pytest.raises(InputError, match="no finished label store"):
        open_store(folder, STORE_IMAGES)
    teacher = LabelTeacher()
    make_store(folder, STORE_IMAGES, teacher, STORE)
    assert teacher.crops_seen == 1 * 5  # the last shard has one image
    assert (folder / "index.json").read_bytes() == whole


class Broken(LabelTeacher):
    """Fails after the first shard."""

    def forward(self, x):
        if self.crops_seen >= 15:
            raise KeyboardInterrupt
        return super().forward(x)


def test_a_store_half_replaced_by_other_settings_is_refused(folder):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    with pytest.raises(KeyboardInterrupt):
        make_store(folder, STORE_IMAGES, Broken(), STORE, seed=1)
    with pytest.raises(InputError, match="make the store anew"):
        open_store(folder, STORE_IMAGES)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"mode": "hard"}, {"teacher": LabelTeacher(seed=2)}, {"temperature": 2.0}]
)
def test_shards_of_other_settings_are_not_taken_over(folder, changed):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    changed = dict(changed)
    teacher, seed = changed.pop("teacher", LabelTeacher()), changed.pop("seed", 0)
    make_store(folder, STORE_IMAGES, teacher, replace(STORE, **changed), seed=seed)
    assert teacher.crops_seen == N * 5


def test_any_flipped_byte_is_refused(folder):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(InputError):
                open_store(folder, STORE_IMAGES)
        path.write_bytes(data)
    open_store(folder, STORE_IMAGES)


def test_any_truncation_is_refused(folder):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for length in (0, 5, len(data) // 2, len(data) - 2):
            path.write_bytes(data[:length])
            with pytest.raises(InputError):
                open_store(folder, STORE_IMAGES)
        path.write_bytes(data)


def test_exchanged_or_missing_shards_are_refused(folder):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    first, second = folder / "labels-00000.safetensors", folder / "labels-00001.safetensors"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b), second.write_bytes(a)
    with pytest.raises(InputError, match="not the one the index"):
        open_store(folder, STORE_IMAGES)
    first.unlink()
    with pytest.raises(InputError, match="can't be read"):
        open_store(folder, STORE_IMAGES)


@pytest.mark.parametrize(
    "other",
    [
        STORE_IMAGES[:-1],
        STORE_IMAGES.flip(0),
        STORE_IMAGES + 1e-6,
        STORE_IMAGES.double(),
        STORE_IMAGES.view(N, 1, 12, 10),
    ],
)
def test_a_store_made_for_other_images_is_refused(folder, other):
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    with pytest.raises(InputError, match="other images"):
        open_store(folder, other)


def _rewrite_index(folder, change):
    import hashlib

    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    change(index)
    index["sha256"] = hashlib.sha256(canonical(index).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def test_an_unknown_mode_or_format_is_refused(folder):
    with pytest.raises(InputError, match="label mode"):
        make_store(folder, STORE_IMAGES, LabelTeacher(), StoreConfig("marginal_renorm"))
    make_store(folder, STORE_IMAGES, LabelTeacher(), STORE)
    _rewrite_index(folder, lambda index: index["recipe"].update(mode="smothing"))
    with pytest.raises(InputError, match="did you mean 'smoothing'"):
        open_store(folder, STORE_IMAGES)
    _rewrite_index(folder, lambda index: index.update(format="kdnb-soft-labels-9"))
    with pytest.raises(InputError, match="soft-labels-9"):
        open_store(folder, STORE_IMAGES)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"num_crops": 0}, "num_crops of a label store must be >= 1, got 0"),
        ({"size": 0}, "size of a label store must be >= 1, got 0"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"scale": (0.9, 0.1)}, "scale low <= high"),
        ({"mode": "smothing"}, "did you mean 'smoothing'"),
    ],
)
def test_bad_settings_are_refused_before_a_teacher_is_there(setting, message):
    with pytest.raises(InputError, match=message):
        StoreConfig(**setting)


@pytest.mark.parametrize("images", [STORE_IMAGES[:0], STORE_IMAGES.byte()])
def test_images_that_cannot_be_asked_about_are_refused(folder, images):
    with pytest.raises(InputError, match="needs float images"):
        make_store(folder, images, LabelTeacher(), STORE)


def test_a_mode_that_keeps_all_classes_is_refused(folder):
    with pytest.raises(InputError):
        make_store(folder, STORE_IMAGES, LabelTeacher(), replace(STORE, mode="marginal_renorm_k6"))
