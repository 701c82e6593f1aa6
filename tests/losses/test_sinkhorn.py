import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses.sinkhorn import sinkhorn

LOGITS = torch.randn(2, 3, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(0.2)


def _slow(logits, epsilon, num_iters):
    """With exponentials, one problem at a time, as the equation reads."""
    q = (logits / epsilon).exp()
    q = q / q.sum()
    B, K = q.shape
    for _ in range(num_iters):
        q = q / q.sum(0, keepdim=True) / K
        q = q / q.sum(1, keepdim=True) / B
    return q * B


def test_each_view_and_head_is_balanced_as_on_its_own():
    together = sinkhorn(LOGITS, 0.05, 3)
    for view in range(2):
        for head in range(3):
            assert torch.allclose(together[view, head], _slow(LOGITS[view, head], 0.05, 3), rtol=1e-10)


def test_rows_sum_to_one_and_many_iterations_balance_the_classes():
    plan = sinkhorn(LOGITS, 0.2, 500)
    assert torch.allclose(plan.sum(-1), torch.ones(2, 3, 12, dtype=torch.float64))
    assert torch.allclose(plan.sum(-2), torch.full((2, 3, 4), 3.0, dtype=torch.float64), atol=1e-8)


def test_equal_logits_give_the_uniform_assignment():
    assert torch.allclose(sinkhorn(torch.zeros(5, 4)), torch.full((5, 4), 0.25))


def test_one_logit_for_all_samples_still_uses_every_class():
    assert torch.allclose(sinkhorn(torch.tensor([[9.0, 0.0]]).repeat(4, 1)).sum(0), torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_stay_finite(dtype):
    plan = sinkhorn((torch.eye(4) * 1e4).to(dtype))
    assert torch.allclose(plan, torch.eye(4))


def test_targets_are_constants():
    assert not sinkhorn(LOGITS.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"num_iters": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match="sinkhorn needs"):
        sinkhorn(LOGITS, **settings)
