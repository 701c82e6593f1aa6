import pytest
import torch

from kdnb.data import load
from kdnb.errors import InputError
from kdnb.models import build
from kdnb.studies import architecture_search
from kdnb.studies.architecture_search import (
    Architecture,
    SearchSpace,
    distil_architecture,
    diswot_scorer,
    evolve,
    gaussian_init,
    parameter_count,
    rank_correlation,
)
from kdnb.training.distil import Setting
from kdnb.training.recipe import Recipe
from kdnb.training.teachers import Trained
from tests.material import Killed

SPACE = SearchSpace(depths=(8, 14, 20, 26), widths=((4, 8, 12, 16), (8, 16, 24, 32), (16,)))


def _size(architecture):
    """Something smooth to climb: best at the deepest and widest."""
    return architecture.depth + sum(architecture.widths)


def test_space_holds_every_combination_once():
    everything = list(SPACE)
    assert len(everything) == len(set(everything)) == 4 * 4 * 4
    assert Architecture(14, (8, 24, 16)) in everything


def test_neighbours_differ_in_exactly_one_choice():
    start = Architecture(14, (8, 24, 16))
    neighbours = SPACE.neighbours(start)
    assert len(neighbours) == len(set(neighbours)) == 3 + 3 + 3
    for other in neighbours:
        assert (
            other in set(SPACE)
            and (other.depth != start.depth) + sum(a != b for a, b in zip(other.widths, start.widths, strict=True)) == 1
        )


def test_evolution_finds_the_best_architecture():
    history = evolve(_size, SPACE, population=8, tournament=4, budget=120)
    assert max(history, key=lambda candidate: candidate.score).architecture == Architecture(26, (16, 32, 16))


def test_the_tournament_prefers_the_best():
    late = evolve(_size, SPACE, population=10, tournament=5, budget=200)[100:]
    mean = sum(map(_size, SPACE)) / 64
    assert sum(candidate.score for candidate in late) / len(late) > mean + 10


def test_the_first_population_is_diverse_and_the_budget_is_kept():
    history = evolve(_size, SPACE, population=20, tournament=5, budget=50)
    assert len(history) == 50 and len({candidate.architecture for candidate in history[:20]}) == 20


def test_the_oldest_dies_even_if_it_is_the_best():
    asked = []

    def first_is_best(architecture):
        asked.append(architecture)
        return 100.0 if len(asked) == 1 else 0.0

    history = evolve(first_is_best, SPACE, population=2, tournament=2, budget=40, seed=3)
    founder = history[0].architecture
    assert history[2].architecture in SPACE.neighbours(founder)  # it wins the only tournament it is alive for
    assert history[3].architecture in SPACE.neighbours(history[1].architecture) + SPACE.neighbours(
        history[2].architecture
    )


def test_nothing_above_the_cost_cap_is_ever_scored():
    asked = []
    evolve(
        lambda architecture: asked.append(architecture) or _size(architecture),
        SPACE,
        8,
        4,
        100,
        cost=_size,
        max_cost=50,
    )
    assert asked and max(map(_size, asked)) <= 50


def test_each_architecture_is_scored_once():
    asked = []
    evolve(lambda architecture: asked.append(architecture) or _size(architecture), SPACE, 8, 4, 200)
    assert len(asked) == len(set(asked))


def test_evolution_is_a_function_of_its_seed():
    runs = [evolve(_size, SPACE, 8, 4, 40, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_space_smaller_than_the_population_works():
    history = evolve(_size, SearchSpace((8,), ((4, 8), (8,), (16,))), population=5, tournament=3, budget=10)
    assert len(history) == 10 and {candidate.architecture.widths[0] for candidate in history} == {4, 8}
    assert len(evolve(_size, SearchSpace((8,), ((4,), (8,), (16,))), population=2, tournament=1, budget=4)) == 4


def test_bad_settings_and_scores_are_refused():
    with pytest.raises(InputError, match="tournament"):
        evolve(_size, SPACE, population=4, tournament=8)
    with pytest.raises(InputError, match="costs 1"):
        evolve(_size, SPACE, cost=_size, max_cost=1)
    with pytest.raises(InputError, match="three stages"):
        SearchSpace((8,), ((4,), (8,)))
    with pytest.raises(FloatingPointError, match=r"resnet\d+ \("):
        evolve(lambda _: float("nan"), SPACE)


def test_an_architecture_builds_the_network_it_names():
    model = Architecture(14, (4, 8, 16)).build(7, in_channels=1)
    features = model(torch.zeros(2, 1, 16, 16), return_features=True)
    assert [tap.shape[1] for tap in features.feats] == [4, 4, 8, 16] and features.logits.shape == (2, 7)
    assert len(model.layer1) == 2


def test_gaussian_weights_have_unit_variance_and_batch_norm_is_fresh():
    model = gaussian_init(build("resnet20", 10), torch.Generator().manual_seed(0))
    weights = torch.cat([parameter.flatten() for name, parameter in model.named_parameters() if parameter.dim() > 1])
    assert abs(weights.mean()) < 0.01 and abs(weights.var() - 1) < 0.02
    assert (model.bn1.weight == 1).all() and (model.bn1.bias == 0).all() and (model.fc.bias == 0).all()


def _batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(16, 1, 16, 16, generator=generator) * 2 - 1, torch.randint(5, (16,), generator=generator)


def test_a_student_of_the_teachers_own_architecture_is_not_its_copy():
    score = diswot_scorer(lambda: Architecture(14, (8, 16, 16)).build(5, in_channels=1), *_batch(), 5, in_channels=1)
    own, other = score(Architecture(14, (8, 16, 16))), score(Architecture(8, (4, 8, 16)))
    assert (
        own < -0.01 and other < -0.01 and own != other
    )  # equal weights would score 0 and win every search for no reason


def test_scores_do_not_depend_on_what_was_scored_before_nor_touch_the_global_random_state():
    before = torch.get_rng_state()
    score = diswot_scorer(lambda: Architecture(14, (8, 16, 16)).build(5, in_channels=1), *_batch(), 5, in_channels=1)
    first = score(Architecture(8, (4, 8, 16)))
    score(Architecture(20, (8, 8, 16)))
    assert score(Architecture(8, (4, 8, 16))) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_another_feature_width_is_refused():
    score = diswot_scorer(lambda: Architecture(8, (4, 8, 16)).build(5, in_channels=1), *_batch(), 5, in_channels=1)
    with pytest.raises(InputError, match="feature width"):
        score(Architecture(8, (4, 8, 32)))


def test_search_and_score_work_together():
    images, labels = _batch()
    score = diswot_scorer(lambda: build("resnet20", 5, in_channels=1), images, labels, 5, in_channels=1)
    space = SearchSpace(depths=(8, 14), widths=((4, 8), (8, 16), (64,)))
    history = evolve(score, space, population=4, tournament=2, budget=8)
    assert all(candidate.score < 0 for candidate in history)


@pytest.mark.parametrize("stop", [0, 1, 5, 12, 30])
def test_a_killed_search_resumes_with_the_same_history_and_scores_nothing_twice(stop, tmp_path, monkeypatch):
    arguments = {"population": 6, "tournament": 3, "budget": 60, "seed": 4}
    expected = evolve(_size, SPACE, **arguments)
    monkeypatch.setattr(architecture_search, "SAVE_EVERY", 1)
    scored = []

    def dying(architecture):
        if len(scored) >= stop:
            raise Killed
        scored.append(architecture)
        return _size(architecture)

    def counting(architecture):
        scored.append(architecture)
        return _size(architecture)

    with pytest.raises(Killed):
        evolve(dying, SPACE, **arguments, folder=tmp_path)
    assert evolve(counting, SPACE, **arguments, folder=tmp_path) == expected
    assert len(scored) == len(set(scored))
    assert evolve(dying, SPACE, **arguments, folder=tmp_path) == expected, "a finished search is read, not repeated"


def test_parameters_are_counted_as_built():
    architecture = Architecture(14, (4, 8, 16))
    built = architecture.build(5, in_channels=1)
    assert parameter_count(architecture, 5, in_channels=1) == sum(parameter.numel() for parameter in built.parameters())


def test_rank_correlation_of_equal_reversed_and_tied_orders():
    assert rank_correlation([1, 2, 3], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [0.3, 0.2, 0.1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [0.1, 0.1, 0.2, 0.2]) == pytest.approx(
        4 / (6 * 4) ** 0.5
    )  # 4 pairs agree, 2 are tied
    with pytest.raises(InputError, match="two or more"):
        rank_correlation([1], [1])


def test_an_architecture_is_distilled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path))
    data = load("digits", 8)
    data.train, data.test = data.train.subset(torch.arange(32)), data.test.subset(torch.arange(20))
    torch.manual_seed(0)
    teacher = Trained(build("resnet8w4", **data.normalization).eval(), [{"top1": 0.1}], "0" * 16)
    arguments = (Architecture(8, (4, 4, 16)), teacher, data, Recipe(epochs=1, batch_size=16, lr=0.05), Setting("kd"))
    first = distil_architecture(*arguments, seed=1)
    monkeypatch.setattr(architecture_search, "fit", None)
    again = distil_architecture(*arguments, seed=1)
    assert again["top1"] == first["top1"] and all(
        torch.equal(first["student"][name], value) for name, value in again["student"].items()
    )
    assert first["parameters"] == parameter_count(arguments[0], 10, in_channels=1)


# --- a number of blocks for each stage -----------------------------------------------------------------------------------------

BLOCKS = SearchSpace(widths=((4,), (8,), (16,)), blocks=(1, 3))


def test_the_published_space_chooses_the_blocks_of_each_stage():
    everything = list(SearchSpace(widths=((16,), (32,), (64,)), blocks=(1, 3, 5, 7)))
    assert len(set(everything)) == 4**3 and str(everything[-1]) == "resnet 7+7+7 (16-32-64)"


def test_equal_blocks_are_the_network_of_that_depth():
    one, other = Architecture((2, 2, 2), (4, 8, 16)), Architecture(14, (4, 8, 16))
    assert parameter_count(one, 10) == parameter_count(other, 10)
    assert one.build(10).state_dict().keys() == other.build(10).state_dict().keys()


def test_neighbours_differ_in_the_blocks_of_one_stage():
    found = BLOCKS.neighbours(Architecture((1, 3, 1), (4, 8, 16)))
    assert [one.depth for one in found] == [(3, 3, 1), (1, 1, 1), (1, 3, 3)]


def test_a_search_over_blocks_resumes_with_the_same_history(tmp_path):
    def size(architecture):
        return sum(architecture.depth)

    short = evolve(size, BLOCKS, 4, 2, 20, folder=tmp_path)
    assert evolve(size, BLOCKS, 4, 2, 40, folder=tmp_path) == evolve(size, BLOCKS, 4, 2, 40) and len(short) == 20
    assert max(short, key=lambda candidate: candidate.score).architecture.depth == (3, 3, 3)


@pytest.mark.parametrize("depth", [9, (1, 2), (0, 1, 1)])
def test_other_depths_are_refused(depth):
    with pytest.raises(InputError, match="depth 6n|number of blocks"):
        Architecture(depth, (4, 8, 16)).build(10)
