"""kdnb.studies.synthesis: what is measured about images."""

import pytest
import torch
from torch import nn

from kdnb.data import load
from kdnb.models import build
from kdnb.studies.prior import trained_prior
from kdnb.studies.synthesis import diversity, draw, failures, image_scores, verdicts
from kdnb.training.evaluation import pooled_features
from tests.material import FloatPrior


class Fixed(nn.Module):
    """Sees the class in the first pixel: 1 where it is bright, else 0."""

    def forward(self, x, return_features=False):
        from kdnb.models.base import Features

        bright = (x[:, 0, 0, 0] > 0).float()
        logits = torch.stack([1 - bright, bright], dim=1) * 10
        return Features(logits, [], x.flatten(1), None) if return_features else logits


class Opposite(Fixed):
    """Sees the other class."""

    def forward(self, x, return_features=False):
        return super().forward(-x, return_features)


def test_diversity_by_hand():
    images = torch.tensor([0.0, 3.0, 5.0, 5.0]).view(4, 1, 1, 1)
    assert diversity(images, torch.tensor([0, 0, 1, 1])) == pytest.approx((3 + 0) / 2)


def test_agreement_counts_the_class_asked_for_and_equal_sets_have_distance_zero():
    images = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])
    found = image_scores(images, labels, Fixed(), Fixed(), images)
    assert found["agreement"] == found["judge_agreement"] == 5 / 8
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["entropy"] < 0.01


def test_the_same_seed_starts_every_setting_from_the_same_noise():
    labels = torch.zeros(3, dtype=torch.int64)
    a, b = (draw(FloatPrior(), labels, (1, 4, 4), num_steps=4, seed=1).images for _ in range(2))
    c = draw(FloatPrior(), labels, (1, 4, 4), num_steps=4, seed=2).images
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_pooled_features_are_those_of_eval_mode():
    net = build("resnet8w4", num_classes=3, in_channels=1).train()
    images = torch.randn(5, 1, 8, 8)
    found = pooled_features(net, images, batch_size=2)
    assert torch.allclose(found, net.eval()(images, return_features=True).pooled, atol=1e-6)


def test_a_prior_is_trained_once_and_comes_back_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    data = load("digits")
    first, losses = trained_prior(data, steps=3, batch_size=4, lr=1e-3)
    second, again = trained_prior(data, steps=3, batch_size=4, lr=1e-3)
    assert len(losses) == 3 and losses == again
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(first.epsilon(x, 500), second.epsilon(x, 500))
    assert len(list(tmp_path.rglob("state.safetensors"))) == 1


def test_verdicts_tell_surely_wrong_from_persuaded_only():
    images = torch.zeros(4, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([1.0, -1, 1, -1])
    labels = torch.tensor([1, 1, 0, 0])
    found = verdicts(images, labels, Fixed(), Opposite())
    assert found["teacher"].tolist() == [1, 0, 1, 0] and found["judge"].tolist() == [0, 1, 0, 1]
    assert found["surely_wrong"].tolist() == [False, True, True, False]
    assert found["persuaded"].tolist() == [True, False, False, True]
    assert not verdicts(images, labels, Fixed(), Fixed(), sure=1.1)["surely_wrong"].any()
    shown = failures(images, labels, found, ["zero", "one"], count=3)
    assert shown["titles"] == ["one", "zero", "one"]  # both surely wrong ones, then a persuaded one
    assert shown["captions"][0] == "T zero 1.00 J one"
    assert shown["frames"] == [("disagree", "agree"), ("disagree", "agree"), ("agree", "disagree")]
