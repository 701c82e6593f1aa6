"""Losses of data-free synthesis: hand-computed values, slow versions from the equations, gradients, extremes."""

import math

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.losses import datafree
from kdnb.models.probes import BatchNormProbe


def logits(seed, batch=5, classes=4, scale=2.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=rng, dtype=torch.float64)


def test_batch_norm_terms_are_the_norms_of_the_gaps():
    means, variances = [torch.tensor([3.0, 4.0])], [torch.tensor([1.0, 2.0])]
    running_means, running_variances = [torch.zeros(2)], [torch.tensor([1.0, 1.0])]
    terms = datafree.batch_norm_terms(means, variances, running_means, running_variances)
    assert terms.tolist() == [5.0 + 1.0]
    assert datafree.batch_norm_terms(means, variances, running_means, running_variances, squared=True).tolist() == [
        25.0 + 1.0
    ]


def test_batch_norm_loss_is_the_sum_over_layers_with_a_weight_on_the_first():
    means, zeros = [torch.tensor([1.0]), torch.tensor([2.0])], [torch.zeros(1), torch.zeros(1)]
    assert datafree.batch_norm_loss(means, zeros, zeros, zeros).item() == 3.0
    assert datafree.batch_norm_loss(means, zeros, zeros, zeros, first_layer_weight=10.0).item() == 12.0


@pytest.mark.parametrize("squared", [False, True])
def test_batch_norm_loss_has_a_zero_gradient_at_agreement(squared):
    mean = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = datafree.batch_norm_loss([mean], [torch.ones(2)], [mean.detach().clone()], [torch.ones(2)], squared)
    loss.backward()
    assert loss.item() == 0.0 and mean.grad.tolist() == [0.0, 0.0]


def test_batch_norm_gradient_is_right():
    running = [torch.zeros(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    means = [
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, dtype=torch.float64, requires_grad=True),
    ]
    for squared in (False, True):
        assert torch.autograd.gradcheck(
            lambda a, b, squared=squared: datafree.batch_norm_terms([a, b], [a, b], running, running, squared), means
        )


def test_batch_norm_loss_vanishes_on_the_batch_that_made_the_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=1.0),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2, momentum=1.0),
    )
    x = torch.randn(64, 3, 12, 12)
    model.train()(x)
    with BatchNormProbe(model) as probe:
        model(x)
        same = datafree.batch_norm_loss(probe.means, probe.variances, probe.running_means, probe.running_variances)
        model.eval()(2 * x)
        other = datafree.batch_norm_loss(probe.means, probe.variances, probe.running_means, probe.running_variances)
    assert same < 1e-3 < 0.1 < other


def test_batch_norm_lists_of_different_length_are_refused():
    one, two = [torch.zeros(1)], [torch.zeros(1), torch.zeros(1)]
    with pytest.raises(InputError, match="one length"):
        datafree.batch_norm_loss(one, one, two, one)
    with pytest.raises(InputError):
        datafree.batch_norm_loss([], [], [], [])


def test_momentum_buffer_copies_first_and_averages_then():
    buffer = datafree.BatchNormMomentum(0.75)
    first, second = [torch.tensor([4.0])], [torch.tensor([8.0])]
    assert buffer.mix(first, first)[0][0].item() == 4.0
    buffer.update(first, first)
    assert buffer.means[0].item() == 4.0
    assert buffer.mix(second, second)[0][0].item() == 0.25 * 8 + 0.75 * 4
    buffer.update(second, second)
    assert buffer.variances[0].item() == 5.0
    twin = datafree.BatchNormMomentum(0.75)
    twin.load_state_dict(buffer.state_dict())
    assert twin.mix(first, first)[1][0].item() == 0.25 * 4 + 0.75 * 5


def test_momentum_buffer_scales_the_gradient_and_is_itself_constant():
    buffer = datafree.BatchNormMomentum(0.9)
    start = torch.tensor([1.0], requires_grad=True)
    buffer.update([start], [start])
    value = torch.tensor([2.0], requires_grad=True)
    buffer.mix([value], [value])[0][0].sum().backward()
    assert start.grad is None and value.grad.item() == pytest.approx(0.1)
    with pytest.raises(InputError):
        datafree.BatchNormMomentum(1.0)


def test_adversarial_loss_counts_only_samples_with_the_same_label():
    logits_s = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    logits_t = torch.tensor([[0.0, 3.0], [3.0, 0.0]], dtype=torch.float64)
    p, q = logits_t[0].softmax(0), logits_s[0].softmax(0)
    by_hand = -0.5 * sum(p[k] * (p[k] / q[k]).log() for k in range(2))
    assert datafree.adversarial_loss(logits_s, logits_t).item() == pytest.approx(by_hand.item(), rel=1e-12)


def test_adversarial_loss_is_zero_at_agreement_and_sends_gradients_to_both_networks():
    same = logits(1)
    assert datafree.adversarial_loss(same, same).item() == 0.0
    logits_s, logits_t = same.clone().requires_grad_(), (1.5 * same).requires_grad_()
    datafree.adversarial_loss(logits_s, logits_t).backward()
    assert logits_s.grad.abs().sum() > 0 and logits_t.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(datafree.adversarial_loss, (logits_s, logits_t))


def test_one_hot_loss_without_labels_trusts_the_teacher():
    logits_t = torch.tensor([[0.0, math.log(3.0)]])
    assert datafree.one_hot_loss(logits_t).item() == pytest.approx(-math.log(0.75))
    assert datafree.one_hot_loss(logits_t, torch.tensor([0])).item() == pytest.approx(-math.log(0.25))


def test_class_balance_is_lowest_for_an_even_batch():
    even = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert datafree.class_balance_loss(even).item() == pytest.approx(-math.log(2.0))
    assert datafree.class_balance_loss(even[:1].repeat(2, 1)).item() == pytest.approx(0.0, abs=1e-12)


def test_class_balance_follows_the_equation():
    z = logits(2)
    mean = z.softmax(1).mean(0)
    assert datafree.class_balance_loss(z).item() == pytest.approx((mean * mean.log()).sum().item(), rel=1e-12)
    assert torch.autograd.gradcheck(datafree.class_balance_loss, z.requires_grad_())


def test_activation_loss_is_minus_the_mean_absolute_feature():
    assert datafree.activation_loss(torch.tensor([[1.0, -3.0], [0.0, 4.0]])).item() == -2.0


def test_js_divergence_is_symmetric_bounded_and_follows_the_equation():
    a, b = logits(3), logits(4)
    p, q = (a / 3).softmax(1), (b / 3).softmax(1)
    m = (p + q) / 2
    by_hand = 0.5 * ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean()
    assert datafree.js_divergence(a, b).item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert datafree.js_divergence(a, b).item() == pytest.approx(datafree.js_divergence(b, a).item(), rel=1e-12)
    assert datafree.js_divergence(a, a).item() == pytest.approx(0.0, abs=1e-15)
    opposite = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert datafree.js_divergence(*opposite).item() == pytest.approx(math.log(2.0))
    assert torch.autograd.gradcheck(datafree.js_divergence, (a.requires_grad_(), b.requires_grad_()))


def test_released_js_has_its_arguments_swapped():
    a, b = logits(5, scale=0.5), logits(6, scale=0.5)  # probabilities within the clamp
    p, q = (a / 3).softmax(1), (b / 3).softmax(1)
    m = (p + q) / 2
    swapped = 0.5 * ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)).mean()
    assert datafree.js_divergence_released(a, b).item() == pytest.approx(swapped.item(), rel=1e-12)
    assert abs(datafree.js_divergence(a, b).item() - swapped.item()) > 1e-7


@pytest.mark.parametrize("variation", [datafree.total_variation_l1, datafree.total_variation_l2])
def test_total_variation_ignores_brightness_and_sees_edges(variation):
    flat = torch.full((2, 3, 4, 4), 0.3)
    edge = flat.clone()
    edge[..., 2:] += 1.0
    assert variation(flat).item() == 0.0
    assert variation(edge).item() > 0.1
    assert variation(edge + 5.0).item() == pytest.approx(variation(edge).item(), rel=1e-5)


def test_total_variation_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    # right: 1, 2; down: 2, 3; diagonals: 4 and 1
    assert datafree.total_variation_l1(image).item() == pytest.approx(1.5 + 2.5 + 4.0 + 1.0)
    assert datafree.total_variation_l2(image).item() == pytest.approx(5**0.5 + 13**0.5 + 4.0 + 1.0)
    with pytest.raises(InputError):
        datafree.total_variation_l1(image[0])


def test_hard_mix_is_the_weighted_sum_and_teaches_only_the_student():
    logits_s, logits_t = logits(7).requires_grad_(), logits(8).requires_grad_()
    p, q = (logits_t / 20).softmax(1), (logits_s / 20).softmax(1)
    kd = 400 * (p * (p / q).log()).sum(1).mean()
    ce = -logits_s.log_softmax(1)[range(5), logits_t.argmax(1)].mean()
    loss = datafree.hard_mix_loss(logits_s, logits_t)
    assert loss.item() == pytest.approx((0.9 * kd + 0.1 * ce).item(), rel=1e-10)
    loss.backward()
    assert logits_t.grad is None and logits_s.grad.abs().sum() > 0


def test_hard_mix_keeps_given_labels():
    logits_s, logits_t = logits(9), logits(10)
    labels = (logits_t.argmax(1) + 1) % 4
    changed = datafree.hard_mix_loss(logits_s, logits_t, 0.0, 1.0, labels=labels)
    assert changed.item() == pytest.approx(-logits_s.log_softmax(1)[range(5), labels].mean().item(), rel=1e-12)


PAIR_LOSSES = [
    datafree.adversarial_loss,
    datafree.js_divergence,
    datafree.js_divergence_released,
    datafree.hard_mix_loss,
]


@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pair_losses_stay_finite_at_huge_logits(loss, dtype):
    value = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4]], dtype=dtype)
    logits_s, logits_t = value.clone().requires_grad_(), value.flip(1).clone().requires_grad_()
    total = loss(logits_s, logits_t)
    total.backward()
    assert total.isfinite() and logits_s.grad.isfinite().all()


def test_pair_losses_refuse_different_shapes_and_bad_temperatures():
    for loss in PAIR_LOSSES:
        with pytest.raises(InputError):
            loss(logits(1), logits(1, classes=3))
    with pytest.raises(InputError, match="temperature"):
        datafree.js_divergence(logits(1), logits(2), temperature=0.0)


def test_single_losses_stay_finite_at_huge_logits():
    z = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    for loss in (datafree.one_hot_loss, datafree.class_balance_loss, datafree.activation_loss):
        (gradient,) = torch.autograd.grad(loss(z), z)
        assert loss(z).isfinite() and gradient.isfinite().all()
