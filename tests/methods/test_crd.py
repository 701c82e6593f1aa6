"""CRD: whom an image is told from, what is remembered, and what a step needs to be repeatable."""

import pytest
import torch
from torch.nn import functional as F

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.losses import crd_loss
from kdnb.methods import build
from kdnb.models import build as build_model

K, N, IMAGE = 5, 30, (3, 8, 8)
LABELS = torch.arange(N) % K
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(N, *IMAGE, generator=GENERATOR) * 2 - 1


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def bound(name="crd", num_negatives=12, labels=LABELS, **hyper):
    torch.manual_seed(0)
    student, teacher = build_model("resnet8w4", K), build_model("resnet8w8", K).eval()
    method = build(name, num_negatives=num_negatives, width=6, **hyper)
    method.bind(student, teacher, IMAGE, K, 6, num_images=len(labels))
    method.prepare(student, teacher, Split(IMAGES[: len(labels)], labels))
    return method.train(), student, teacher


def step(method, student, teacher, indices, seed=1):
    with torch.no_grad():
        features_t = teacher(IMAGES[indices], return_features=True)
    generator = torch.Generator().manual_seed(seed)
    return method(student(IMAGES[indices], return_features=True), features_t, LABELS[indices], 1, indices, generator)


def test_negatives_are_different_images_of_other_classes():
    method, *_ = bound(num_negatives=24)
    drawn = method.negatives(torch.tensor([3, 11]), GENERATOR)
    assert drawn.shape == (2, 24) and (LABELS[drawn] != LABELS[[3, 11]][:, None]).all()
    assert all(len(row.unique()) == 24 for row in drawn)  # all there are, each once


def test_more_negatives_than_there_are_images_come_with_repetition():
    method, *_ = bound(num_negatives=100)
    drawn = method.negatives(torch.tensor([3]), GENERATOR)
    assert drawn.shape == (1, 100) and (LABELS[drawn] != LABELS[3]).all()


def test_the_relaxed_positive_is_any_image_of_the_class():
    method, *_ = bound("crd_relaxed")
    indices = torch.arange(N).repeat(20)
    positives = method.positives(indices, GENERATOR)
    assert torch.equal(LABELS[positives], LABELS[indices]) and (positives != indices).any()
    assert torch.equal(bound()[0].positives(indices), indices)


def test_scores_use_the_other_networks_memory_before_it_moves():
    method, student, teacher = bound()
    indices = torch.tensor([1, 4, 20])
    memory_s, memory_t = method.memory_s.clone(), method.memory_t.clone()
    with torch.no_grad():
        pooled_s, pooled_t = (
            model.train()(IMAGES[indices], return_features=True).pooled for model in (student, teacher)
        )
    places = torch.cat([indices[:, None], method.negatives(indices, GENERATOR)], 1)
    scores_s, scores_t = method.contrast(pooled_s, pooled_t, indices, places)
    v_s, v_t = F.normalize(method.embed_s(pooled_s), dim=1), F.normalize(method.embed_t(pooled_t), dim=1)
    for scores, vectors, memory in ((scores_s, v_s, memory_t), (scores_t, v_t, memory_s)):
        raw = torch.einsum("bd,bkd->bk", vectors, memory[places]) / 0.07
        torch.testing.assert_close(scores.exp(), raw.exp() / (raw.exp().mean() * N), rtol=1e-4, atol=1e-6)
    for moved, before, vectors in ((method.memory_s, memory_s, v_s), (method.memory_t, memory_t, v_t)):
        torch.testing.assert_close(moved[indices], F.normalize((before[indices] + vectors) / 2, dim=1))
        others = torch.ones(N, dtype=torch.bool)
        others[indices] = False
        assert torch.equal(moved[others], before[others])


def test_the_normaliser_is_that_of_the_first_batch():
    method, student, teacher = bound()
    step(method, student, teacher, torch.arange(6))
    first = method.log_normalizer.clone()
    step(method, student, teacher, torch.arange(6, 12))
    assert first.isfinite().all() and torch.equal(method.log_normalizer, first)


def test_nothing_moves_in_eval_mode():
    method, student, teacher = bound()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = (step(method.eval(), student.eval(), teacher, torch.arange(6)) for _ in range(2))
    assert torch.equal(first["contrast"], second["contrast"])
    for key, value in method.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num())


def test_a_step_depends_on_its_generator_alone():
    losses = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        arguments = bound()
        torch.manual_seed(noise)
        losses.append(step(*arguments, torch.arange(6), seed)["contrast"].item())
    assert losses[0] == losses[1] != losses[2]


def test_the_term_is_both_directions_weighted_and_trains_both_embeddings():
    method, student, teacher = bound(feature_weight=2.0)
    indices = torch.arange(6)
    features_s, features_t = (model(IMAGES[indices], return_features=True) for model in (student, teacher))
    places = torch.cat([indices[:, None], method.negatives(indices, torch.Generator().manual_seed(1))], 1)
    scores = method.eval().contrast(features_s.pooled, features_t.pooled, indices, places)
    expected = 2 * sum(crd_loss(score, N) for score in scores)
    terms = method.train()(features_s, features_t, LABELS[indices], 1, indices, torch.Generator().manual_seed(1))
    assert terms["contrast"].item() == pytest.approx(expected.item(), rel=1e-6)
    terms["contrast"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_sizes_of_what_is_trained_and_what_is_remembered():
    torch.manual_seed(0)
    pair = build_model("resnet8x4", 100), build_model("resnet32x4", 100)
    method = build("crd").bind(*pair, (3, 32, 32), 100, 64, num_images=50)
    assert method.extra_parameters() == 128 * (256 + 256 + 2)
    assert method.memory_s.numel() + method.memory_t.numel() == 256 * 50
    assert method.memory_s.abs().max() <= (3 / 128) ** 0.5 and method.memory_s.std().item() == pytest.approx(
        128**-0.5, rel=0.05
    )


def test_what_it_cannot_work_with_is_refused():
    method, student, teacher = bound()
    with pytest.raises(InputError, match="bind it with num_images"):
        build("crd").bind(student, teacher, IMAGE, K, 6)
    with pytest.raises(InputError, match="bound for 30 images, the training split has 12"):
        method.prepare(student, teacher, Split(IMAGES[:12], LABELS[:12]))
    for labels in (None, torch.zeros(N, dtype=torch.int64)):
        with pytest.raises(InputError, match="at least 2 classes"):
            method.prepare(student, teacher, Split(IMAGES, labels))
    with pytest.raises(InputError, match="momentum must lie between 0 and 1"):
        build("crd", momentum=1.5)
