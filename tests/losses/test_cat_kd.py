import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import cat_loss, cat_loss_normalized, class_activation_map

GENERATOR = torch.Generator().manual_seed(0)
CAM_S = torch.randn(2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
CAM_T = torch.randn(2, 3, 8, 8, generator=GENERATOR, dtype=torch.float64)
both = pytest.mark.parametrize("loss", [cat_loss, cat_loss_normalized])


def test_the_mean_of_activation_maps_are_logits_without_bias():
    final_map = torch.randn(2, 5, 3, 3, generator=GENERATOR, dtype=torch.float64)
    head = torch.nn.Linear(5, 4).double()
    cam = class_activation_map(final_map, head.weight)
    assert torch.allclose(cam.mean((2, 3)), head(final_map.mean((2, 3))) - head.bias)
    assert torch.allclose(cam[1, 2, 0, 1], final_map[1, :, 0, 1] @ head.weight[2])


def test_by_hand_plain_and_at_unit_length():
    cam_s, cam_t = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])
    assert cat_loss(cam_s, cam_t, 2).item() == (9 + 4) / 4
    assert cat_loss_normalized(cam_s, cam_t, 2).item() == pytest.approx((0.6**2 + 0.2**2) / 4)
    assert cat_loss(cam_s, cam_t, 1).item() == pytest.approx((7 / 4 - 2 / 4) ** 2)


@both
def test_both_are_pooled_to_the_resolution(loss):
    pooled = F.avg_pool2d(CAM_S, 2), F.avg_pool2d(CAM_T, 4)
    assert torch.allclose(loss(CAM_S, CAM_T, 2), loss(*pooled, 2))
    assert loss(pooled[1].repeat_interleave(2, 2), CAM_T, 2).item() == pytest.approx(0, abs=1e-15)


def test_strength_matters_only_where_maps_are_not_normalised():
    assert cat_loss_normalized(5 * CAM_T, CAM_T).item() == pytest.approx(0, abs=1e-15)
    assert cat_loss(5 * CAM_T, CAM_T) > 0


@both
def test_gradients_are_right_and_reach_the_student_only(loss):
    cam_s, cam_t = CAM_S.clone().requires_grad_(), CAM_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, CAM_T), cam_s)
    loss(cam_s, cam_t).backward()
    assert cam_t.grad is None


@both
def test_half_precision_and_dead_maps_stay_finite(loss):
    assert loss((CAM_S * 1000).half(), CAM_T.half()).isfinite()
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss(dead, CAM_T.float()).backward()
    assert dead.grad.abs().max() < 10


@both
def test_other_classes_are_refused(loss):
    with pytest.raises(InputError, match="batch and classes"):
        loss(CAM_S, CAM_T[:, :2])
