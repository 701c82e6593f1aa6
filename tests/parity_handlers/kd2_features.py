"""The second set of feature methods: AT, RKD, PKT, SP, CRD, ReviewKD, OFD, CAT-KD, WKD-F. Adapters take the recorded weights."""

import re

import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.losses import (
    at_loss,
    cat_loss,
    cat_loss_normalized,
    ce_loss,
    class_activation_map,
    hierarchical_context_loss,
    ofd_loss,
    ofd_margin,
    pkt_loss,
    rkd_losses,
    sp_loss,
    wkd_f_losses,
)
from kdnb.losses.crd import crd_loss
from kdnb.losses.features import pool_to
from kdnb.methods.base import cosine_decay, warm_up
from kdnb.methods.crd import CRD
from kdnb.methods.fitnet import HintRegressor
from kdnb.methods.ofd import connector
from kdnb.methods.reviewkd import Review, as_levels
from kdnb.methods.wkd_f import Bottleneck
from tests.parity_handlers.feature_methods import _leaf, _load, _numbered, _present


def _leaves(golden, prefix):
    return {key: _leaf(golden, key) for key in _numbered(golden, prefix)}


def _total(golden, term):
    """`loss_ce` from the recorded logits, and what is minimised."""
    values = {}
    if "logits_student" in golden:
        values["loss_ce"] = golden.hyper.get("ce_weight", 1.0) * ce_loss(golden["logits_student"], golden["target"])
        values["loss_total"] = values["loss_ce"] + term
    return values


def _gradients(loss, leaves, module=None):
    """Of the loss with respect to inputs, and to a module's recorded weights under `grad_w.`."""
    inputs = dict(leaves)
    if module is not None:
        inputs |= {f"w.{name}": parameter for name, parameter in module.named_parameters()}
    gradients = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    return {f"grad_{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}


def at(golden):
    leaves, power = _leaves(golden, "feat_s"), golden.hyper["p"]
    feats_t = [golden[key] for key in _numbered(golden, "feat_t")]
    stages = [at_loss(*pair, power) for pair in zip(leaves.values(), feats_t, strict=False)]
    loss = sum(stages)
    used = dict(list(leaves.items())[: len(stages)])
    weighted = golden.hyper["feat_weight"] * loss
    values = {f"loss_stage{index}": stage for index, stage in enumerate(stages)}
    values |= {"loss": loss, "loss_kd": weighted} | _total(golden, weighted) | _gradients(loss, used)
    yield from _present(golden, values)


def rkd(golden):
    hyper, pooled_s = golden.hyper, _leaf(golden, "pooled_s")
    distance, angle = rkd_losses(pooled_s, golden["pooled_t"], hyper["eps"], hyper.get("squared", False))
    loss = hyper["distance_weight"] * distance + hyper["angle_weight"] * angle
    weighted = hyper.get("feat_weight", 1.0) * loss
    values = {"loss_distance": distance, "loss_angle": angle, "loss": loss, "loss_kd": weighted}
    yield from _present(golden, values | _total(golden, weighted) | _gradients(loss, {"pooled_s": pooled_s}))


def pkt(golden):
    pooled_s = _leaf(golden, "pooled_s")
    loss = pkt_loss(pooled_s, golden["pooled_t"], golden.hyper["eps"])
    weighted = golden.hyper["feat_weight"] * loss
    values = {"loss": loss, "loss_kd": weighted} | _total(golden, weighted)
    yield from _present(golden, values | _gradients(loss, {"pooled_s": pooled_s}))


def sp(golden):
    feat_s = _leaf(golden, "feat_s")
    loss = sp_loss(feat_s, golden["feat_t"])
    weighted = golden.hyper["feat_weight"] * loss
    values = {"loss": loss, "loss_kd": weighted} | _total(golden, weighted)
    yield from _present(golden, values | _gradients(loss, {"feat_s": feat_s}))


def crd(golden):
    hyper, n = golden.hyper, golden.hyper["n_data"]
    method = CRD(
        hyper["feat_weight"], hyper["nce_k"], hyper["nce_temperature"], hyper["nce_momentum"], hyper["feat_dim"]
    )
    method.num_images = n
    shapes = [type("Shapes", (), {"pooled": golden[key].shape[1:]}) for key in ("pooled_s", "pooled_t")]
    method.attach(None, None, *shapes, len(golden["pooled_s"]))
    weights = {key.replace(".linear", ""): value for key, value in golden.under("w.").items()}
    state = method.double().state_dict() | weights
    state |= {"memory_s": golden["memory_s"], "memory_t": golden["memory_t"], "classes": golden["label_of_sample"]}
    method.load_state_dict(state)
    method.train()
    for prefix in ("", "step2_"):
        indices, places = golden[prefix + "index"], golden[prefix + "contrast_index"]
        pooled_s = _leaf(golden, prefix + "pooled_s")
        scores = method.contrast(pooled_s, golden[prefix + "pooled_t"], indices, places)
        loss_s, loss_t = (crd_loss(score, n, hyper["eps"]) for score in scores)
        loss = loss_s + loss_t
        parts = {"score_s": scores[0].exp(), "score_t": scores[1].exp(), "loss_s": loss_s, "loss_t": loss_t}
        parts |= dict(zip(("normalizer_s", "normalizer_t"), method.log_normalizer.exp(), strict=True))
        parts |= {"memory_s_after": method.memory_s, "memory_t_after": method.memory_t, "loss": loss}
        parts["loss_kd"] = hyper["feat_weight"] * loss
        gradients = _gradients(loss, {"pooled_s": pooled_s}, method)
        parts |= {re.sub(r"(embed_[st])", r"\1.linear", key): value for key, value in gradients.items()}
        yield from _present(golden, {prefix + key: value for key, value in parts.items()})


def reviewkd(golden):
    hyper, leaves, pooled_s = golden.hyper, _leaves(golden, "feat_s"), _leaf(golden, "pooled_s")
    targets = as_levels([None, *(golden[key] for key in _numbered(golden, "feat_t"))], golden["pooled_t"])
    levels = as_levels([None, *leaves.values()], pooled_s)
    review = Review([level.shape[1] for level in levels], [target.shape[1] for target in targets]).double()
    _load(review, {f"fusions.{key}": value for key, value in golden.under("w.").items()})
    results = review(levels, [target.shape[2:] for target in targets])
    losses = [hierarchical_context_loss(*pair) for pair in zip(results, targets, strict=True)]
    loss = sum(losses)
    weighted = hyper["feat_weight"] * warm_up(hyper["epoch"], hyper["warmup_epochs"]) * loss
    values = {f"result{index}": result for index, result in enumerate(results)}
    values |= {f"loss_level{index}": level for index, level in enumerate(losses)}
    gradients = _gradients(loss, leaves | {"pooled_s": pooled_s}, review)
    values |= {key.replace("w.fusions.", "w."): value for key, value in gradients.items()}
    yield from _present(golden, values | {"loss": loss, "loss_kd_warm": weighted} | _total(golden, weighted))


def ofd(golden):
    hyper, leaves = golden.hyper, _leaves(golden, "feat_s")
    state = {key.removeprefix("connectors."): value for key, value in golden.under("w.").items()}
    shapes = [golden[f"feat_t{index}"].shape for index in range(len(leaves))]
    connectors = nn.ModuleList(
        connector(feat.shape[1], shape[1], hyper["kernel_size"])
        for feat, shape in zip(leaves.values(), shapes, strict=True)
    )
    _load(connectors, state)
    values, stages = {}, []
    for index, (connect, feat_s) in enumerate(zip(connectors, leaves.values(), strict=True)):
        margin = ofd_margin(golden[f"bn_bias{index}"], golden[f"bn_weight{index}"])
        recorded = golden[f"margin{index}"]  # float32 numbers in the reference
        near = (margin - recorded).abs().max() <= 1e-6 * recorded.abs().max()
        yield f"margin{index} within 1e-6", near, torch.tensor(True)
        connected = connect(feat_s)
        stages.append(ofd_loss(connected, pool_to(golden[f"feat_t{index}"], connected.shape[2:]), recorded))
        values |= {f"connected{index}": connected, f"loss_stage{index}": stages[-1]}
    loss = sum(stage / 2 ** (len(stages) - 1 - index) for index, stage in enumerate(stages))
    weighted = hyper["feat_weight"] * loss
    gradients = _gradients(loss, leaves, connectors)
    values |= {re.sub(r"grad_w\.", "grad_w.connectors.", key): value for key, value in gradients.items()}
    yield from _present(golden, values | {"loss": loss, "loss_kd": weighted} | _total(golden, weighted))


def cat_kd(golden):
    hyper, cam_s = golden.hyper, _leaf(golden, "cam_s")
    if hyper.get("binarize"):
        raise InputError("binarized activation maps are not offered")
    compare = cat_loss_normalized if hyper["normalize"] else cat_loss
    loss = compare(cam_s, golden["cam_t"], hyper["resolution"])
    weighted = hyper["cat_weight"] * loss
    of_labels = hyper["ce_weight"] * ce_loss(cam_s.mean((2, 3)), golden["target"])
    total = weighted + of_labels
    values = {"loss": loss, "loss_cat": weighted, "loss_ce": of_labels, "loss_total": total}
    values |= {"grad_total": torch.autograd.grad(total, cam_s, retain_graph=True)[0]}
    yield from _present(golden, values | _gradients(loss, {"cam_s": cam_s}))


def cat_cam(golden):
    cam = class_activation_map(golden["final_map"], golden["head_weight"])
    converted = cam.mean((2, 3))
    yield from _present(golden, {"cam": cam, "logits_converted": converted, "logits": converted + golden["head_bias"]})


def wkd_f(golden):
    hyper, feat_s, feat_t = golden.hyper, _leaf(golden, "feat_s"), golden["feat_t"]
    weights = golden.under("w.")
    if hyper["projector"] == "bottleneck":
        projector = Bottleneck(feat_s.shape[1], feat_t.shape[1], weights["conv1.weight"].shape[0])
    else:
        projector = HintRegressor(tuple(feat_s.shape[1:]), tuple(feat_t.shape[1:]))
    projected = _load(projector, weights)(feat_s)
    of_mean, of_deviation = wkd_f_losses(projected, pool_to(feat_t, projected.shape[2:]), hyper["grid"], hyper["eps"])
    loss = hyper["mean_ratio"] * of_mean + of_deviation
    share = hyper["wkd_weight"] * cosine_decay(hyper["epoch"], hyper["cosine_decay_epoch"], hyper["epochs"])
    values = {"projected": projected, "loss_mean": of_mean, "loss_deviation": of_deviation, "loss": loss}
    values |= {"weight_at_epoch": torch.tensor(share, dtype=torch.float64), "loss_kd": share * loss} | _total(
        golden, share * loss
    )
    yield from _present(golden, values | _gradients(loss, {"feat_s": feat_s}, projector))


HANDLERS = {
    "at": at,
    "rkd": rkd,
    "pkt": pkt,
    "sp": sp,
    "crd": crd,
    "reviewkd": reviewkd,
    "ofd": ofd,
    "cat_kd": cat_kd,
    "cat_cam": cat_cam,
    "wkd_f": wkd_f,
}
