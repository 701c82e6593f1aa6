import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses.zero_cost import classifier_gradient, diswot_score, relation_score, semantic_score

GENERATOR = torch.Generator().manual_seed(0)


def _random(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def _outer(gradient):
    """The (K, D, D) form of the definition."""
    return F.normalize(gradient[:, :, None] * gradient[:, None, :], dim=2)


def test_classifier_gradient_is_that_of_autograd():
    pooled, weight, labels = _random(6, 4), _random(3, 4).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 1])
    logits = F.linear(pooled, weight)
    F.cross_entropy(logits, labels).backward()
    assert torch.allclose(classifier_gradient(logits, pooled, labels), weight.grad)


def test_classifier_gradient_does_not_accumulate():
    pooled, logits, labels = _random(6, 4), _random(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    assert torch.equal(classifier_gradient(logits, pooled, labels), classifier_gradient(logits, pooled, labels))


def test_relation_score_by_hand():
    identical, orthogonal = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    # rows of G: (1, 1) / sqrt 2 against (1, 0) and (0, 1); each row differs by 2 - 2 / sqrt 2; divided by B^2 = 4
    assert relation_score(identical, orthogonal).item() == pytest.approx(-(2 - 2 / 2**0.5) * 2 / 4, rel=1e-6)


def test_relation_score_allows_other_channels_and_sizes_and_ignores_scale():
    x = _random(4, 3, 5, 5)
    assert relation_score(x, _random(4, 7, 2, 2)).item() < 0
    assert relation_score(x, 3 * x).abs().item() < 1e-15


def test_rank_one_form_equals_the_outer_product_form():
    s, t = _random(5, 8), _random(5, 8)
    s[1, 2], t[3], s[4], t[4] = 0.0, 0.0, 0.0, 0.0  # dead features and dead classes
    expected = -(_outer(s) - _outer(t)).square().sum() / s.numel()
    assert semantic_score(s, t).item() == pytest.approx(expected.item(), rel=1e-12)


def test_rank_one_form_follows_the_norm_floor_for_tiny_gradients():
    s, t = _random(5, 8), _random(5, 8) * 1e-6  # norms of the rows of g g^T about the floor of 1e-12
    expected = -(_outer(s) - _outer(t)).square().sum() / s.numel()
    assert semantic_score(s, t).item() == pytest.approx(expected.item(), rel=1e-12)


def test_scores_are_zero_for_the_teacher_itself_and_negative_for_others():
    feature_map, gradient = _random(4, 3, 2, 2), _random(5, 8)
    assert diswot_score(feature_map, feature_map, gradient, gradient).abs().item() < 1e-12
    assert diswot_score(_random(4, 3, 2, 2), feature_map, _random(5, 8), gradient).item() < 0


def test_score_is_the_sum_of_both_measures():
    maps, gradients = (_random(4, 3, 2, 2), _random(4, 6)), (_random(5, 8), _random(5, 8))
    assert diswot_score(*maps, *gradients) == relation_score(*maps) + semantic_score(*gradients)


def test_other_widths_and_batches_are_refused():
    with pytest.raises(InputError, match="feature width"):
        semantic_score(_random(5, 8), _random(5, 16))
    with pytest.raises(InputError, match="same batch"):
        relation_score(_random(4, 3), _random(5, 3))
