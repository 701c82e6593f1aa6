"""RLD in image regions, on the logits as they are or standardised."""

from collections.abc import Sequence

from torch import Tensor

from kdnb.losses import sdd_rld_loss
from kdnb.methods.base import positive
from kdnb.methods.sdd import SDDDKD


class SDDRLD(SDDDKD):
    """RLD in every region (`kdnb.losses.sdd_rld_loss`).

        L = ce_weight CE + min(epoch / warmup, 1) SDD_RLD

    Args:
        scales, complementary_weight: as `kdnb.methods.sdd.SDDKD`.
        alpha, beta, temperature, top_temperature, ce_weight, warmup: as `kdnb.methods.rld.RLD`.

    Source: iversonshao/DSKD, released code; unlike that of SDD it does not clip gradients.
    """

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        top_temperature: float = 1.0,
        ce_weight: float = 1.0,
        complementary_weight: float = 2.0,
        warmup: int = 20,
    ):
        super().__init__(scales, alpha, beta, temperature, ce_weight, complementary_weight, warmup)
        self.top_temperature = positive("top_temperature", top_temperature)

    def loss(self, logits_s: Tensor, logits_t: Tensor, labels: Tensor) -> Tensor:
        weights = (self.alpha, self.beta, self.temperature, self.top_temperature, self.complementary_weight)
        return sdd_rld_loss(logits_s, logits_t, labels, *weights, self.standardize_logits)


class SDDRLDLSKD(SDDRLD):
    """RLD of z-scored region logits.

    Args: as `SDDRLD`, with alpha 9, beta 72 and both temperatures 2. Published: scales [1, 2], temperatures 5, alpha 6 and beta 48 for
        alike networks; scales [1, 2, 4] and the defaults for unlike ones.

    Source: iversonshao/DSKD.
    """

    standardize_logits = True

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        alpha: float = 9.0,
        beta: float = 72.0,
        temperature: float = 2.0,
        top_temperature: float = 2.0,
        ce_weight: float = 1.0,
        complementary_weight: float = 2.0,
        warmup: int = 20,
    ):
        super().__init__(scales, alpha, beta, temperature, top_temperature, ce_weight, complementary_weight, warmup)
