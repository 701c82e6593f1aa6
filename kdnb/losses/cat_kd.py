"""Class activation maps: where in the picture a network finds each class."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.checks import upcast
from kdnb.losses.features import feature_mse, unit_length


def class_activation_map(final_map: Tensor, head_weight: Tensor) -> Tensor:
    """The classifier applied at every place, without its bias: (B, D, H, W), (K, D) -> (B, K, H, W). Its spatial mean are the logits
    without bias.

    Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, CVPR 2016.
    """
    return F.conv2d(final_map, head_weight[:, :, None, None])


def _pooled(cam_s: Tensor, cam_t: Tensor, resolution: int) -> list[Tensor]:
    if cam_s.shape[:2] != cam_t.shape[:2]:
        raise InputError(
            f"activation maps must agree in batch and classes, got {tuple(cam_s.shape)} of the student and {tuple(cam_t.shape)}"
        )
    return [F.adaptive_avg_pool2d(upcast(cam), resolution) for cam in (cam_s, cam_t.detach())]


def cat_loss(cam_s: Tensor, cam_t: Tensor, resolution: int = 2) -> Tensor:
    """Class attention transfer: pooled activation maps should agree.

        L = mean_{b,k,xy} (pool_r A^s - pool_r A^t)^2

    Args:
        cam_s: (B, K, H, W) student's maps; gradients flow here only. cam_t: (B, K, H', W') teacher's, treated as constants.
        resolution: r, side of the grid that both are averaged on.
    Returns:
        Scalar in float32 at least.
    Raises:
        InputError: batches or classes differ.

    Source: Guo, Yan, Li, Chen, Class Attention Transfer Based Knowledge Distillation, CVPR 2023.
    """
    return feature_mse(*_pooled(cam_s, cam_t, resolution))


def cat_loss_normalized(cam_s: Tensor, cam_t: Tensor, resolution: int = 2) -> Tensor:
    """The same between maps at unit length: only where a class is seen counts, not how strongly.

        L = mean_{b,k,xy} (n(pool_r A^s) - n(pool_r A^t))^2,   n(x) = x / ||x|| over the places of one class

    Args, Returns, Raises: as `cat_loss`. A map of zeros stays zeros.

    Source: Guo, Yan, Li, Chen, CVPR 2023.
    """
    return feature_mse(*(unit_length(cam, (2, 3)) for cam in _pooled(cam_s, cam_t, resolution)))
