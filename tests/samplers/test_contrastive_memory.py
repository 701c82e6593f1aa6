"""CMI: the bank is a ring that works when full, the head persists, the generator starts anew, batches differ from those before."""

import copy
from dataclasses import replace

import pytest
import torch

from kdnb.errors import InputError
from kdnb.samplers.contrastive_memory import EmbeddingBank, MemoryConfig, build
from tests.samplers.nets import bare, problem, rng, states, unchanged

SMALL = MemoryConfig(
    latent_dim=5, width=2, batch_size=4, num_steps=3, lr=0.01, head_width=6, bank_size=8, negatives=6, crop_padding=1
)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return build(problem(), replace(SMALL, **changes))


# --- the bank ------------------------------------------------------------------------------------------------------------------


def test_a_bank_that_has_just_become_full_gives_all_its_rows():
    bank = EmbeddingBank(4, 2)
    bank.push(torch.arange(8.0).view(4, 2))
    assert bank.pointer == 0 and torch.equal(bank.sample(9), torch.arange(8.0).view(4, 2))


def test_new_rows_take_the_place_of_the_oldest():
    bank = EmbeddingBank(3, 1)
    bank.push(torch.tensor([[1.0], [2.0]]))
    bank.push(torch.tensor([[3.0], [4.0]]))
    assert bank.sample(3).flatten().tolist() == [4, 2, 3] and bank.pointer == 1
    bank.push(torch.tensor([[5.0], [6.0], [7.0], [8.0]]))  # more than fit: the last stay
    assert sorted(bank.sample(3).flatten().tolist()) == [6, 7, 8]


def test_a_draw_has_no_row_twice():
    bank = EmbeddingBank(10, 1)
    bank.push(torch.arange(7.0).view(7, 1))
    drawn = bank.sample(5, rng()).flatten().tolist()
    assert len(set(drawn)) == 5 and len(bank) == 7


def test_a_bank_refuses_other_widths_and_states():
    with pytest.raises(InputError, match="width 2"):
        EmbeddingBank(4, 2).push(torch.zeros(1, 3))
    with pytest.raises(InputError, match="does not fit"):
        EmbeddingBank(4, 2).load_state_dict({"rows": torch.zeros(3, 2), "pushed": 2})
    with pytest.raises(InputError, match="capacity"):
        EmbeddingBank(0, 2)


# --- the synthesiser -----------------------------------------------------------------------------------------------------------


def test_calls_fill_the_bank_and_go_on_when_it_is_full():
    synthesizer = make()
    for call in range(4):
        made = synthesizer(rng(call))
        assert made.losses["total"].isfinite().all() and made.losses["cr"].shape == (3,)
    assert len(synthesizer.bank) == 8 and synthesizer.bank.pushed == 16


def test_the_generator_starts_anew_and_the_head_goes_on():
    synthesizer = make()
    synthesizer(rng(0))
    head = states(synthesizer.head)
    first = synthesizer(rng(1)).losses["oh"][0]
    assert not unchanged(synthesizer.head, head)
    assert torch.allclose(first, make(seed=3)(rng(1)).losses["oh"][0], atol=1e-5)  # another start, the same draw


def test_remembered_rows_make_the_contrast_harder():
    synthesizer = make()
    without = synthesizer(rng(0)).losses["cr"][0]
    assert synthesizer(rng(1)).losses["cr"][0] > without


def test_classifiers_stay_and_images_are_in_range():
    synthesizer = make()
    kept = states(synthesizer.teacher), states(synthesizer.student)
    made = synthesizer(rng())
    assert unchanged(synthesizer.teacher, kept[0]) and unchanged(synthesizer.student, kept[1])
    assert made.images.shape == (4, 1, 8, 8) and made.images.abs().amax() < 1
    assert made.labels.tolist() == sorted(made.labels.tolist())


def test_without_a_weight_a_term_is_not_computed():
    assert set(make(adv_weight=0.0, cr_weight=0.0)(rng()).losses) == {"bn", "oh", "total"}


def test_a_restored_synthesiser_goes_on_with_the_same_bits():
    first, second = make(), make(seed=5)
    for call in range(3):
        first(rng(call))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(rng(9)).images, second(rng(9)).images)
    assert torch.equal(first.bank.rows, second.bank.rows)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="CMI matches the statistics"):
        build(problem(bare()), SMALL)
    with pytest.raises(InputError, match="negatives"):
        replace(SMALL, negatives=0)
