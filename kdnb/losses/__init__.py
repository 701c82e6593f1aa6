"""Losses as pure functions: tensors in, a scalar (or one value a sample) out; each states its equation and source."""

from kdnb.losses.dkd import dkd_loss, dkd_per_sample
from kdnb.losses.kd import ce_loss, kd_loss, kd_per_sample
from kdnb.losses.sdd import (
    check_scales,
    multiscale_pool,
    region_logits,
    sdd_dkd_loss,
    sdd_dkd_lskd_loss_released,
    sdd_groups,
    sdd_kd_loss,
    sdd_kd_lskd_loss_released,
    sdd_weights,
)
from kdnb.losses.standardization import standardize

__all__ = [
    "ce_loss",
    "check_scales",
    "dkd_loss",
    "dkd_per_sample",
    "kd_loss",
    "kd_per_sample",
    "multiscale_pool",
    "region_logits",
    "sdd_dkd_loss",
    "sdd_dkd_lskd_loss_released",
    "sdd_groups",
    "sdd_kd_loss",
    "sdd_kd_lskd_loss_released",
    "sdd_weights",
    "standardize",
]
