import math

import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import teacher_free
from tests.material import method_loss

LN3 = math.log(3)
Z = torch.tensor([[LN3, 0.0]], dtype=torch.float64)  # probabilities 3/4 and 1/4
Y = torch.tensor([0])


def _random(B=5, K=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(B, K, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(), draw(), torch.randint(K, (B,), generator=generator)


def test_virtual_teacher_gives_the_label_its_share_and_spreads_the_rest():
    u = teacher_free.virtual_teacher(torch.tensor([2, 0]), 4, correct_prob=0.7)
    assert torch.allclose(u, torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]]))


def test_textbook_smoothing_by_hand():
    expected = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)  # K = 2: the label keeps 0.9 + 0.1 / 2
    assert teacher_free.lsr(Z, Y, 0.1).item() == pytest.approx(expected, rel=1e-12)


def test_released_smoothing_by_hand():
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert teacher_free.lsr_released(Z, Y, 0.1).item() == pytest.approx(expected, rel=1e-12)


def test_the_two_smoothings_differ_by_a_factor_on_epsilon():
    z, _, y = _random(K=7)
    assert torch.allclose(teacher_free.lsr_released(z, y, 0.12), teacher_free.lsr(z, y, 0.12 * 7 / 6))


def test_no_smoothing_is_cross_entropy():
    z, _, y = _random()
    assert torch.allclose(teacher_free.lsr(z, y, 0.0), F.cross_entropy(z, y))
    assert torch.allclose(teacher_free.lsr_released(z, y, 0.0), F.cross_entropy(z, y))


def test_self_distillation_from_its_equation():
    z, t, y = _random()
    tau, alpha = 3.0, 0.8
    p_t, p_s = (t / tau).softmax(1), (z / tau).softmax(1)
    kl = tau**2 * (p_t * (p_t / p_s).log()).sum(1).mean()
    ce = -z.softmax(1)[torch.arange(5), y].log().mean()
    assert torch.allclose(
        method_loss("tfkd_self", z, t, y, temperature=tau, ce_weight=1 - alpha, kd_weight=alpha),
        (1 - alpha) * ce + alpha * kl,
    )


def test_released_self_distillation_divides_by_the_number_of_classes():
    z, t, y = _random(K=7)
    assert torch.allclose(method_loss("tfkd_self_released", z, t, y, multiplier=7.0), method_loss("tfkd_self", z, t, y))
    assert not torch.allclose(
        method_loss("tfkd_self_released", z, t, y, multiplier=1.0), method_loss("tfkd_self", z, t, y)
    )


def test_virtual_teacher_term_is_zero_at_the_virtual_distribution():
    y = torch.tensor([1, 3])
    z = teacher_free.virtual_teacher(y, 5, 0.99, torch.float64).log()
    assert abs(method_loss("tfkd_reg", z, None, y, ce_weight=0.0, kd_weight=1.0).item()) < 1e-12


def test_released_virtual_teacher_from_its_equation():
    z, _, y = _random(K=7)
    total = 0.0
    for b in range(5):
        u = [0.9 if k == y[b] else 0.1 / 6 for k in range(7)]
        q = torch.tensor([math.exp(value / 20) for value in u], dtype=torch.float64)
        q = q / q.sum()
        total += (q * (q / z[b].softmax(0)).log()).sum() / (5 * 7)
    expected = 0.7 * F.cross_entropy(z, y) + 0.3 * 100 * total
    assert torch.allclose(
        method_loss("tfkd_reg_released", z, None, y, ce_weight=0.7, kd_weight=0.3, correct_prob=0.9), expected
    )


def test_released_virtual_teacher_is_nearly_uniform_and_ours_is_not():
    y, K = torch.tensor([0]), 100
    nearly_uniform = torch.zeros(1, K, dtype=torch.float64)
    assert (
        method_loss("tfkd_reg_released", nearly_uniform, None, y, ce_weight=0.0, kd_weight=1.0, multiplier=1.0).item()
        < 1e-5
    )
    assert method_loss("tfkd_reg", nearly_uniform, None, y, ce_weight=0.0, kd_weight=1.0).item() > 0.5


ALL = [
    lambda z, t, y: teacher_free.lsr(z, y),
    lambda z, t, y: teacher_free.lsr_released(z, y),
    lambda z, t, y: method_loss("tfkd_self", z, t, y),
    lambda z, t, y: method_loss("tfkd_self_released", z, t, y),
    lambda z, t, y: method_loss("tfkd_reg", z, None, y),
    lambda z, t, y: method_loss("tfkd_reg_released", z, None, y),
]


@pytest.mark.parametrize("loss", ALL)
def test_gradients_are_those_of_the_value(loss):
    z, t, y = _random(3, 4)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, t, y), z.requires_grad_())


@pytest.mark.parametrize("loss", ALL)
def test_no_gradient_reaches_the_teacher(loss):
    z, t, y = _random()
    t.requires_grad_()
    loss(z.requires_grad_(), t, y).backward()
    assert z.grad.abs().sum() > 0 and t.grad is None


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_stay_finite(loss, dtype):
    z = (torch.eye(3) * 1e4).to(dtype).requires_grad_()
    value = loss(z, z.detach().flip(0), torch.tensor([1, 2, 0]))
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: teacher_free.lsr(Z, Y, 1.5),
        lambda: teacher_free.lsr_released(Z, Y, 1.0),
        lambda: method_loss("tfkd_self", Z, Z, Y, temperature=0.0),
        lambda: method_loss("tfkd_self", Z, Z, Y, kd_weight=-0.1),
        lambda: method_loss("tfkd_reg", Z, None, Y, correct_prob=1.0),
        lambda: method_loss("tfkd_reg_released", Z, None, Y, temperature=-1.0),
        lambda: teacher_free.virtual_teacher(Y, 1),
    ],
)
def test_bad_settings_are_refused(call):
    with pytest.raises(InputError):
        call()
