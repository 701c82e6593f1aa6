"""NAYER: labels in cycles, loops and renewals by the call, the student in evaluation mode throughout, resuming bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.noisy import random_embeddings
from kdnb.samplers.noisy_layers import NoisyConfig, NoisyLayerSynthesizer, build
from tests.samplers.nets import bare, problem, rng, states, unchanged

SMALL = NoisyConfig(
    embedding_width=4,
    noisy_width=5,
    width=2,
    batch_size=7,
    num_steps=2,
    warmup=2,
    warmup_loops=3,
    loops=2,
    life=2,
    crop_padding=1,
)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return build(problem(), replace(SMALL, **changes))


def test_a_batch_holds_whole_cycles_of_the_classes_and_a_random_rest():
    assert make().draw_labels(rng()).tolist()[:6] == [0, 1, 2, 0, 1, 2]


def test_calls_make_more_batches_in_the_warm_up_and_renew_the_generator_at_the_end_of_its_life():
    synthesizer, sizes, renewed = make(), [], []
    for call in range(5):
        renewed.append(synthesizer.renews)
        made = synthesizer(rng(call))
        sizes.append(len(made.images))
        assert made.losses["total"].shape == (len(made.images) // 7 * 2,)
    assert sizes == [21, 21, 14, 14, 14] and renewed == [True, False, True, False, True]


def test_the_adversarial_term_starts_after_the_warm_up():
    synthesizer = make()
    assert ["adv" in synthesizer(rng(call)).losses for call in range(4)] == [False, False, True, True]


def test_the_student_is_never_in_training_mode_and_gathers_no_statistics():
    synthesizer, modes = make(warmup=0), []
    synthesizer.student.register_forward_hook(lambda module, *_: modes.append(module.training))
    kept = states(synthesizer.student)
    synthesizer(rng())
    assert modes == [False] * 4 and unchanged(synthesizer.student, kept) and synthesizer.student.training


def test_batches_of_one_call_differ():
    images = make()(rng()).images
    assert not torch.allclose(images[:7], images[7:14])


def test_a_restored_synthesiser_goes_on_with_the_same_bits():
    first, second = make(), make(seed=5)
    for call in range(3):
        first(rng(call))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(rng(9)).images, second(rng(9)).images)


def test_a_given_embedding_takes_the_place_of_random_vectors():
    synthesizer = build(problem(), SMALL, random_embeddings(3, 9))
    assert synthesizer.generator.embeddings.shape == (3, 9) and synthesizer(rng()).images.abs().amax() < 1


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"must be \(3, D\)"):
        build(problem(), SMALL, random_embeddings(4, 9))
    with pytest.raises(InputError, match="NAYER matches the statistics"):
        build(problem(bare()), SMALL)
    synthesizer = make()
    with pytest.raises(InputError, match="needs 4 noisy layers"):
        NoisyLayerSynthesizer(
            synthesizer.generator, synthesizer.teacher, synthesizer.student, replace(SMALL, batch_size=10)
        )
    with pytest.raises(InputError, match="life"):
        replace(SMALL, life=0)
