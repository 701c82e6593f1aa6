"""One-step generators: what each of the four computes, what moves and what stays, fresh images, resuming bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses.datafree import activation_loss, class_balance_loss, one_hot_loss
from kdnb.losses.disagreement import disagreement_loss
from kdnb.samplers.one_step import BENCHMARK, OneStepConfig, build
from tests.samplers.nets import bare, problem, rng, states, unchanged

SMALL = {"latent_dim": 5, "width": 2, "batch_size": 6, "lr": 0.01}
TERMS = {
    "dafl": {"oh", "balance", "act"},
    "zskt": {"adv"},
    "dfad": {"adv"},
    "dfq": {"bn", "oh", "adv", "balance"},
}


def make(name="dfq", seed=0, **changes):
    torch.manual_seed(seed)
    return build(problem(), replace(BENCHMARK[name], **SMALL | changes))


@pytest.mark.parametrize("name", BENCHMARK)
def test_each_method_has_its_terms_and_their_weighted_sum(name):
    synthesizer = make(name)
    made = synthesizer(rng())
    assert set(made.losses) == TERMS[name] | {"total"}
    total = sum(synthesizer.weights[term] * made.losses[term] for term in TERMS[name])
    assert torch.allclose(made.losses["total"], total) and made.images.shape == (6, 1, 8, 8)


def test_the_terms_are_those_of_the_stated_losses():
    synthesizer, z = make("dafl"), torch.randn(1, 6, 5, generator=rng(1))
    with torch.no_grad():
        seen = synthesizer.teacher(synthesizer.generator.train()(z[0]), return_features=True)
    losses = make("dafl")(z=z).losses
    assert losses["oh"].item() == pytest.approx(one_hot_loss(seen.logits).item(), rel=1e-4)
    assert losses["balance"].item() == pytest.approx(class_balance_loss(seen.logits).item(), rel=1e-4)
    assert losses["act"].item() == pytest.approx(activation_loss(seen.pooled).item(), rel=1e-4)


def test_zskt_widens_the_gap_between_the_networks():
    synthesizer = make("zskt", lr=0.02)
    z = torch.randn(64, 5, generator=rng(1))

    def gap():
        images = synthesizer.generator.train()(z)
        return -disagreement_loss(synthesizer.student.eval()(images), synthesizer.teacher(images)).item()

    before = gap()
    for call in range(30):
        synthesizer(rng(call))
    assert gap() > 1.5 * before


def test_the_classifiers_stay_and_the_student_goes_back_into_training_mode():
    synthesizer = make()
    kept = states(synthesizer.teacher), states(synthesizer.student)
    synthesizer(rng())
    assert unchanged(synthesizer.teacher, kept[0]) and unchanged(synthesizer.student, kept[1])
    assert synthesizer.student.training and all(p.grad is None for p in synthesizer.student.parameters())


def test_samples_are_new_images_of_the_generator_in_evaluation_mode():
    synthesizer = make()
    synthesizer(rng())
    before = states(synthesizer.generator)
    first, second = (synthesizer.sample(7, rng(seed)) for seed in (1, 2))
    assert first.shape == (7, 1, 8, 8) and not torch.equal(first, second)
    assert torch.equal(first, synthesizer.sample(7, rng(1))) and unchanged(synthesizer.generator, before)
    assert synthesizer.generator.training


def test_several_steps_a_call_are_several_calls():
    at_once, apart = make(num_steps=2), make()
    z = torch.randn(2, 6, 5, generator=rng(1))
    at_once(z=z)
    apart(z=z[:1])
    apart(z=z[1:])
    assert unchanged(at_once.generator, states(apart.generator))


@pytest.mark.parametrize("head", ["dafl_released", "zskt_released"])
def test_the_authors_heads_work_in_the_benchmark_form(head):
    assert make("dafl", generator=head)(rng()).images.shape == (6, 1, 8, 8)


def test_a_restored_synthesiser_goes_on_with_the_same_bits():
    first = make()
    first(rng(0))
    second = make(seed=5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(rng(1)).images, second(rng(1)).images)
    assert torch.equal(first.sample(4, rng(2)), second.sample(4, rng(2)))


def test_batch_norm_is_needed_where_its_statistics_are():
    config = OneStepConfig(**SMALL, adv_weight=1.0)
    build(problem(bare()), config)(rng())
    with pytest.raises(InputError, match="DFQ matches the statistics"):
        build(problem(bare()), replace(config, bn_weight=1.0))


@pytest.mark.parametrize("change", [{"criterion": "l2"}, {"generator": "gan"}, {"batch_size": 0}, {"width": 0}])
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        OneStepConfig(**change)
