"""Measures of images and predictions: hand-computed values, authorities (scipy, sklearn), limits."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics import roc_auc_score

from kdnb import metrics
from kdnb.errors import InputError


def features(seed, count, width, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return torch.randn(count, width, generator=rng, dtype=torch.float64) @ mix + shift


def test_frechet_distance_is_that_of_the_textbook():
    a, b = features(0, 50, 4), features(1, 40, 4, shift=0.5)
    mean_a, mean_b, cov_a, cov_b = a.mean(0).numpy(), b.mean(0).numpy(), np.cov(a.T.numpy()), np.cov(b.T.numpy())
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet_distance(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_one_dimension_by_hand():
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])  # means 0 and 3, variances 2 and 8
    assert metrics.frechet_distance(a, b).item() == pytest.approx(9.0 + (8**0.5 - 2**0.5) ** 2)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_with_few_samples():
    few = features(2, 5, 20)  # singular covariance
    assert metrics.frechet_distance(few, few).item() < 1e-10
    assert metrics.frechet_distance(few, few.flip(0)).item() < 1e-10


def test_frechet_distance_is_symmetric_and_translation_counts_squared():
    a, b = features(3, 30, 3), features(4, 60, 3)
    assert metrics.frechet_distance(a, b).item() == pytest.approx(metrics.frechet_distance(b, a).item(), rel=1e-12)
    assert metrics.frechet_distance(a, a + 2.0).item() == pytest.approx(3 * 4.0, rel=1e-12)


def test_released_frechet_distance_of_a_set_to_itself_is_negative():
    a = features(5, 100, 5)
    assert metrics.frechet_distance_released(a, a).item() < -1e-3


def test_frechet_distance_refuses_what_has_no_covariance():
    with pytest.raises(InputError, match="N >= 2"):
        metrics.frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(InputError):
        metrics.frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))


def from_probabilities(rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_calibration_errors_by_hand():
    z = from_probabilities([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 0, 1])
    # bins of width 0.1: {0.9, 0.9}: accuracy 0.5, confidence 0.9; {0.6, 0.6}: accuracy 1, confidence 0.6
    assert metrics.ece(z, labels, bins=10).item() == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert metrics.mce(z[:3], labels[:3], bins=10).item() == pytest.approx(0.4)
    table = metrics.reliability(z, labels, bins=10)
    assert table.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0] and table.accuracy[8].item() == 0.5


def test_bins_are_closed_on_the_right():
    z = torch.tensor([[0.0, 0.0]], dtype=torch.float64)  # confidence exactly 0.5
    assert metrics.reliability(z, torch.tensor([0]), bins=2).count.tolist() == [1, 0]
    certain = torch.tensor([[100.0, -100.0]], dtype=torch.float64)
    assert metrics.reliability(certain, torch.tensor([0]), bins=2).count.tolist() == [0, 1]


def test_a_perfectly_calibrated_set_has_no_calibration_error():
    z = from_probabilities([[0.75, 0.25]] * 4)
    assert metrics.ece(z, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(0.0, abs=1e-12)


def test_brier_nll_entropy_and_margin_by_hand():
    z, labels = from_probabilities([[0.5, 0.25, 0.25]]), torch.tensor([1])
    assert metrics.brier(z, labels).item() == pytest.approx(0.25 + 0.5625 + 0.0625)
    assert metrics.nll(z, labels).item() == pytest.approx(math.log(4.0))
    assert metrics.entropy(z).item() == pytest.approx(1.5 * math.log(2.0))
    assert metrics.entropy(torch.zeros(1, 7), normalized=True).item() == pytest.approx(1.0)
    assert metrics.margin(z).item() == pytest.approx(0.25)
    assert metrics.confidence(z).item() == pytest.approx(0.5)


def test_entropy_is_finite_at_huge_logits():
    assert metrics.entropy(torch.tensor([[1e4, -1e4]])).item() == 0.0


def test_temperature_scaling_finds_the_temperature_that_spoiled_the_logits():
    rng = torch.Generator().manual_seed(0)
    honest = torch.randn(20000, 5, generator=rng, dtype=torch.float64)
    labels = torch.multinomial(honest.softmax(1), 1, generator=rng)[:, 0]
    temperature = metrics.temperature_scale(3.0 * honest, labels)
    assert temperature.item() == pytest.approx(3.0, rel=0.05)
    best = metrics.nll(3.0 * honest / temperature, labels)
    for factor in (0.99, 1.01):
        assert metrics.nll(3.0 * honest / (factor * temperature), labels) > best


def test_temperature_scaling_stops_at_the_end_of_its_interval():
    separable = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.temperature_scale(separable, torch.tensor([0, 1])).item() == pytest.approx(0.01)
    with pytest.raises(InputError):
        metrics.temperature_scale(separable, torch.tensor([0, 1]), low=0.0)


def test_auroc_agrees_with_sklearn_ties_included():
    rng = torch.Generator().manual_seed(1)
    positive, negative = (
        (torch.randint(0, 20, (50,), generator=rng) + 3).double(),
        torch.randint(0, 20, (70,), generator=rng).double(),
    )
    expected = roc_auc_score([1] * 50 + [0] * 70, torch.cat([positive, negative]).numpy())
    assert metrics.auroc(positive, negative).item() == pytest.approx(expected, rel=1e-12)
    assert metrics.auroc(torch.tensor([2.0]), torch.tensor([1.0])).item() == 1.0
    with pytest.raises(InputError):
        metrics.auroc(torch.tensor([]), positive)


def test_class_imbalance_is_zero_when_even_and_log_k_when_one_class_takes_all():
    assert metrics.class_imbalance(torch.tensor([0, 1, 2, 3]), 4).item() == pytest.approx(0.0, abs=1e-12)
    assert metrics.class_imbalance(torch.tensor([2, 2]), 4).item() == pytest.approx(math.log(4.0))


def test_behaviour_collects_every_measure():
    rng = torch.Generator().manual_seed(2)
    z, labels = torch.randn(30, 4, generator=rng), torch.randint(0, 4, (30,), generator=rng)
    row = metrics.behaviour(z, labels)
    assert row["accuracy"] == (z.argmax(1) == labels).float().mean()
    assert row["entropy"] == metrics.entropy(z).mean() and row["ece"] == metrics.ece(z, labels)
    assert all(value.dim() == 0 and value.isfinite() for value in row.values())


def test_batch_norm_distance_has_no_gradient():
    mean = torch.ones(2, requires_grad=True)
    distance = metrics.batch_norm_distance([mean], [torch.ones(2)], [torch.zeros(2)], [torch.ones(2)])
    assert not distance.requires_grad and distance.tolist() == pytest.approx([2**0.5])


def test_labels_of_another_length_are_refused():
    with pytest.raises(InputError, match="labels"):
        metrics.accuracy(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
