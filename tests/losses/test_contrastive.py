"""Contrastive inversion and supervised contrast against slow versions written from the equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnb.errors import InputError
from kdnb.losses import contrastive
from kdnb.models.probes import BatchNormProbe


def unit(seed, *shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_contrastive_inversion_follows_the_equation_with_a_cache():
    local, views, cached_local, cached_views = unit(0, 3, 4), unit(1, 3, 4), unit(2, 2, 4), unit(3, 2, 4)
    rows, columns = torch.cat([local, cached_local]), torch.cat([views, cached_views])
    losses = []
    for i in range(5):
        scores = [math.exp(float(rows[i] @ columns[j]) / 0.1) for j in range(5)]
        losses.append(-math.log(scores[i] / sum(scores)))
    expected = sum(losses[:3]) / 3 + sum(losses[3:]) / 2
    assert contrastive.contrastive_inversion_loss(local, views, cached_local, cached_views).item() == pytest.approx(
        expected, rel=1e-10
    )


def test_contrastive_inversion_stops_the_gradient_at_the_global_views():
    local, views = unit(0, 3, 4).requires_grad_(), unit(1, 3, 4).requires_grad_()
    contrastive.contrastive_inversion_loss(local, views).backward()
    assert views.grad is None and local.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: contrastive.contrastive_inversion_loss(x, views.detach()), local)


def test_contrastive_inversion_is_low_when_views_match_and_high_when_they_are_shuffled():
    views = torch.eye(4)
    assert contrastive.contrastive_inversion_loss(views, views) < 1e-3
    assert contrastive.contrastive_inversion_loss(views, views.roll(1, 0)) > 5


def test_contrastive_inversion_refuses_half_a_cache():
    with pytest.raises(InputError, match="pairs"):
        contrastive.contrastive_inversion_loss(unit(0, 3, 4), unit(1, 3, 4), unit(2, 2, 4))
    with pytest.raises(InputError, match="temperature"):
        contrastive.contrastive_inversion_loss(unit(0, 3, 4), unit(1, 3, 4), temperature=0.0)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0])])
def test_supervised_contrast_follows_the_equation(labels):
    features, tau = unit(4, 3, 2, 5), 0.2
    ids = list(range(3)) if labels is None else labels.tolist()
    views = [(b, v) for v in range(2) for b in range(3)]
    expected = []
    for i in views:
        others = [a for a in views if a != i]
        scores = {a: float(features[i] @ features[a]) / tau for a in others}
        total = math.log(sum(math.exp(score) for score in scores.values()))
        positives = [a for a in others if ids[a[0]] == ids[i[0]]]
        expected.append(-sum(scores[p] - total for p in positives) / len(positives) * tau / 0.07)
    ours = contrastive.supervised_contrast(features, labels, temperature=tau)
    assert ours.shape == (2, 3)
    assert ours.flatten().tolist() == pytest.approx(expected, rel=1e-10)
    one = contrastive.supervised_contrast(features, labels, temperature=tau, anchors="one")
    assert torch.allclose(one, ours[:1], rtol=1e-12)


def test_supervised_contrast_gradient_is_right():
    features = unit(5, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: contrastive.supervised_contrast(x, torch.tensor([0, 0, 1]), 0.5), features
    )


def test_supervised_contrast_names_what_is_allowed():
    with pytest.raises(InputError, match="two views"):
        contrastive.supervised_contrast(unit(0, 3, 4))
    with pytest.raises(InputError, match="all"):
        contrastive.supervised_contrast(unit(0, 3, 2, 4), anchors="al")


def test_projections_have_unit_length():
    head = contrastive.ProjectionHead(6, 3)
    assert torch.allclose(head(torch.randn(5, 6)).norm(dim=1), torch.ones(5))


def test_instance_features_are_the_channel_means_of_every_batch_norm_input():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(2 * 9)).eval()
    x = torch.randn(4, 2, 3, 3)
    with BatchNormProbe(model, keep_inputs=True) as probe:
        model(x)
        features = contrastive.instance_features(probe.inputs)
    assert features.shape == (4, 20)
    assert torch.allclose(features[:, :2], x.mean(dim=(2, 3)))
