"""Perturbation training and the exchange of images: bounds, no aliasing, kept labels, the released arithmetic."""

import copy

import pytest
import torch
from torch import nn

from kdnb.attacks import hard_loss
from kdnb.errors import InputError
from kdnb.generators.perturbation import PerturbationGenerator
from kdnb.losses.datafree import hard_mix_loss
from tests.attacks.nets import trained_net


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


def test_a_perturbation_is_bounded_and_the_image_stays_valid():
    images = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    attacked = hard_loss.perturb(Constant(1.0), images, epsilon=10 / 255)
    assert attacked.max() == 1.0
    assert torch.allclose((attacked - images)[attacked < 1], torch.tensor(20 / 255), atol=1e-6)  # 10 grey levels of 255


def test_the_released_perturbation_shifts_by_the_mean_and_clips_to_the_batch():
    x = torch.tensor([[[[-1.0, 0.0], [0.5, 2.0]]]])
    ours = hard_loss.perturb_released(Constant(0.0), x, [0.4], [0.25])
    assert torch.allclose(ours, torch.tensor([[[[-0.6, 0.4], [0.9, 2.0]]]]))
    with pytest.raises(InputError, match="one number a channel"):
        hard_loss.perturb_released(Constant(0.0), x, [0.4, 0.4], [0.25, 0.25])


def test_the_released_bound_holds_per_channel():
    delta = torch.rand(2, 3, 4, 4) * 2 - 1
    bounded = hard_loss.bound_released(delta, [0.5, 0.45, 0.4], [0.25, 0.2, 0.3], magnitude=10)
    limit = 10 / 255 / torch.tensor([0.25, 0.2, 0.3])
    assert (bounded.abs().amax(dim=(2, 3)) <= limit + 1e-6).all()


def test_log_ce_is_the_logarithm_and_its_guard_keeps_it_finite():
    logits, labels = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    ce = -logits.log_softmax(1)[0, 1]
    assert hard_loss.log_ce_loss(logits, labels, guard=0.0).item() == pytest.approx(ce.log().item())
    sure = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = hard_loss.log_ce_loss(sure, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite() and sure.grad.isfinite().all()


def test_training_drives_the_teacher_towards_the_least_likely_class_and_leaves_it_alone():
    model, images, _ = trained_net()
    before = copy.deepcopy(model.state_dict())
    trainer = hard_loss.PerturbationTrainer(
        PerturbationGenerator(1, 4, 1, torch.Generator().manual_seed(0)), model, epsilon=0.3, lr=5e-3
    )
    losses = [trainer.step(images) for _ in range(40)]
    assert losses[-1] < losses[0] - 0.3 and not losses[0].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_known_logits_spare_a_teacher_pass_and_change_nothing():
    model, images, _ = trained_net()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    trainers = [
        hard_loss.PerturbationTrainer(PerturbationGenerator(1, 4, 1, torch.Generator().manual_seed(0)), model)
        for _ in range(2)
    ]
    trainers[1].network.load_state_dict(trainers[0].network.state_dict())
    logits = model(images)
    first, second = trainers[0].step(images), trainers[1].step(images, logits)
    assert first == second and len(calls) == 1 + 2 + 1


def test_training_resumes_bit_for_bit():
    model, images, _ = trained_net()
    whole = hard_loss.PerturbationTrainer(PerturbationGenerator(1, 4, 1), model)
    half = hard_loss.PerturbationTrainer(copy.deepcopy(whole.network), model)
    rest = hard_loss.PerturbationTrainer(PerturbationGenerator(1, 4, 1), model)
    whole_losses = [whole.step(images) for _ in range(4)]
    for _ in range(2):
        half.step(images)
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    assert [rest.step(images) for _ in range(2)] == whole_losses[2:]


def four_images():
    """Teacher logits on clean and perturbed images: surer same class; less sure; other class; surer same class."""
    clean, perturbed = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    logits_perturbed = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 3.0], [2.0, 0.0]])
    return clean, perturbed, logits, logits_perturbed


def test_a_swap_takes_images_of_which_the_teacher_is_as_sure():
    clean, perturbed, logits, logits_perturbed = four_images()
    none = torch.zeros(4, dtype=torch.bool)
    batch = hard_loss.exchange(clean, perturbed, logits, logits_perturbed, none)
    assert batch.swapped.tolist() == [True, False, False, True]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 0, 0, 1] and batch.labels.tolist() == [0, 0, 0, 0]
    assert torch.equal(batch.logits_t[0], logits_perturbed[0]) and torch.equal(batch.logits_t[1], logits[1])
    assert clean.sum() == 0 and perturbed.sum() == perturbed.numel()  # the inputs are untouched


def test_an_attack_replaces_image_and_logits_but_keeps_the_label():
    clean, perturbed, logits, logits_perturbed = four_images()
    drawn = torch.tensor([False, False, True, True])
    batch = hard_loss.exchange(clean, perturbed, logits, logits_perturbed, drawn)
    assert batch.images[:, 0, 0, 0].tolist() == [1, 0, 1, 0]  # swapped and drawn: the clean image comes back
    assert batch.logits_t[2].argmax() == 1 and batch.labels[2] == 0
    released = hard_loss.exchange_released(clean, perturbed, logits, logits_perturbed, drawn)
    assert released.images[:, 0, 0, 0].tolist() == [1, 0, 1, 1]


def test_a_hard_batch_draws_its_share_and_is_repeatable():
    model, images, _ = trained_net()
    network = PerturbationGenerator(1, 4, 1, torch.Generator().manual_seed(1))
    network.train()
    batches = [
        hard_loss.hard_batch(images, model, network, probability=0.5, rng=torch.Generator().manual_seed(2))
        for _ in range(2)
    ]
    assert torch.equal(batches[0].images, batches[1].images) and 4 < batches[0].attacked.sum() < 28
    assert (batches[0].images - images).abs().max() <= 20 / 255 + 1e-6
    assert network.training and network.model0[2].num_batches_tracked == 0
    assert torch.allclose(batches[0].logits_t, model(batches[0].images), atol=1e-5)
    none = hard_loss.hard_batch(images, model, network, probability=0.0)
    assert not none.attacked.any()


def test_attacked_images_are_augmented_and_clean_ones_are_not_again():
    model, images, _ = trained_net()
    batch = hard_loss.hard_batch(images, model, Constant(0.0), probability=1.0, augment=lambda x: x.flip(3))
    kept = batch.swapped  # flipped images here are attacked unless swapped back
    assert torch.equal(batch.images[kept], images[kept]) and torch.equal(batch.images[~kept], images[~kept].flip(3))


def test_without_a_network_the_batch_is_clean_and_labelled_by_the_teacher():
    model, images, _ = trained_net()
    batch = hard_loss.hard_batch(images, model)
    assert batch.images is images and not batch.swapped.any() and torch.equal(batch.labels, model(images).argmax(1))
    logits_s = torch.randn(32, 4)
    assert torch.equal(
        hard_mix_loss(logits_s, batch.logits_t, labels=batch.labels), hard_mix_loss(logits_s, batch.logits_t)
    )


def test_bad_shares_are_refused():
    model, images, _ = trained_net()
    with pytest.raises(InputError, match="probability"):
        hard_loss.hard_batch(images, model, probability=1.5)
    with pytest.raises(InputError, match="epsilon"):
        hard_loss.PerturbationTrainer(Constant(0.0), model, epsilon=0.0)
