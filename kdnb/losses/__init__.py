"""Losses as pure functions: tensors in, a scalar (or one value a sample) out; each states its equation and source."""

from kdnb.losses.dkd import dkd_loss, dkd_per_sample
from kdnb.losses.features import batch_similarity, feature_mse, pool_to, pool_to_smaller, semckd_loss, vid_loss
from kdnb.losses.kd import ce_loss, kd_loss, kd_per_sample
from kdnb.losses.mlld import batch_relation_rows, class_relation_rows, confidence_masks, kd_rows, mlld_loss, mlld_loss_released
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
    "batch_relation_rows",
    "batch_similarity",
    "ce_loss",
    "check_scales",
    "class_relation_rows",
    "confidence_masks",
    "dkd_loss",
    "dkd_per_sample",
    "feature_mse",
    "kd_loss",
    "kd_per_sample",
    "kd_rows",
    "mlld_loss",
    "mlld_loss_released",
    "multiscale_pool",
    "pool_to",
    "pool_to_smaller",
    "region_logits",
    "sdd_dkd_loss",
    "sdd_dkd_lskd_loss_released",
    "sdd_groups",
    "sdd_kd_loss",
    "sdd_kd_lskd_loss_released",
    "sdd_weights",
    "semckd_loss",
    "standardize",
    "vid_loss",
]
