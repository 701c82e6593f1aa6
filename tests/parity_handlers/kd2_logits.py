"""Logit methods of the second set: DIST, RLD and its fusions, TTM, NKD, USKD, ABKD, WKD-L, CTKD, NormKD."""

import re

import torch
from torch.nn.functional import linear

from kdnb.losses import ce_loss, kd_loss, lsr, sdd_kd_loss, standardize
from kdnb.losses.abkd import ab_per_sample_released
from kdnb.losses.curriculum import curriculum_temperature, reversal
from kdnb.losses.dist import dist_parts
from kdnb.losses.nkd import (
    nkd_parts,
    self_target_cross_entropy,
    self_weights,
    target_cross_entropy,
    uskd_non_target,
    uskd_soft_labels_released,
    without_label,
)
from kdnb.losses.normkd import normkd_dkd_per_sample, normkd_per_sample
from kdnb.losses.rld import rld_left_out, rld_loss, rld_per_sample, sdd_rld_loss
from kdnb.losses.ttm import teacher_doubt, ttm_loss, ttm_per_sample, wttm_loss
from kdnb.losses.wkd import (
    class_cka_cost,
    floored,
    head_cosine_cost,
    sharpen,
    sinkhorn_potentials,
    transport_per_sample,
)
from kdnb.methods.base import cosine_decay, warm_up
from tests.parity_handlers.logit_methods import _grad, _leaf, _pick, _present, _regions, _sdd


def _inputs(golden):
    return _leaf(golden, "logits_student"), golden["logits_teacher"], golden["target"]


def _double(number):
    return torch.tensor(number, dtype=torch.float64)


def _ce(golden, logits):
    return golden.hyper.get("ce_weight", 1.0) * ce_loss(logits, golden["target"])


def _common(golden, student, loss, weight=1.0):
    """What nearly every file holds: the loss, the weighted total and both gradients."""
    ce = _ce(golden, student)
    total = ce + weight * loss
    return {
        "loss": loss,
        "loss_ce": ce,
        "loss_total": total,
        "grad_logits_student": _grad(loss, student)[0],
        "grad_total": _grad(total, student)[0],
    }


def dist(golden):
    student, teacher, _ = _inputs(golden)
    hyper = golden.hyper
    inter, intra = dist_parts(student, teacher, hyper["tau"], **_pick(golden, eps="eps"))
    loss = hyper["beta"] * inter + hyper["gamma"] * intra
    yield from _present(golden, {"inter": inter, "intra": intra} | _common(golden, student, loss, hyper["kd_weight"]))


_RLD = {"alpha": "alpha", "beta": "beta", "temperature": "temperature", "top_temperature": "alpha_temperature"}


def rld(golden):
    student, raw, labels = _inputs(golden)
    hyper = golden.hyper
    z, teacher = (standardize(student), standardize(raw)) if hyper.get("logit_stand") else (student, raw)
    temperatures = _pick(golden, temperature="temperature", top_temperature="alpha_temperature")
    scd, mcd = (part.mean() for part in rld_per_sample(z, teacher, labels, **temperatures))
    loss = rld_loss(z, teacher, labels, **_pick(golden, **_RLD))
    ramp = warm_up(hyper.get("epoch_of_total", 1), hyper["warmup_epochs"])
    own = raw.gather(1, labels[:, None])
    values = _common(golden, student, loss, ramp) | {
        "scd": scd,
        "mcd": mcd,
        "grad_scd": _grad(scd, student)[0],
        "grad_mcd": _grad(mcd, student)[0],
        "mask": rld_left_out(teacher, labels),
        "rank_of_label": (raw > own).sum(1),
    }
    yield from _present(golden, values)
    for key in sorted(golden.tensors):
        match = re.fullmatch(r"loss_kd_epoch(\d+)_warmup(\d+)", key)
        if match:
            yield key, warm_up(int(match[1]), int(match[2])) * loss, golden[key]


def sdd_rld(golden):
    student, teacher, labels = _regions(golden)
    hyper = golden.hyper
    given = _pick(golden, **_RLD, complementary_weight="beta_complementary", standardize_logits="logit_stand")
    loss = sdd_rld_loss(student, teacher, labels, **given)
    yield from _sdd(golden, loss, student, labels)
    warm, ce = warm_up(hyper["epoch"], hyper["warmup_epochs"]) * loss, _ce(golden, student[:, :, 0])
    values = {"loss_ce": ce, "loss_kd_warm": warm, "loss_total": ce + warm, "grad_total": _grad(ce + warm, student)[0]}
    yield from _present(golden, values)


def dskd_sdd_kd(golden):
    student, teacher, labels = _regions(golden)
    given = _pick(
        golden,
        temperature="temperature",
        complementary_weight="beta_complementary",
        standardize_logits="logit_stand",
    )
    yield from _sdd(golden, sdd_kd_loss(student, teacher, labels, **given), student, labels)


def _ttm(golden, weighted):
    student, teacher, _ = _inputs(golden)
    exponent = golden.hyper["exponent"]
    loss = (wttm_loss if weighted else ttm_loss)(student, teacher, exponent)
    rows = ttm_per_sample(student, teacher, exponent)
    rows = teacher_doubt(teacher, exponent) * rows if weighted else rows
    yield from _present(golden, {"loss_rows": rows} | _common(golden, student, loss, golden.hyper["kd_weight"]))


def ttm(golden):
    yield from _ttm(golden, False)


def wttm(golden):
    yield from _ttm(golden, True)


def nkd(golden):
    student, teacher, labels = _inputs(golden)
    target, others = nkd_parts(student, teacher, labels, golden.hyper["temperature"])
    others = golden.hyper["gamma"] * others
    values = {"loss_target": target, "loss_nontarget": others, "grad_target": _grad(target, student)[0]}
    yield from _present(golden, values | _common(golden, student, target + others))


def tf_nkd(golden):
    student, labels = _leaf(golden, "logits_student"), golden["target"]
    loss = self_target_cross_entropy(student, labels)
    values = {"weight": self_weights(student, labels)}
    yield from _present(golden, values | _common(golden, student, loss, golden.hyper["kd_weight"]))


def uskd(golden):
    student, features, labels, hyper = (
        _leaf(golden, "logits_student"),
        _leaf(golden, "feat_mid"),
        golden["target"],
        golden.hyper,
    )
    weight, bias = _leaf(golden, "w.fc.weight"), _leaf(golden, "w.fc.bias")
    weak_logits = linear(features, weight, bias)
    soft = uskd_soft_labels_released(student, weak_logits, labels)
    target = self_target_cross_entropy(student, labels, power=2)
    others = uskd_non_target(student, soft, labels)
    weak = lsr(weak_logits, labels, hyper["label_smoothing"])
    loss = hyper["alpha"] * target + hyper["beta"] * others + hyper["mu"] * weak
    gradients = _grad(loss, features, weight, bias)
    values = {
        "loss_target": target,
        "loss_nontarget": others,
        "loss_weak": weak,
        "derived_soft_labels": soft,
        **dict(zip(("grad_feat_mid", "grad_w.fc.weight", "grad_w.fc.bias"), gradients, strict=True)),
    }
    yield from _present(golden, values | _common(golden, student, loss))


def _entropy(logits, temperature):
    """As logged by the reference, with its guard of the logarithm."""
    p = (logits / temperature).softmax(1)
    return -(p * (p + 1e-10).log()).sum(1).mean()


def abkd(golden):
    student, teacher, _ = _inputs(golden)
    hyper = golden.hyper
    rows = ab_per_sample_released(student, teacher, hyper["alpha"], hyper["beta"], hyper["temperature"])
    values = {
        "loss_rows": rows,
        "entropy": _entropy(student, 1.0),
        "entropy_temperature": _entropy(student, hyper["temperature"]),
    }
    yield from _present(golden, values | _common(golden, student, rows.mean(), hyper["kd_weight"]))


def normkd(golden):
    student, teacher, _ = _inputs(golden)
    hyper = golden.hyper
    loss = normkd_per_sample(student, teacher, hyper["temperature_norm"]).mean()
    values = _common(golden, student, loss, hyper["kd_weight"])
    yield from _present(golden, values | {"loss_kd": hyper["kd_weight"] * loss})


def normkd_dkd(golden):
    student, teacher, labels = _inputs(golden)
    hyper = golden.hyper
    tckd, nckd = (part.mean() for part in normkd_dkd_per_sample(student, teacher, labels, hyper["temperature_norm"]))
    loss, ramp = hyper["alpha"] * tckd + hyper["beta"] * nckd, warm_up(hyper["epoch"], hyper["warmup_epochs"])
    values = {"tckd": tckd, "nckd": nckd, "loss_kd_warm": ramp * loss}
    yield from _present(golden, values | _common(golden, student, loss, ramp))


def wkd_cost(golden):
    yield "cost", class_cka_cost(golden["class_features"]), golden["cost"]


def _plan(golden, student, teacher, cost):
    """(B, K - 1, K - 1) plans, without the label's row and column."""
    labels, hyper, num_classes = golden["target"], golden.hyper, student.shape[1]
    logs = (without_label((logits / hyper["temperature"]).log_softmax(1), labels) for logits in (student, teacher))
    u, v = (
        x.exp() for x in sinkhorn_potentials(*logs, floored(cost), hyper["sinkhorn_lambda"], hyper["sinkhorn_iter"])
    )
    plan = u.unsqueeze(2) * (-floored(cost) / hyper["sinkhorn_lambda"]).exp() * v.unsqueeze(1)
    others = torch.arange(num_classes) != labels[:, None]
    stays = others.unsqueeze(2) & others.unsqueeze(1)
    return plan[stays].view(-1, num_classes - 1, num_classes - 1)


def wkd_l(golden):
    student, teacher, labels = _inputs(golden)
    hyper = golden.hyper
    distances = golden["cost_raw"] if "cost_raw" in golden else head_cosine_cost(golden["head_teacher"])
    cost = sharpen(distances, hyper.get("cost_sharpen", 1.0))
    given = {"regularization": hyper["sinkhorn_lambda"], "iterations": hyper["sinkhorn_iter"]}
    carried = transport_per_sample(student, teacher, labels, cost, hyper["temperature"], **given).mean()
    target = target_cross_entropy(student, teacher, labels)
    weight = hyper["wkd_weight"] * cosine_decay(hyper["epoch"], hyper["cosine_decay_epoch"], hyper["epochs"])
    values = {
        "cost": cost,
        "flow": _plan(golden, student, teacher, cost),
        "loss_target": target,
        "loss_transport": carried,
        "weight_at_epoch": _double(weight),
    }
    yield from _present(golden, values | _common(golden, student, target + weight * carried))


def ctkd(golden):
    student, teacher, _ = _inputs(golden)
    hyper, theta = golden.hyper, _leaf(golden, "parameter")
    least, most = hyper.get("decay_min", -1.0), hyper.get("decay_max", 0.0)
    schedule = [
        most + (most - least) * reversal(epoch, hyper["decay_loops"]) for epoch in range(len(golden["schedule"]))
    ]
    factor = most + (most - least) * reversal(hyper["epoch"], hyper["decay_loops"])
    span = {"start": hyper["t_start"], "span": hyper["t_end"]}
    temperature = curriculum_temperature(theta, factor, **span)
    loss = kd_loss(student, teacher, temperature)
    total = _ce(golden, student) + hyper["kd_weight"] * loss
    plain = kd_loss(student, teacher, curriculum_temperature(theta, 1.0, **span))
    values = {
        "schedule": _double(schedule),
        "reversal": _double(factor),
        "temperature": temperature,
        "loss": loss,
        "loss_ce": ce_loss(student, golden["target"]),
        "loss_total": total,
        "grad_logits_student": _grad(total, student)[0],
        "grad_parameter": _grad(total, theta)[0],
        "grad_parameter_unreversed": _grad(plain, theta)[0],
    }
    optimizer = torch.optim.SGD([student, theta], hyper["lr"], hyper["momentum"], weight_decay=hyper["weight_decay"])
    total.backward()
    optimizer.step()
    yield from _present(golden, values | {"logits_after": student, "parameter_after": theta})


HANDLERS = {
    "dist": dist,
    "rld": rld,
    "rld_lskd": rld,
    "sdd_rld": sdd_rld,
    "sdd_rld_lskd": sdd_rld,
    "dskd_sdd_kd": dskd_sdd_kd,
    "ttm": ttm,
    "wttm": wttm,
    "nkd": nkd,
    "tf_nkd": tf_nkd,
    "uskd": uskd,
    "abkd": abkd,
    "normkd": normkd,
    "normkd_dkd": normkd_dkd,
    "wkd_cost": wkd_cost,
    "wkd_l": wkd_l,
    "ctkd": ctkd,
}
