"""Prior domains: what each holds, and that none holds a private or a test image."""

import pytest
import torch

from kdnb.choices import DOMAINS
from kdnb.data import domains, load
from kdnb.data.domains import PROCEDURAL, foreign_images, prior_domain, procedural_images
from kdnb.errors import InputError


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def without_fashion(monkeypatch):
    """As on a machine that lacks the files."""

    def refuse(name, *_):
        raise InputError(f"no complete copy of {name} found")

    monkeypatch.setattr(domains, "load", refuse)


def rows(images):
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", DOMAINS)
def test_no_prior_sees_a_private_or_a_test_image(name, digits, without_fashion):
    found = prior_domain(digits, name)
    public_only = rows(digits.public.images)
    hidden = (rows(digits.private.images) | rows(digits.test.images)) - public_only  # two scans are alike to the pixel
    assert not rows(found.images) & hidden
    assert rows(found.images[: found.own]) <= public_only


def test_the_same_domain_is_the_public_split(digits):
    found = prior_domain(digits)
    assert torch.equal(found.images, digits.public.images) and found.own == len(digits.public) and found.foreign == ""


def test_a_skewed_prior_has_the_stated_counts(digits):
    by_default = prior_domain(digits, "skewed")
    public = torch.bincount(digits.judge.labels, minlength=10).tolist()
    assert by_default.counts == (*public[:5], 0, 1, 2, 3, 4) and len(by_default.images) == sum(by_default.counts)
    stated = prior_domain(digits, "skewed", counts=[3, 0, None, 1, 1, 1, 1, 1, 1, 1])
    assert stated.counts == (3, 0, public[2], 1, 1, 1, 1, 1, 1, 1)


def test_a_mixed_prior_has_the_stated_share_and_names_its_other_part(digits, without_fashion):
    found = prior_domain(digits, "mixed", share=0.25, max_images=400)
    assert len(found.images) == 400 and found.own == 100 and sum(found.counts) == 100
    assert found.foreign == PROCEDURAL and str(found) == f"mixed: 100 public images and 300 of {PROCEDURAL}"


def test_a_foreign_set_that_is_too_small_stands_there_several_times(digits, monkeypatch):
    few = torch.zeros(3, 1, 16, 16)
    monkeypatch.setattr(domains, "foreign_images", lambda *_: (few, "few"))
    found = prior_domain(digits, "mixed", share=0.5, max_images=20)
    assert found.own == 10 and len(found.images) == 20


def test_a_foreign_prior_has_nothing_of_the_data_set(digits, without_fashion):
    found = prior_domain(digits, "foreign", max_images=60)
    assert found.own == 0 and sum(found.counts) == 0 and len(found.images) == 60
    assert not rows(found.images) & rows(digits.train.images)


def test_without_files_the_foreign_images_are_procedural_and_say_so(digits, without_fashion):
    images, source = foreign_images(digits, 12)
    assert source == PROCEDURAL and torch.equal(images, procedural_images(12, 1, 16))


def test_digits_are_the_foreign_set_of_fashion(digits, monkeypatch):
    monkeypatch.setattr(digits, "name", "fashion_mnist")
    images, source = foreign_images(digits, 5000)
    assert source == "digits" and rows(images) == rows(digits.public.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_procedural_images_are_varied_bounded_and_repeatable(channels):
    images = procedural_images(60, channels, 16, seed=1)
    assert images.shape == (60, channels, 16, 16) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, procedural_images(60, channels, 16, seed=1))
    assert len(rows(images)) > 55 and (images.flatten(1).std(dim=1) > 0.05).double().mean() > 0.9


def test_recipes_tell_domains_apart(digits, without_fashion):
    recipes = [prior_domain(digits, name, max_images=100).identity for name in DOMAINS]
    assert len({str(recipe) for recipe in recipes}) == len(DOMAINS)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("forein", {}, "foreign"),
        ("mixed", {"share": 1.0}, "share"),
        ("skewed", {"counts": [1, 2]}, "10 classes"),
        ("skewed", {"counts": [1000] + [1] * 9}, "class 0 has"),
    ],
)
def test_impossible_domains_are_refused(name, arguments, message, digits):
    with pytest.raises(InputError, match=message):
        prior_domain(digits, name, **arguments)
