"""kdnb.studies.soft_labels: what is replayed is what was stored, FerKD picks as its thresholds say, and training resumes bit for bit."""

from dataclasses import replace

import pytest
import torch

from kdnb.data import load
from kdnb.data.crops import replay_crops
from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.losses.soft_labels import CONTEXT, DISCARD_EASY, DISCARD_HARD, POSITIVE, compress_labels, soft_cross_entropy
from kdnb.methods.stored_labels import StoredLabels
from kdnb.models import build
from kdnb.models.base import Features
from kdnb.studies.label_store import LabelStore
from kdnb.studies.soft_labels import (
    ReplaySplit,
    Thresholds,
    distil_from_store,
    forward_cost,
    stored_answers,
    stored_confidence,
)
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from tests.material import Killed

N, M, K = 6, 5, 3
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(N, 1, 8, 8, generator=GENERATOR) * 2 - 1
LABELS = torch.arange(N) % K
CONFIDENCE = torch.tensor([0.34, 0.45, 0.6, 0.9, 0.99])  # of crops 0..4 of every image, all for its true class
THRESHOLDS = Thresholds(low=0.4, middle=0.5, top=0.95)  # crop 0: too hard, 1: context, 2 and 3: positive, 4: too easy


def store(mode: str = "marginal_smoothing_k2") -> LabelStore:
    probs = ((1 - CONFIDENCE) / (K - 1)).expand(N, M)[..., None].repeat(1, 1, K)
    probs.scatter_(2, LABELS.view(N, 1, 1).expand(N, M, 1), CONFIDENCE.view(1, M, 1).expand(N, M, 1))
    compressed = compress_labels(probs, mode)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(N, M, 1)
    boxes[..., 0] = torch.arange(M) / 8  # crop number in the box: top in pixels
    boxes[..., 2] = 0.5
    indices = None if compressed.indices is None else compressed.indices.int()
    return LabelStore(mode, K, boxes, torch.zeros(N, M, dtype=torch.bool), indices, compressed.probs, {})


def split(**changes) -> ReplaySplit:
    return ReplaySplit(**({"store": store(), "images": IMAGES, "labels": LABELS, "size": 8, "num_draw": 2} | changes))


def confidences(batch) -> torch.Tensor:
    """Which crops a batch shows, by the confidence in its targets."""
    return batch[1].amax(1)


def test_a_pass_shows_every_image_m_times_with_its_own_crops_and_labels():
    ((crops, targets),) = split().epoch(seed=1, epoch=0, batch_size=12, steps=range(1))
    assert crops.shape == (12, 1, 8, 8) and targets.shape == (12, K)
    seen = []
    for crop, target in zip(crops, targets, strict=True):
        number = int((CONFIDENCE - target.max()).abs().argmin())
        owner = [
            i
            for i in range(N)
            if torch.equal(
                replay_crops(
                    IMAGES[i : i + 1],
                    store().boxes[i : i + 1, number : number + 1],
                    torch.zeros(1, 1, dtype=torch.bool),
                    8,
                )[0, 0],
                crop,
            )
        ]
        assert len(owner) == 1 and int(LABELS[owner[0]]) == int(target.argmax())
        seen.append((owner[0], number))
    assert len(set(seen)) == 12 and sorted(image for image, _ in seen) == sorted(2 * list(range(N)))


def test_a_step_does_not_depend_on_the_steps_before_it():
    straight = list(split().epoch(3, 1, 4, range(3)))
    (alone,) = split().epoch(3, 1, 4, range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(straight[2], alone, strict=True))
    (other,) = split().epoch(4, 1, 4, range(2, 3))
    assert not torch.equal(alone[0], other[0])


def test_the_regions_follow_the_thresholds():
    assert (
        split(thresholds=THRESHOLDS).regions().tolist()
        == [[DISCARD_HARD, CONTEXT, POSITIVE, POSITIVE, DISCARD_EASY]] * N
    )


def test_discarded_crops_are_drawn_only_where_nothing_else_is_left():
    for epoch in range(5):
        ((_, targets),) = split(thresholds=THRESHOLDS, num_draw=3).epoch(0, epoch, 18, range(1))
        assert torch.allclose(targets.sum(1), torch.ones(18)), "three useful crops an image: no other is needed"
    ((_, targets),) = split(thresholds=THRESHOLDS, num_draw=5).epoch(0, 0, 30, range(1))
    assert int((targets.sum(1) == 0).sum()) == 2 * N, "the two discarded crops of each image carry no target"


def test_context_crops_get_the_smoothed_label_and_positives_keep_theirs():
    ((_, targets),) = split(thresholds=THRESHOLDS, num_draw=3).epoch(0, 0, 18, range(1))
    expected = torch.tensor([0.6, 0.9, 0.9]).repeat(N)  # positives 0.6 and 0.9; the context crop 1 - smoothing = 0.9
    assert torch.allclose(targets.amax(1).sort().values, expected.sort().values)


def test_mixing_stays_inside_an_image_and_leaves_crops_without_target_alone():
    (plain,) = split(num_draw=5).epoch(0, 0, 30, range(1))
    (mixed,) = split(num_draw=5, mix=0.0).epoch(0, 0, 30, range(1))
    assert torch.allclose(mixed[1].view(N, 5, K).mean(1), plain[1].view(N, 5, K).mean(1), atol=1e-6), (
        "a rotation inside each image"
    )
    assert not torch.allclose(mixed[0], plain[0])
    (unmixed,) = split(num_draw=5, thresholds=THRESHOLDS).epoch(0, 0, 30, range(1))
    (both,) = split(num_draw=5, thresholds=THRESHOLDS, mix=0.0).epoch(0, 0, 30, range(1))
    assert torch.allclose(both[0], unmixed[0])


def test_the_confidence_is_that_of_the_store_in_every_mode():
    for mode in ("ori", "smoothing", "marginal_smoothing_k2"):
        assert torch.allclose(stored_confidence(store(mode), batch=4), CONFIDENCE.expand(N, M))
    assert torch.equal(stored_confidence(store("hard")), torch.ones(N, M))
    assert torch.equal(stored_answers(store(), batch=4), LABELS[:, None].expand(N, M))


def test_crops_without_a_target_do_not_count():
    logits = torch.tensor([[2.0, 0.0, 1.0], [5.0, -1.0, 0.0]])
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0]])
    found = StoredLabels()(Features(logits, [], None, None), None, targets, 1)["soft"]
    assert torch.allclose(found, soft_cross_entropy(logits[:1], targets[:1]))


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7])
def test_a_killed_replay_resumes_bit_for_bit(stop, tmp_path, monkeypatch):
    recipe, test = Recipe(epochs=3, batch_size=4, lr=0.05), Split(IMAGES, LABELS)

    def student():
        torch.manual_seed(0)
        return build("resnet8w4", num_classes=K, in_channels=1)

    def train(net, folder=None):
        return fit(
            net, split(thresholds=THRESHOLDS, mix=0.5), test, recipe, method=StoredLabels(), seed=2, folder=folder
        )

    straight = student()
    expected = train(straight)
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    calls, inner = 0, StoredLabels.forward

    def dying(self, *arguments):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise Killed
        return inner(self, *arguments)

    monkeypatch.setattr(StoredLabels, "forward", dying)
    with pytest.raises(Killed):
        train(student(), tmp_path)
    monkeypatch.undo()
    resumed = student()
    found = train(resumed, tmp_path)
    assert found.history == expected.history
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": IMAGES[:4]}, "belong together"),
        ({"labels": LABELS[:2]}, "belong together"),
        ({"num_draw": 6}, "num_draw"),
        ({"num_draw": 0}, "num_draw"),
        ({"thresholds": Thresholds(0.5, 0.4, 0.9)}, "thresholds must satisfy"),
        ({"thresholds": Thresholds(0.995, 0.996, 1.0)}, "discard every stored crop"),
        ({"mix": 1.5}, "SelfMix"),
        ({"mix": 0.5, "num_draw": 1}, "SelfMix"),
    ],
)
def test_bad_input_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        split(**changes)


def test_a_batch_that_splits_the_crops_of_an_image_is_refused():
    with pytest.raises(InputError, match="multiple of the 2 crops"):
        next(split().epoch(0, 0, 5, range(1)))


def test_class_ids_are_no_stored_labels():
    with pytest.raises(InputError, match="distributions"):
        StoredLabels()(Features(torch.zeros(2, 3), [], None, None), None, torch.tensor([0, 1]), 1)


def test_epochs_count_how_often_an_image_is_shown():
    data = load("digits", 8)
    data.test = data.test.subset(torch.arange(10))
    labelled = replace(store(), num_classes=10)
    _, found = distil_from_store(
        "resnet8w4", split(store=labelled), data, Recipe(epochs=4, batch_size=4, lr=0.01, flip=True, crop_padding=1)
    )
    assert len(found.history) == 2
    with pytest.raises(InputError, match="multiple of the 2 crops"):
        distil_from_store("resnet8w4", split(), data, Recipe(epochs=3, batch_size=4, lr=0.01))


def test_forward_cost_counts_multiply_adds():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False), torch.nn.Flatten(), torch.nn.Linear(2 * 6 * 6, 5))
    assert forward_cost(net, (1, 8, 8)) == 2 * 9 * 36 + 2 * 36 * 5
    assert net.training


def test_milestones_and_warm_up_count_how_often_an_image_is_shown(monkeypatch):
    from kdnb.studies import soft_labels

    seen = []
    monkeypatch.setattr(soft_labels, "fresh", lambda *_: None)
    monkeypatch.setattr(soft_labels, "fit", lambda net, part, test, recipe, **_: seen.append(recipe))
    recipe = Recipe(24, 12, 0.1, schedule="multistep", milestones=(12, 18), warmup_epochs=4, crop_padding=2, flip=True)
    distil_from_store("resnet8w4", split(), load("digits", 8), recipe)
    assert (seen[0].epochs, seen[0].milestones, seen[0].warmup_epochs) == (12, (6, 9), 2)
