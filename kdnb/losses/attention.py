"""Attention transfer: where a network looks, as the strength of its maps, summed over channels."""

from torch import Tensor

from kdnb.losses.checks import upcast
from kdnb.losses.features import pool_to_smaller, unit_length


def attention_map(feature_map: Tensor, power: float = 2.0) -> Tensor:
    """Channel mean of |F|^p, flattened, at unit length: (B, C, H, W) -> (B, H W), float32 at least.

    Squares of numbers above 255 don't fit in float16, so powers are taken after widening. A map of zeros stays zeros.
    """
    return unit_length(upcast(feature_map).abs().pow(power).mean(1).flatten(1))


def at_loss(feat_s: Tensor, feat_t: Tensor, power: float = 2.0) -> Tensor:
    """Squared distance of two attention maps of one stage; the larger feature map is pooled first.

        L = mean_{b, xy} (n(mean_c |F^s|^p) - n(mean_c |F^t|^p))^2,   n(x) = x / ||x||

    Args:
        feat_s: (B, C_s, H, W) student map; gradients flow here only.
        feat_t: (B, C_t, H', W') teacher map, treated as constant.
        power: p >= 1; 2.
    Returns:
        Scalar in [0, 2 / (H W)].

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2 with the mean of squares in place of the
    norm, as in RepDistiller. Released code takes F^p without the absolute value: the same for even p.
    """
    feat_s, feat_t = pool_to_smaller(feat_s, feat_t.detach())
    return (attention_map(feat_s, power) - attention_map(feat_t, power)).square().mean()
