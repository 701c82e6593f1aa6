"""The synthesis step: what moves, what stays, which images come back, resuming bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnb.attacks.hard_loss import PerturbationTrainer
from kdnb.errors import InputError
from kdnb.generators.latent import LatentGenerator
from kdnb.generators.perturbation import PerturbationGenerator
from kdnb.generators.reusable import ReusableGenerator
from kdnb.samplers.synthesizer import MetaConfig, Synthesizer


class CountingClassifier(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x)


def make(seed=0, generator=None, mode="anew", augment=None, **settings):
    teacher, student = CountingClassifier(10), CountingClassifier(11)
    torch.manual_seed(seed)
    generator = generator or ReusableGenerator(image_size=8, channels=1, latent_dim=5, width=2)
    config = MetaConfig(**{"batch_size": 6, "num_steps": 3, "warmup": 2} | settings)
    return Synthesizer(generator, teacher, student, 3, config, mode, augment)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_call_returns_images_in_range_sorted_labels_and_every_steps_losses():
    synthesizer = make(warmup=1)
    made = synthesizer(rng=rng())
    assert made.images.shape == (6, 1, 8, 8) and made.images.abs().amax() < 1 and not made.images.requires_grad
    assert made.labels.tolist() == sorted(made.labels.tolist()) and made.labels.max() < 3
    assert set(made.losses) == {"bn", "oh", "adv", "total"} and all(
        values.shape == (3,) for values in made.losses.values()
    )
    weighted = sum(synthesizer.weights[name] * made.losses[name] for name in ("bn", "oh", "adv"))
    assert torch.allclose(weighted, made.losses["total"])


def test_the_images_are_those_of_the_cheapest_step():
    synthesizer = make(num_steps=6, lr_generator=0.3)  # so large that the loss doesn't fall steadily
    before = copy.deepcopy(synthesizer.generator)
    z, labels = torch.randn(6, 5, generator=rng(1)), torch.tensor([0, 0, 1, 1, 2, 2])
    made = synthesizer(labels, z)
    best = made.losses["total"].argmin().item()
    shorter = MetaConfig(num_steps=best + 1, lr_generator=0.3, warmup=2)
    again = Synthesizer(before, synthesizer.teacher, synthesizer.student, 3, shorter)
    assert torch.equal(again(labels, z).images, made.images)


def test_the_adversarial_term_and_the_student_wait_for_the_warm_up():
    synthesizer = make()
    assert "adv" not in synthesizer(rng=rng()).losses and synthesizer.student.calls == 0
    assert "adv" in synthesizer(rng=rng()).losses and synthesizer.student.calls == 3


def test_the_teacher_runs_once_a_step_and_no_classifier_weight_gets_a_gradient():
    synthesizer = make(warmup=1)
    synthesizer.student.train()
    synthesizer(rng=rng())
    assert synthesizer.teacher.calls == 3
    for model in (synthesizer.teacher, synthesizer.student):
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert synthesizer.student.training and synthesizer.student.body[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("mode", "moving"), [("anew", 3), ("reuse_common", 3), ("reuse_finetune", 3), ("reuse_fix", 1)]
)
def test_only_the_parts_of_the_mode_move(mode, moving):
    synthesizer = make(mode=mode)
    before = copy.deepcopy(synthesizer.generator)
    synthesizer(rng=rng())
    moved = []
    for part in ("gan1", "gan2", "decoder"):
        pairs = zip(getattr(before, part).parameters(), getattr(synthesizer.generator, part).parameters(), strict=True)
        moved.append(any(not torch.equal(a, b) for a, b in pairs))
    assert moved == [True] * moving + [False] * (3 - moving)


def test_fomaml_is_one_adam_step_along_the_summed_gradients_of_the_fast_copy():
    synthesizer = make(adv_weight=0.0, lr_generator=0.01)
    synthesizer.generator.double()
    generator, teacher = copy.deepcopy(synthesizer.generator), synthesizer.teacher.double()
    z, labels = torch.randn(6, 5, generator=rng(2), dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    synthesizer(labels, z)

    fast, z = copy.deepcopy(generator), z.clone().requires_grad_()
    inner = torch.optim.Adam(
        [{"params": fast.parameters(), "lr": 0.01}, {"params": [z], "lr": 0.01}], betas=(0.5, 0.999)
    )
    teacher.eval()
    total = [torch.zeros_like(parameter) for parameter in generator.parameters()]
    for _ in range(3):
        x = fast(z)
        hidden = teacher.body[0](x)
        variance, mean = torch.var_mean(hidden, dim=(0, 2, 3), unbiased=False)
        norm = teacher.body[1]
        loss = 10 * ((mean - norm.running_mean).norm() + (variance - norm.running_var).norm()) + 0.5 * F.cross_entropy(
            teacher(x), labels
        )
        inner.zero_grad()
        loss.backward()
        total = [a + parameter.grad for a, parameter in zip(total, fast.parameters(), strict=True)]
        inner.step()
    outer = torch.optim.Adam(generator.parameters(), lr=0.03, betas=(0.5, 0.999))
    for parameter, gradient in zip(generator.parameters(), total, strict=True):
        parameter.grad = gradient
    outer.step()
    ours = synthesizer.generator.state_dict()
    for name, expected in generator.named_parameters():
        if (
            "conv_blocks.9" in name or "Conv5" in name
        ):  # elsewhere batch norm makes gradients zero, and Adam's first step their sign
            assert torch.allclose(expected, ours[name], rtol=1e-9), name


def test_reptile_moves_towards_the_fast_copy():
    synthesizer = make(meta_update="reptile", num_steps=1, lr_generator=0.01)
    before = [parameter.detach().clone() for parameter in synthesizer.generator.parameters()]
    z, labels = torch.randn(6, 5, generator=rng(2)), torch.tensor([0, 0, 1, 1, 2, 2])
    plain = make(num_steps=1, lr_generator=0.01)
    synthesizer(labels, z)
    plain(labels, z)
    # With one step both meta gradients have the same sign, and Adam's first step is that sign times the rate.
    for start, a, b in zip(before, synthesizer.generator.parameters(), plain.generator.parameters(), strict=True):
        assert ((a - start).sign() == (b - start).sign()).double().mean() > 0.9


def test_the_generators_buffers_follow_the_fast_copy_and_fit_after_export():
    synthesizer = make(num_steps=5, generator=LatentGenerator(8, 1, 5, 8), batch_size=32)
    for call in range(3):
        synthesizer(rng=rng(call))
    assert synthesizer.generator.conv_blocks[0].num_batches_tracked == 15
    branches = make(num_steps=5, batch_size=32)
    branches(rng=rng())
    branch, decoder = branches.export(rng=rng(5))
    z = torch.randn(256, 5, generator=rng(6))
    with torch.no_grad():
        kept = branches.generator.eval()(z)
        trained = branches.generator.train()(z)
    assert (kept - trained).abs().mean() < 0.05 * trained.std()
    assert (
        torch.equal(branch["l1.0.weight"], branches.generator.gan1.l1[0].weight)
        and "layers.Bn2.running_mean" in decoder
    )


def test_the_batch_norm_buffer_takes_the_last_steps_statistics_once_a_call():
    synthesizer, seen = make(), []
    synthesizer(rng=rng(), on_step=lambda x, logits_t: seen.append(x))
    mean = synthesizer.teacher.body[0](seen[-1]).mean(dim=(0, 2, 3))
    assert len(seen) == 3 and torch.allclose(synthesizer.momentum.means[0], mean, atol=1e-6)


def test_a_perturbation_trained_on_the_way_leaves_the_synthesis_unchanged():
    plain, watched = make(), make()
    trainer = PerturbationTrainer(PerturbationGenerator(1, 4, 1), watched.teacher)
    for call in range(2):
        expected, ours = plain(rng=rng(call)), watched(rng=rng(call), on_step=trainer.step)
        assert torch.equal(expected.images, ours.images)
    assert torch.equal(plain.momentum.means[0], watched.momentum.means[0])


def test_augmentation_stands_between_images_and_classifiers():
    seen = []
    synthesizer = make(augment=lambda images: images.flip(3))
    made = synthesizer(rng=rng(), on_step=lambda x, logits_t: seen.append(x))
    best = made.losses["total"].argmin()
    assert torch.equal(seen[best], made.images.flip(3))


def test_a_resumed_run_goes_on_bit_for_bit():
    whole, first = make(), make()
    for call in range(4):
        expected = whole(rng=rng(call))
    for call in range(2):
        first(rng=rng(call))
    state = copy.deepcopy(first.state_dict())
    second = make(seed=99)
    second.load_state_dict(state)
    for call in (2, 3):
        ours = second(rng=rng(call))
    assert torch.equal(ours.images, expected.images) and torch.equal(ours.losses["total"], expected.losses["total"])
    ours_state, expected_state = second.state_dict(), whole.state_dict()
    assert all(torch.equal(value, expected_state["generator"][name]) for name, value in ours_state["generator"].items())
    assert ours_state["calls"] == 4


def test_synthesis_lowers_its_loss():
    synthesizer = make(num_steps=10, lr_generator=5e-3, batch_size=16)
    first = synthesizer(rng=rng(0)).losses["total"]
    for call in range(1, 6):
        last = synthesizer(rng=rng(call)).losses["total"]
    assert last[0] < first[0] and first[-1] < first[0]


def test_wrong_settings_are_refused_before_any_work():
    with pytest.raises(InputError, match="reptile"):
        make(meta_update="reptil")
    with pytest.raises(InputError, match="ReusableGenerator"):
        make(generator=LatentGenerator(8, 1, 5, 2), mode="reuse_fix")
    with pytest.raises(InputError, match="at least one"):
        make(num_steps=0)
    with pytest.raises(InputError, match="latents"):
        make()(torch.tensor([0, 1]), torch.zeros(3, 5))
