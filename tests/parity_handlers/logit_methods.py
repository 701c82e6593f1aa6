"""Methods that compare logits: KD, DKD, LSKD, SDD and its fusion, multi-level logit distillation."""

import json
import re

import torch

from kdnb.losses import (
    batch_relation_rows,
    ce_loss,
    class_relation_rows,
    confidence_masks,
    dkd_loss,
    dkd_per_sample,
    kd_loss,
    kd_per_sample,
    kd_rows,
    mlld_loss_released,
    multiscale_pool,
    region_logits,
    sdd_dkd_loss,
    sdd_dkd_lskd_loss_released,
    sdd_groups,
    sdd_kd_loss,
    sdd_kd_lskd_loss_released,
    standardize,
)
from kdnb.methods.base import warm_up


def _leaf(golden, key):
    return golden[key].clone().requires_grad_()


def _grad(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def _pick(golden, **names):
    """Keyword arguments from those hyper-parameters that the file states: argument = name in the file."""
    return {argument: golden.hyper[name] for argument, name in names.items() if name in golden.hyper}


def kd(golden):
    student, teacher = _leaf(golden, "logits_student"), golden["logits_teacher"]
    hyper = golden.hyper
    ce, soft = ce_loss(student, golden["target"]), kd_loss(student, teacher, **_pick(golden, temperature="temperature"))
    total = hyper["ce_weight"] * ce + hyper["kd_weight"] * soft
    values = {
        "loss_ce": hyper["ce_weight"] * ce,
        "loss_kd_unweighted": soft,
        "loss_kd": hyper["kd_weight"] * soft,
        "loss_total": total,
        "grad_kd_unweighted": _grad(soft, student)[0],
        "grad_total": _grad(total, student)[0],
    }
    yield from _present(golden, values)


def _present(golden, values):
    for key, value in values.items():
        if key in golden:
            yield key, value, golden[key]


def kd_temperatures(golden):
    """The data-free set's file: one loss and gradient for each temperature in its keys."""
    for key in sorted(golden.tensors):
        match = re.fullmatch(r"kd_T(.+)\.loss", key)
        if match:
            student = _leaf(golden, "student_logits")
            loss = kd_loss(student, golden["teacher_logits"], float(match[1]))
            yield key, loss, golden[key]
            yield from _present(golden, {f"kd_T{match[1]}.grad_student": _grad(loss, student)[0]})


def dkd(golden):
    student, teacher, labels = _leaf(golden, "logits_student"), golden["logits_teacher"], golden["target"]
    hyper = golden.hyper
    loss = dkd_loss(student, teacher, labels, **_pick(golden, alpha="alpha", beta="beta", temperature="temperature"))
    tckd, nckd = dkd_per_sample(student, teacher, labels, hyper["temperature"])
    values = {
        "loss_ce": hyper.get("ce_weight", 1.0) * ce_loss(student, labels),
        "loss": loss,
        "tckd": tckd.mean(),
        "nckd": nckd.mean(),
        "grad_logits_student": _grad(loss, student)[0],
    }
    yield from _present(golden, values)
    for key in sorted(golden.tensors):
        match = re.fullmatch(r"loss_kd_epoch(\d+)_warmup(\d+)", key)
        if match:
            yield key, warm_up(int(match[1]), int(match[2])) * loss, golden[key]


def lskd_normalize(golden):
    logits = _leaf(golden, "logits")
    ours = standardize(logits, **_pick(golden, eps="eps"))
    yield "standardized", ours, golden["standardized"]
    yield "grad_logits", torch.autograd.grad(ours, logits, golden["cotangent"])[0], golden["grad_logits"]


def _z(golden):
    return _leaf(golden, "logits_student"), standardize(golden["logits_teacher"])


def kd_lskd(golden):
    student, teacher = _z(golden)
    loss = kd_loss(standardize(student), teacher, golden.hyper["base_temperature"])
    values = {
        "loss": loss,
        "loss_weighted": golden.hyper["kd_weight"] * loss,
        "grad_logits_student": _grad(loss, student)[0],
    }
    if "loss_ce" in golden:
        values["loss_ce"] = golden.hyper["ce_weight"] * ce_loss(student, golden["target"])
    yield from _present(golden, values)


def dkd_lskd(golden):
    student, teacher = _z(golden)
    hyper = golden.hyper
    alpha = hyper.get("alpha_effective", hyper.get("alpha_cfg", 1.0) * hyper.get("kd_weight", 9.0))
    beta = hyper.get("beta_effective", hyper.get("beta_cfg", 8.0) * hyper.get("kd_weight", 9.0))
    loss = dkd_loss(standardize(student), teacher, golden["target"], alpha, beta, hyper["base_temperature"])
    yield from _present(golden, {"loss": loss, "grad_logits_student": _grad(loss, student)[0]})


def _scales(digits):
    return [int(digit) for digit in digits]


def sdd_pool(golden):
    feature_map = _leaf(golden, "feature_map")
    weight, bias = golden["fc_weight"], golden["fc_bias"]
    for key in sorted(golden.tensors):
        match = re.fullmatch(r"(pooled|patch_logits|grad_feature_map)_M(\d+)", key)
        if not match:
            continue
        kind, scales = match[1], _scales(match[2])
        logits = region_logits(feature_map, weight, bias, scales)
        if kind == "pooled":
            yield key, multiscale_pool(feature_map, scales), golden[key]
        elif kind == "patch_logits":
            yield key, logits, golden[key]
        else:
            yield key, torch.autograd.grad(logits, feature_map, golden[f"cotangent_M{match[2]}"])[0], golden[key]
    if "gap_logits" in golden:
        yield "gap_logits", feature_map.mean((2, 3)) @ weight.T + bias, golden["gap_logits"]


def _regions(golden):
    student, teacher, labels = _leaf(golden, "patch_student"), golden["patch_teacher"], golden["target"]
    scales = golden.hyper["M"]
    scales = json.loads(scales) if isinstance(scales, str) else scales
    assert student.shape[2] == sum(scale**2 for scale in scales)
    return student, teacher, labels


def _sdd(golden, loss, student, labels):
    values = {
        "loss": loss,
        "grad_patch_student": _grad(loss, student)[0],
        "group_code": sdd_groups(golden["patch_teacher"], labels),
    }
    if "loss_weighted" in golden:
        values["loss_weighted"] = golden.hyper["kd_weight"] * loss
    yield from _present(golden, values)


def sdd_kd(golden):
    student, teacher, labels = _regions(golden)
    loss = sdd_kd_loss(
        student, teacher, labels, **_pick(golden, temperature="temperature", complementary_weight="beta_complementary")
    )
    yield from _sdd(golden, loss, student, labels)


_DKD = {"alpha": "alpha", "beta": "beta", "temperature": "temperature", "complementary_weight": "beta_complementary"}


def sdd_dkd(golden):
    student, teacher, labels = _regions(golden)
    yield from _sdd(golden, sdd_dkd_loss(student, teacher, labels, **_pick(golden, **_DKD)), student, labels)


def sdd_kd_lskd(golden):
    student, teacher, labels = _regions(golden)
    temperature = golden.hyper["temperature"]
    yield from _sdd(golden, sdd_kd_lskd_loss_released(student, teacher, labels, temperature), student, labels)
    weight = _pick(golden, complementary_weight="beta_complementary")
    fixed = sdd_kd_loss(student, teacher, labels, temperature, **weight, standardize_logits=True)
    rows = kd_per_sample(standardize(student.transpose(1, 2)), standardize(teacher.transpose(1, 2)), temperature)
    values = {"derived_fixed_loss": fixed, "derived_fixed_grad": _grad(fixed, student)[0], "per_row_loss": rows}
    yield from _present(golden, values)


def sdd_dkd_lskd(golden):
    student, teacher, labels = _regions(golden)
    hyper = _pick(golden, **_DKD)
    yield from _sdd(golden, sdd_dkd_lskd_loss_released(student, teacher, labels, **hyper), student, labels)
    mean = sdd_dkd_loss(student, teacher, labels, **hyper, standardize_logits=True)
    yield from _present(golden, {"derived_mean_loss": mean, "derived_mean_grad": _grad(mean, student)[0]})


_ROWS = {"kd": kd_rows, "class": class_relation_rows, "batch": batch_relation_rows}


def _mlld(golden, standardized):
    """The recorded numbers are those of the released arithmetic."""
    views = {key: golden[key] for key in ("teacher_weak", "teacher_strong")}
    views |= {key: _leaf(golden, key) for key in ("student_weak", "student_strong")}
    weak, strong, labels, hyper = views["student_weak"], views["student_strong"], golden["target"], golden.hyper
    temperatures = [hyper["temperature"], *hyper["fixed_temperatures"]]
    logits = (weak, strong, views["teacher_weak"], views["teacher_strong"])
    kd, of_classes, of_batch = (
        hyper["kd_weight"] * term for term in mlld_loss_released(*logits, temperatures, standardized)
    )
    ce = hyper["ce_weight"] * (ce_loss(weak, labels) + ce_loss(strong, labels))
    total = ce + kd + of_classes + of_batch
    gradients = _grad(total, weak, strong)
    samples, classes = confidence_masks(views["teacher_weak"])
    values = {
        "loss_ce": ce,
        "loss_kd": kd,
        "loss_cc": of_classes,
        "loss_bc": of_batch,
        "loss_total": total,
        "grad_student_weak": gradients[0],
        "grad_student_strong": gradients[1],
        "sample_mask": samples,
        "class_mask": classes,
    }
    yield from _present(golden, values)
    for key in sorted(golden.tensors):
        match = re.fullmatch(r"term_(kd|class|batch)_(weak|strong)_T(\d+)p(\d+)", key)
        if match:
            student, teacher = views[f"student_{match[2]}"], views[f"teacher_{match[2]}"]
            if standardized and match[1] == "kd":
                student, teacher = standardize(student), standardize(teacher)
            yield key, _ROWS[match[1]](student, teacher, [float(f"{match[3]}.{match[4]}")]).mean(), golden[key]


def mlld(golden):
    yield from _mlld(golden, False)


def mlld_lskd(golden):
    yield from _mlld(golden, True)


HANDLERS = {
    "kd": kd,
    "kd_loss": kd_temperatures,
    "dkd": dkd,
    "lskd_normalize": lskd_normalize,
    "kd_lskd": kd_lskd,
    "dkd_lskd": dkd_lskd,
    "sdd_pool": sdd_pool,
    "sdd_kd": sdd_kd,
    "sdd_dkd": sdd_dkd,
    "sdd_kd_lskd": sdd_kd_lskd,
    "sdd_dkd_lskd": sdd_dkd_lskd,
    "mlld": mlld,
    "mlld_lskd": mlld_lskd,
}
