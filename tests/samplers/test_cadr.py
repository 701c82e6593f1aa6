"""CADR: the four steps against hand-computed values, the direction of guidance, and what it costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdnb.choices import SOLVERS
from kdnb.errors import InputError
from kdnb.samplers.cadr import Guidance, GuidanceConfig, ddim_step, noise_from_estimate, rectify_noise, tweedie
from kdnb.samplers.diffusion import sample, timesteps
from kdnb.samplers.guidance import adaptive_rectification, entropy_gate
from tests.material import GaussianPrior, GuidingTeacher, guided_step, statistics_loss

# --- the four steps ------------------------------------------------------------------------------------------------------------


def test_tweedie_by_hand():
    x0 = tweedie(torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.5]]]]), 0.64)
    assert x0.item() == pytest.approx((1 - 0.6 * 0.5) / 0.8)


def test_the_noise_of_an_estimate_inverts_tweedie():
    _, x_t, eps, alpha, _ = guided_step()
    assert torch.allclose(noise_from_estimate(x_t, tweedie(x_t, eps, alpha), alpha), eps)


def test_the_gate_has_the_published_values():
    gate = entropy_gate(torch.tensor([0.0, 0.4, 2.0]))
    assert gate.tolist() == pytest.approx([1.5 / (1 + math.exp(4)), 0.75, 1.5 / (1 + math.exp(-16))])


def test_the_correction_has_the_stated_length():
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn(2, 3, 1, 4, 4, generator=generator)
    gate = torch.tensor([0.0, 0.7, 1.5])
    length = adaptive_rectification(grad, x, gate, eta=0.1, xi=1e-6).flatten(1).norm(dim=1)
    norm_g, norm_x = grad.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1)
    assert torch.allclose(length, gate * 0.1 * norm_x * norm_g / (norm_g + 1e-6))


def test_the_two_variants_differ_in_sign():
    eps, r = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert torch.equal(rectify_noise(eps, r, 0.75), -rectify_noise(eps, r, 0.75, "reference"))
    assert rectify_noise(eps, r, 0.75).mean().item() == pytest.approx(0.5)


def test_the_true_last_step_returns_the_clean_estimate():
    _, x_t, eps, alpha, _ = guided_step(t=20)
    assert torch.allclose(ddim_step(x_t, eps, alpha, 1.0), tweedie(x_t, eps, alpha).clamp(-1, 1))


def test_after_a_clamp_the_corrected_step_keeps_noise_and_estimate_together():
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps must hold for the pair the step uses; a saturated pixel shows whether it does."""
    x_t, eps, alpha = torch.tensor([[[[3.0]]]]), torch.tensor([[[[0.0]]]]), 0.64
    x0 = 1.0  # tweedie gives 3.75, clamped
    rederived = (3.0 - 0.8 * x0) / 0.6
    corrected = ddim_step(x_t, eps, alpha, 0.75)
    assert corrected.item() == pytest.approx(0.75**0.5 * x0 + 0.25**0.5 * rederived)
    assert ddim_step(x_t, eps, alpha, 0.75, variant="reference").item() == pytest.approx(0.75**0.5 * x0)


def test_stochastic_ddim_by_hand():
    x_t, eps, z = (torch.tensor([[[[value]]]]) for value in (0.3, 0.1, -0.5))
    a, b, eta = 0.5, 0.8, 1.0
    sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    x0 = (0.3 - math.sqrt(0.5) * 0.1) / math.sqrt(0.5)
    expected = (
        math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * (0.3 - math.sqrt(a) * x0) / math.sqrt(1 - a) + sigma * -0.5
    )
    assert ddim_step(x_t, eps, a, b, eta_ddim=eta, noise=z).item() == pytest.approx(expected, rel=1e-5)


# --- direction -----------------------------------------------------------------------------------------------------------------


def guided_loss(config: GuidanceConfig, bn: bool = True, t: int = 500, step: float = 1e-3):
    """Guidance loss of the un-clamped estimate before and after one small rectification."""
    prior, x_t, eps, alpha, labels = guided_step(t=t)
    teacher = GuidingTeacher()
    with Guidance(teacher, config) as guidance:
        r = guidance.rectification(x_t, eps, alpha, labels)

        def loss(noise):
            logits = teacher(tweedie(x_t, noise, alpha).clamp(-1, 1))
            ce = F.cross_entropy(logits, labels, reduction="sum")
            return config.ce_weight * ce + config.bn_weight * guidance._bn_loss()

        return loss(eps).item(), loss(rectify_noise(eps, step * r, alpha, config.variant)).item()


@pytest.mark.parametrize("t", [100, 300, 500])
@pytest.mark.parametrize("bn_weight", [0.0, 1.0])
def test_the_corrected_sign_descends_the_guidance_loss(t, bn_weight):
    before, after = guided_loss(GuidanceConfig(gate="constant", bn_weight=bn_weight), t=t)
    assert after < before


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc"])
def test_the_reference_arithmetic_is_refused_under_other_solvers_than_ddim(solver):
    with Guidance(GuidingTeacher(), GuidanceConfig(variant="reference")) as guidance:
        with pytest.raises(InputError, match="published arithmetic of ddim"):
            sample(GaussianPrior(), torch.arange(2), (1, 8, 8), guidance=guidance, solver=solver, num_steps=2)


def test_the_reference_sign_ascends_it():
    before, after = guided_loss(GuidanceConfig(gate="constant", bn_weight=0.0, variant="reference"))
    assert after > before


def test_guided_samples_agree_with_the_labels_and_reference_samples_do_not():
    teacher, prior = GuidingTeacher(), GaussianPrior()
    labels = torch.arange(32) % 4
    noise = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def agreement(config):
        with Guidance(teacher, config) if config else __import__("contextlib").nullcontext() as guidance:
            images = sample(prior, labels, (1, 8, 8), guidance=guidance, num_steps=20, initial_noise=noise).images
        return (teacher(images).argmax(dim=1) == labels).double().mean().item()

    plain = agreement(None)
    corrected = agreement(GuidanceConfig(gate="constant", eta=0.3, bn_weight=0.0))
    ascending = agreement(GuidanceConfig(gate="constant", eta=0.1, bn_weight=0.0, variant="reference"))
    assert corrected > plain + 0.3 and ascending <= plain


# --- gradient ------------------------------------------------------------------------------------------------------------------


def plain_rectification(config, teacher, x_t, eps, alpha, labels):
    """The slow way: whole batch in one graph."""
    x = x_t.clone().requires_grad_()
    x0 = tweedie(x, eps, alpha)
    x0 = x0 + (x0.clamp(-1, 1) - x0).detach() if config.straight_through else x0.clamp(-1, 1)
    with Guidance(teacher, config) as guidance:
        logits = teacher(x0)
        loss = F.cross_entropy(logits, labels, reduction="sum") + statistics_loss(teacher, x0)
        gate = guidance.gate(logits.detach(), labels)
    return adaptive_rectification(torch.autograd.grad(loss, x)[0], x_t, gate, config.eta, config.xi)


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("gate", ["entropy", "normalized_entropy", "constant"])
def test_the_rectification_equals_the_gradient_of_the_whole_batch(straight_through, gate):
    prior, x_t, eps, alpha, labels = guided_step()
    config = GuidanceConfig(straight_through=straight_through, gate=gate)
    teacher = GuidingTeacher()
    with Guidance(teacher, config) as guidance:
        found = guidance.rectification(x_t, eps, alpha, labels)
    assert torch.allclose(found, plain_rectification(config, teacher, x_t, eps, alpha, labels), rtol=1e-9, atol=1e-12)


def test_saturated_pixels_get_a_gradient_by_default_and_none_through_a_hard_clamp():
    prior, x_t, eps, alpha, labels = guided_step(t=900)
    saturated = tweedie(x_t, eps, alpha).abs() > 1
    x_t = x_t * 8
    saturated = tweedie(x_t, eps, alpha).abs() > 1
    assert saturated.double().mean() > 0.5
    teacher = GuidingTeacher()
    found = {}
    for straight_through in (True, False):
        with Guidance(teacher, GuidanceConfig(gate="constant", straight_through=straight_through)) as guidance:
            found[straight_through] = guidance.rectification(x_t, eps, alpha, labels)[saturated].abs()
    assert (found[True] > 0).double().mean() > 0.9 and (found[False] == 0).all()


def test_one_teacher_pass_per_step():
    teacher, prior = GuidingTeacher(), GaussianPrior()
    with Guidance(teacher, GuidanceConfig(gate="constant")) as guidance:
        sample(
            prior,
            torch.zeros(5, dtype=torch.int64),
            (1, 8, 8),
            guidance=guidance,
            num_steps=7,
            initial_noise=torch.randn(5, 1, 8, 8, dtype=torch.float64),
        )
    assert teacher.passed == 5 * 7 and prior.calls == 7


def test_summed_cross_entropy_makes_an_images_label_signal_independent_of_the_batch():
    prior, x_t, eps, alpha, labels = guided_step(batch=6)
    teacher = GuidingTeacher()
    config = GuidanceConfig(bn_weight=0.0, gate="constant")
    with Guidance(teacher, config) as guidance:
        whole = guidance.rectification(x_t, eps, alpha, labels)
        alone = guidance.rectification(x_t[:1], eps[:1], alpha, labels[:1])
    assert torch.allclose(whole[:1], alone, rtol=1e-9)


def test_the_gradient_through_the_prior_differs_and_descends():
    prior, x_t, eps, alpha, labels = guided_step()
    teacher = GuidingTeacher()
    with Guidance(teacher, GuidanceConfig(gate="constant", through_prior=True)) as guidance:
        through = guidance.rectification(x_t, eps, alpha, labels, prior=lambda x: prior.epsilon(x, 500))
    with Guidance(teacher, GuidanceConfig(gate="constant")) as guidance:
        constant = guidance.rectification(x_t, eps, alpha, labels)
    # a Gaussian prior is linear, so both gradients are parallel and, normalised, equal
    assert torch.allclose(through, constant, rtol=1e-3)  # equal but for xi


def test_closing_guidance_takes_its_hooks_off_the_teacher():
    teacher = GuidingTeacher()
    with Guidance(teacher, GuidanceConfig()):
        assert any(module._forward_pre_hooks for module in teacher.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.modules())


# --- sampling ------------------------------------------------------------------------------------------------------------------


def test_strength_zero_is_plain_sampling_bit_for_bit_and_never_asks_the_teacher():
    teacher, prior = GuidingTeacher(), GaussianPrior()
    labels, noise = torch.zeros(4, dtype=torch.int64), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    plain = sample(prior, labels, (1, 8, 8), num_steps=9, initial_noise=noise).images
    for config in (GuidanceConfig(lambda_max=0.0), GuidanceConfig(eta=0.0)):
        with Guidance(teacher, config) as guidance:
            assert torch.equal(
                plain, sample(prior, labels, (1, 8, 8), guidance=guidance, num_steps=9, initial_noise=noise).images
            )
    assert teacher.passed == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_unguided_sampling_from_an_exact_gaussian_score_gives_its_variance(solver):
    prior = GaussianPrior(scale=0.25)
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = sample(
        prior, torch.zeros(64, dtype=torch.int64), (1, 8, 8), solver=solver, num_steps=200, initial_noise=noise
    ).images
    assert images.std().item() == pytest.approx(0.25, rel=0.04)


def test_time_steps_of_both_spacings():
    assert timesteps(50)[:2] == [999, 979] and timesteps(50)[-1] == 19
    assert timesteps(50, spacing="leading")[:2] == [980, 960] and timesteps(50, spacing="leading")[-1] == 0
    assert len(timesteps(30)) == 30 and timesteps(1000)[-1] == 0


@pytest.mark.parametrize("num_steps", [0, 1001, -3])
def test_an_impossible_number_of_steps_is_refused(num_steps):
    with pytest.raises(InputError, match="between 1 and 1000"):
        timesteps(num_steps)


def test_the_trace_has_a_row_per_step_and_batch():
    teacher, prior = GuidingTeacher(), GaussianPrior()
    with Guidance(teacher, GuidanceConfig()) as guidance:
        found = sample(
            prior,
            torch.zeros(6, dtype=torch.int64),
            (1, 8, 8),
            guidance=guidance,
            num_steps=5,
            batch_size=4,
            trace=True,
            initial_noise=torch.randn(6, 1, 8, 8, dtype=torch.float64),
        )
    assert len(found.trace) == 10 and {"step", "t", "gate", "entropy", "cross_entropy", "bn"} <= set(found.trace[0])


@pytest.mark.parametrize(
    "bad",
    [
        {"gate": "entrpy"},
        {"variant": "fixed"},
        {"lambda_max": -1.0},
        {"xi": 0.0},
        {"every": 0},
        {"ce_reduction": "max"},
        {"rule": "both"},
        {"rule": "separate", "variant": "reference"},
        {"views": 0},
        {"view_shift": -1},
    ],
)
def test_bad_constants_are_refused(bad):
    with pytest.raises(InputError):
        GuidanceConfig(**bad)


def test_a_teacher_without_batch_norm_needs_bn_weight_zero():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    with pytest.raises(InputError, match="bn_weight=0"):
        Guidance(teacher, GuidanceConfig())
    _, x_t, eps, alpha, labels = guided_step()
    with Guidance(teacher, GuidanceConfig(bn_weight=0.0, gate="constant")) as guidance:
        assert guidance.rectification(x_t, eps, alpha, labels).abs().sum() > 0
