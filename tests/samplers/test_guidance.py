"""The separate rule: its equation against autograd written out, what its gate sees, its views, and what it costs."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from kdnb.samplers.cadr import Guidance, GuidanceConfig, tweedie
from kdnb.samplers.diffusion import sample
from kdnb.samplers.guidance import adaptive_rectification, separate_rectification, shifted_views, surprise
from tests.material import GaussianPrior, GuidingTeacher, guided_step, statistics_loss

SEPARATE = GuidanceConfig(rule="separate", gate="surprise", lambda_max=1.0, eta=0.7, bn_weight=0.75, ce_weight=1.5)


def lengths(x):
    return x.flatten(1).norm(dim=1)


def written_out(teacher, x_t, eps, alpha, labels, config):
    """r from the equation, one sample and one term at a time."""
    x = x_t.clone().requires_grad_()
    x0 = tweedie(x, eps, alpha)
    x0 = x0 + (x0.clamp(-1, 1) - x0).detach()
    logits = teacher(x0)
    grad_bn = torch.autograd.grad(statistics_loss(teacher, x0), x, retain_graph=True)[0]
    rms = (lengths(grad_bn).square().sum() / len(x)).sqrt()
    found = []
    for b, label in enumerate(labels.tolist()):
        grad_ce = torch.autograd.grad(-logits[b].log_softmax(0)[label], x, retain_graph=True)[0][b]
        gate = config.lambda_max * (1 - logits[b].softmax(0)[label]).detach()
        both = config.bn_weight * grad_bn[b] / (rms + config.xi)
        both = both + config.ce_weight * gate * grad_ce / (grad_ce.norm() + config.xi)
        found.append(config.eta * x_t[b].norm() * both)
    return torch.stack(found)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_separate_rule_is_its_equation(t):
    _, x_t, eps, alpha, labels = guided_step(t=t)
    teacher = GuidingTeacher()
    with Guidance(teacher, SEPARATE) as guidance:
        found = guidance.rectification(x_t, eps, alpha, labels)
    assert torch.allclose(found, written_out(teacher, x_t, eps, alpha, labels, SEPARATE), rtol=1e-9, atol=1e-12)


def test_each_term_alone_has_the_stated_length():
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    gate = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    common = dict(eta=0.5, bn_weight=2.0, ce_weight=3.0, xi=1e-12)
    bn = separate_rectification(grad, None, x, gate, **common)
    ce = separate_rectification(None, grad, x, gate, **common)
    assert torch.allclose(lengths(ce), 0.5 * 3.0 * gate * lengths(x))
    share = lengths(bn) / (0.5 * 2.0 * lengths(x))
    assert share.square().mean().item() == pytest.approx(1.0)  # the root mean square over the batch
    assert torch.allclose(share / lengths(grad), (share / lengths(grad))[0].expand(3))  # and one divisor for all


def test_scaling_a_loss_changes_nothing_in_the_separate_rule_and_the_direction_in_the_joint_one():
    generator = torch.Generator().manual_seed(0)
    grad_bn, grad_ce, x = torch.randn(3, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    gate, common = torch.ones(2, dtype=torch.float64), dict(eta=1.0, bn_weight=1.0, ce_weight=1.0, xi=1e-12)
    once = separate_rectification(grad_bn, grad_ce, x, gate, **common)
    assert torch.allclose(once, separate_rectification(100 * grad_bn, grad_ce, x, gate, **common))
    joint = adaptive_rectification(grad_bn + grad_ce, x, gate)
    assert not torch.allclose(joint, adaptive_rectification(100 * grad_bn + grad_ce, x, gate), rtol=0.1)


def test_a_surely_wrong_image_is_corrected_where_the_entropy_gate_stays_shut():
    logits = torch.tensor([[12.0, 0.0, 0.0, 0.0]])  # sure of class 0
    right, wrong = torch.tensor([0]), torch.tensor([1])
    teacher = GuidingTeacher()
    with Guidance(teacher, SEPARATE) as ours, Guidance(teacher, GuidanceConfig()) as cadr:
        assert ours.gate(logits, wrong).item() > 0.99 and ours.gate(logits, right).item() < 1e-4
        assert cadr.gate(logits, wrong).item() == cadr.gate(logits, right).item() < 0.03


def test_surprise_keeps_its_digits_where_the_teacher_is_nearly_sure():
    logits = torch.tensor([[0.0, -40.0]])
    assert surprise(logits, torch.tensor([0])).item() == pytest.approx(4.248e-18, rel=1e-3)


def test_statistics_are_corrected_even_where_the_teacher_is_sure():
    _, x_t, eps, alpha, labels = guided_step()
    teacher = GuidingTeacher()
    teacher.net[-1].bias.data[:] = torch.tensor([90.0, 0.0, 0.0, 0.0])
    labels = torch.zeros_like(labels)
    with Guidance(teacher, SEPARATE) as guidance:
        found = guidance.rectification(x_t, eps, alpha, labels)
    only_bn = dataclasses.replace(SEPARATE, ce_weight=0.0)
    with Guidance(teacher, only_bn) as guidance:
        assert torch.allclose(found, guidance.rectification(x_t, eps, alpha, labels))
    assert (lengths(found) > 0).all()


def test_the_gradient_through_a_linear_prior_is_parallel_to_that_of_a_constant_one():
    prior, x_t, eps, alpha, labels = guided_step()
    teacher = GuidingTeacher()
    found = []
    for through in (False, True):
        with Guidance(teacher, dataclasses.replace(SEPARATE, through_prior=through, xi=1e-12)) as guidance:
            found.append(guidance.rectification(x_t, eps, alpha, labels, prior=lambda x: prior.epsilon(x, 500)))
    assert torch.allclose(*found, rtol=1e-6)


# --- views ---------------------------------------------------------------------------------------------------------------------


def generators():
    return torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)


def test_views_are_whole_pixel_shifts_with_black_moving_in():
    image = torch.arange(9.0, dtype=torch.float64).view(1, 1, 3, 3)
    found = shifted_views(image, views=20, shift=1, noise=0.0, generators=generators())
    padded = F.pad(image, (1, 1, 1, 1), value=-1.0)[0, 0]
    allowed = [padded[top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    seen = {next(i for i, view in enumerate(allowed) if torch.equal(view, one)) for one in found[:, 0]}
    assert found.shape == (20, 1, 3, 3) and len(seen) > 4


def test_noise_of_the_views_has_the_stated_deviation():
    found = shifted_views(torch.zeros(8, 1, 16, 16), views=8, shift=0, noise=0.2, generators=generators())
    assert found.std().item() == pytest.approx(0.2, rel=0.03)


def test_the_class_gradient_with_views_is_the_mean_over_image_and_views():
    _, x_t, eps, alpha, labels = guided_step()
    teacher = GuidingTeacher()
    config = dataclasses.replace(SEPARATE, views=3, bn_weight=0.0, gate="constant")
    with Guidance(teacher, config) as guidance:
        found = guidance.rectification(x_t, eps, alpha, labels)
        guidance.reset()
        again = guidance.rectification(x_t, eps, alpha, labels)
    assert torch.equal(found, again)  # a new trajectory sees the same views
    from kdnb.randomness import generator_for

    x = x_t.clone().requires_grad_()
    x0 = tweedie(x, eps, alpha)
    x0 = x0 + (x0.clamp(-1, 1) - x0).detach()
    views = shifted_views(x0, 2, 1, 0.2, (generator_for("view shifts"), generator_for("view noise")))
    losses = [F.cross_entropy(teacher(part), labels, reduction="sum") for part in (x0, *views.chunk(2))]
    grad = torch.autograd.grad(sum(losses) / 3, x)[0]
    norms = (lengths(x_t) / (lengths(grad) + config.xi)).view(-1, 1, 1, 1)
    assert torch.allclose(found, config.eta * config.ce_weight * norms * grad, rtol=1e-9)


@pytest.mark.parametrize("rule", ["joint", "separate"])
def test_statistics_come_from_the_images_and_not_from_their_views(rule):
    _, x_t, eps, alpha, labels = guided_step()
    teacher = GuidingTeacher()
    measured = []
    for views in (1, 4):
        with Guidance(teacher, dataclasses.replace(SEPARATE, rule=rule, views=views)) as guidance:
            guidance.rectification(x_t, eps, alpha, labels)
            measured.append(guidance.last["bn"].item())
    assert measured[0] == measured[1]


# --- cost and use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("views", "passes"), [(1, 1), (4, 4)])
def test_teacher_passes_per_step(views, passes):
    teacher, prior = GuidingTeacher(), GaussianPrior()
    with Guidance(teacher, dataclasses.replace(SEPARATE, views=views)) as guidance:
        sample(
            prior,
            torch.zeros(5, dtype=torch.int64),
            (1, 8, 8),
            guidance=guidance,
            num_steps=6,
            initial_noise=torch.randn(5, 1, 8, 8, dtype=torch.float64),
        )
    assert teacher.passed == 5 * 6 * passes


def test_guided_samples_agree_with_the_labels_and_come_nearer_to_the_statistics():
    teacher, prior = GuidingTeacher(), GaussianPrior()
    labels = torch.arange(32) % 4
    noise = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def measured(config):
        with Guidance(teacher, config) as guidance:
            images = sample(prior, labels, (1, 8, 8), guidance=guidance, num_steps=20, initial_noise=noise).images
        agreement = (teacher(images).argmax(dim=1) == labels).double().mean().item()
        return agreement, statistics_loss(teacher, images).item()

    config = dataclasses.replace(SEPARATE, eta=0.2)
    plain, full = measured(dataclasses.replace(config, eta=0.0)), measured(config)
    class_only = measured(dataclasses.replace(config, bn_weight=0.0))
    assert full[0] > plain[0] + 0.3 and full[1] < class_only[1]


def test_the_separate_rule_is_off_only_when_both_terms_are():
    assert not dataclasses.replace(SEPARATE, lambda_max=0.0).off  # the statistics term has no gate
    assert not dataclasses.replace(SEPARATE, bn_weight=0.0).off
    assert dataclasses.replace(SEPARATE, lambda_max=0.0, bn_weight=0.0).off and GuidanceConfig(lambda_max=0.0).off
