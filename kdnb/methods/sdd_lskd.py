"""SDD with every region's logits standardised: the sound forms, and those of the released code."""

from collections.abc import Sequence

from torch import Tensor

from kdnb.losses import (
    sdd_dkd_lskd_loss_averaged_weights_released,
    sdd_dkd_lskd_loss_released,
    sdd_kd_lskd_loss_released,
)
from kdnb.methods.sdd import SDDDKD, SDDKD


class SDDKDLSKD(SDDKD):
    """Soft targets of z-scored region logits with SDD's weights, averaged over images and regions.

        L = ce_weight CE + min(epoch / warmup, 1) kd_weight mean_bm w_bm tau^2 KL(Z(z^t_bm) || Z(z^s_bm))

    Args: as `kdnb.methods.sdd.SDDKD`, with the fusion's temperature 2, ce_weight 1 and kd_weight 9.

    Source: Shardzzi/SDD-LSKD-Fusion; its code computes something else, see `SDDKDLSKDReleased`.
    """

    standardize_logits = True

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        temperature: float = 2.0,
        ce_weight: float = 1.0,
        kd_weight: float = 9.0,
        complementary_weight: float = 2.0,
        warmup: int = 0,
    ):
        super().__init__(scales, temperature, ce_weight, kd_weight, complementary_weight, warmup)


class SDDDKDLSKD(SDDDKD):
    """DKD of z-scored region logits with SDD's weights, averaged over images and regions.

    Args: as `kdnb.methods.sdd.SDDDKD`, with the fusion's alpha 9, beta 72 and temperature 2.

    Source: Shardzzi/SDD-LSKD-Fusion; its code sums instead of averaging, see `SDDDKDLSKDReleased`.
    """

    standardize_logits = True

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        alpha: float = 9.0,
        beta: float = 72.0,
        temperature: float = 2.0,
        ce_weight: float = 1.0,
        complementary_weight: float = 2.0,
        warmup: int = 20,
    ):
        super().__init__(scales, alpha, beta, temperature, ce_weight, complementary_weight, warmup)


class SDDKDLSKDReleased(SDDKDLSKD):
    """As released: regions grouped by another image's answer, each group averaged by itself (`sdd_kd_lskd_loss_released`).

    There is no weight of complementary regions; the other arguments are those of `SDDKDLSKD`.
    """

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        temperature: float = 2.0,
        ce_weight: float = 1.0,
        kd_weight: float = 9.0,
        warmup: int = 0,
    ):
        super().__init__(scales, temperature, ce_weight, kd_weight, warmup=warmup)

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        return sdd_kd_lskd_loss_released(logits_s, logits_t, labels, self.temperature)


class SDDDKDLSKDReleased(SDDDKDLSKD):
    """As released: a sum over images and regions (`sdd_dkd_lskd_loss_released`). Clip gradients at norm 40, as its training does.

    Arguments as `SDDDKDLSKD`.
    """

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        return sdd_dkd_lskd_loss_released(
            logits_s, logits_t, labels, self.alpha, self.beta, self.temperature, self.complementary_weight
        )


class SDDDKDLSKDAveragedReleased(SDDDKDLSKD):
    """As another repository released it: SDD's weights averaged before they meet the regions (`sdd_dkd_lskd_loss_averaged_weights_released`).

    Arguments as `SDDDKDLSKD`. Source: iversonshao/DSKD.
    """

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        weights = (self.alpha, self.beta, self.temperature, self.complementary_weight)
        return sdd_dkd_lskd_loss_averaged_weights_released(logits_s, logits_t, labels, *weights)
