"""kdnb.studies.bfa_attack: trails are kept, resumed and refused where they do not belong; bands and controls say what they should."""

import pytest
import torch
from torch import nn

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.generators.reusable import ReusableGenerator
from kdnb.models import build
from kdnb.studies import bfa_attack
from kdnb.studies.bfa_attack import (
    TRAIL,
    accuracy_at,
    attack,
    attack_sources,
    band,
    compare_sources,
    quantized,
    random_attack,
)
from tests.material import FloatPrior, Killed


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8w4", num_classes=4, in_channels=1).eval()


def images(seed: int = 0, count: int = 12) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.fixture(scope="module")
def test_split(model) -> Split:
    with torch.no_grad():
        return Split(images(5, 40), quantized(model).model(images(5, 40)).argmax(dim=1))


def test_an_attack_lowers_the_accuracy_and_leaves_the_model_alone(model, test_split):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attack(model, images(), test_split, 4, max_flips=6)
    assert found.rows[0] == {"flips": 0, "accuracy": 1.0, "loss": None, "layer": None}
    assert found.rows[-1]["accuracy"] < 1.0 and len(found.trail) == found.rows[-1]["flips"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_attack_stops_at_chance(model, test_split):
    found = attack(model, images(), Split(test_split.images, (test_split.labels + 1) % 4), 4, max_flips=6)
    assert found.to_chance == 0 and found.trail == []


def test_a_rehearsal_takes_its_steps_at_chance_too(tmp_path, monkeypatch, model, test_split):
    monkeypatch.setenv("KDNB_REHEARSE", str(tmp_path / "costs.jsonl"))
    found = attack(model, images(), Split(test_split.images, (test_split.labels + 1) % 4), 4, max_flips=6)
    assert found.trail and set(TRAIL) > set(found.trail[0])


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_killed_attack_goes_on_with_the_same_flips(tmp_path, monkeypatch, model, test_split, killed_at):
    whole = attack(model, images(), test_split, 100, max_flips=5)
    save, saved = bfa_attack.save_state, []

    def kill(path, state):
        save(path, state)
        saved.append(path)
        if len(saved) == killed_at:
            raise Killed

    monkeypatch.setattr(bfa_attack, "save_state", kill)
    with pytest.raises(Killed):
        attack(model, images(), test_split, 100, max_flips=5, folder=tmp_path)
    monkeypatch.setattr(bfa_attack, "save_state", save)
    assert attack(model, images(), test_split, 100, max_flips=5, folder=tmp_path) == whole


def test_a_trail_of_other_images_is_refused(tmp_path, model, test_split):
    attack(model, images(0), test_split, 4, max_flips=1, folder=tmp_path)
    with pytest.raises(InputError, match="another network or of other images"):
        attack(model, images(1), test_split, 4, max_flips=1, folder=tmp_path)


def test_random_flips_are_nested_and_taken_back(model, test_split):
    few, many = (random_attack(model, test_split, counts, seed=3) for counts in ([0, 4], [0, 4, 9]))
    assert few == many[:2] and few[0]["accuracy"] == 1.0


def test_random_counts_must_rise(model, test_split):
    with pytest.raises(InputError, match="must rise"):
        random_attack(model, test_split, [5, 2])


def test_sources_are_compared_over_their_networks_and_repeats(tmp_path, model, test_split):
    sources = {"one": {"a": [images(0), images(1)], "b": [images(2)]}, "two": {"b": [images(2)]}}
    curves, trails, summary = compare_sources(
        {"one": model, "two": model}, sources, test_split, 4, max_flips=2, folder=tmp_path
    )
    attacks = [("one", "a", 0), ("one", "a", 1), ("one", "b", 0), ("two", "b", 0)]
    assert [(row["teacher"], row["source"], row["repeat"]) for row in summary] == attacks
    assert {(row["teacher"], row["source"]) for row in curves} == {("one", "a"), ("one", "b"), ("two", "b")}
    assert {"layer", "index", "bit", "before", "after"} <= set(trails[0])
    assert len(list(tmp_path.rglob("trail.safetensors"))) == len(attacks)
    same = [
        [row["accuracy"] for row in curves if (row["teacher"], row["source"]) == (teacher, "b")]
        for teacher in ("one", "two")
    ]
    assert same[0] == same[1]


def test_a_band_spans_teachers_and_repeats_and_holds_the_last_accuracy_where_a_search_has_ended():
    rows = [("t", 0, 0, 1.0), ("t", 0, 2, 0.2), ("t", 1, 0, 0.8), ("t", 1, 1, 0.6), ("u", 0, 0, 0.9), ("u", 0, 1, 0.1)]
    curves = [dict(zip(("teacher", "repeat", "flips", "accuracy"), row, strict=True)) | {"source": "x"} for row in rows]
    assert accuracy_at(curves[:2], 1) == 1.0 and accuracy_at(curves[:2], 9) == 0.2
    assert band(curves, "x", 2)[2] == {"flips": 2, "mean": pytest.approx(0.3), "low": 0.1, "high": 0.6}
    assert band(curves[:4], "x", 2)[2] == {"flips": 2, "mean": pytest.approx(0.4), "low": 0.2, "high": 0.6}


def test_every_source_gives_images_of_the_data_sets_shape_and_range():
    from kdnb.data import load
    from kdnb.training.teachers import fresh

    data = load("digits", 8)
    torch.manual_seed(0)
    generator = ReusableGenerator(image_size=8, channels=1, latent_dim=6, width=4)
    pool = torch.rand(30, 1, 8, 8) * 2 - 1
    found = attack_sources(
        data, fresh("resnet8w4", data, 0).eval(), FloatPrior(), generator, pool, count=10, repeats=2, seed=1
    )
    assert list(found) == ["real", "CADR", "pool", "reusable", "abandoned", "noise"]
    for name, batches in found.items():
        assert [tuple(images.shape) for images in batches] == [(10, 1, 8, 8)] * 2, name
        assert max(float(images.abs().max()) for images in batches) <= 1 and not torch.equal(*batches), name
    assert not torch.equal(found["reusable"][0], found["abandoned"][0])


def test_what_a_further_method_made_is_one_more_source_and_changes_no_other():
    from kdnb.data import load
    from kdnb.training.teachers import fresh

    data = load("digits", 8)
    torch.manual_seed(0)
    generator = ReusableGenerator(image_size=8, channels=1, latent_dim=6, width=4)
    pool, made = torch.rand(30, 1, 8, 8) * 2 - 1, Split(torch.rand(20, 1, 8, 8) * 2 - 1, torch.arange(20) % 10)
    given = data, fresh("resnet8w4", data, 0).eval(), FloatPrior(), generator, pool, 10, 2, 1
    plain, more = attack_sources(*given), attack_sources(*given, others={"cmi": made})
    assert list(more) == [*plain, "cmi"]
    assert all(torch.equal(a, b) for name in plain for a, b in zip(plain[name], more[name], strict=True))
    assert all((image == made.images).flatten(1).all(1).any() for image in more["cmi"][0])
    assert not torch.equal(*more["cmi"])
    with pytest.raises(InputError, match="cmi has left 20 images, and the attacker is to have 25"):
        attack_sources(*given[:5], 25, 2, 1, others={"cmi": made})
