"""Teacher-free training, tolerant teachers, label stores, class-relation distillation, DisWOT, and the closed forms of the bounds."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnb.data import crops
from kdnb.losses import bounds, relation, soft_labels, teacher_free, tolerant, zero_cost
from kdnb.losses.features import pool_to_smaller, vid_loss
from kdnb.losses.sinkhorn import sinkhorn
from kdnb.methods.vid import VIDRegressor
from tests.material import method_loss


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_(True)


def _loss_and_gradient(golden, loss_of):
    logits = _leaf(golden["logits_student"])
    loss = loss_of(logits)
    loss.backward()
    yield "loss", loss, golden["loss"]
    yield "grad_logits_student", logits.grad, golden["grad_logits_student"]


def lsr(golden):
    yield from _loss_and_gradient(
        golden, lambda z: teacher_free.lsr_released(z, golden["target"], golden.hyper["alpha"])
    )


def tfkd_self(golden):
    hyper = golden.hyper  # without a multiplier the file is the released "normal" KD
    given = {"temperature": hyper["temperature"], "multiplier": hyper.get("multiplier", 1.0), **_shares(hyper["alpha"])}
    yield from _loss_and_gradient(
        golden,
        lambda z: method_loss("tfkd_self_released", z, golden["logits_teacher"], golden["target"], **given),
    )


def tfkd_reg(golden):
    hyper = golden.hyper
    given = {name: hyper[name] for name in ("correct_prob", "multiplier")} | _shares(hyper["reg_alpha"])
    given["temperature"] = hyper["reg_temperature"]
    yield from _loss_and_gradient(
        golden, lambda z: method_loss("tfkd_reg_released", z, None, golden["target"], **given)
    )


def _shares(alpha):
    return {"ce_weight": 1 - alpha, "kd_weight": alpha}


def tolerant_teacher(golden):
    logits, labels, num_top, eta = _leaf(golden["logits"]), golden["target"], golden.hyper["K"], golden.hyper["eta"]
    tsd = tolerant.top_score_difference(logits, num_top)
    loss = method_loss("tolerant_patriarch", logits, None, labels, ce_weight=eta, num_top=num_top)
    yield "tsd", tsd, golden["tsd"]
    yield "loss", loss, golden["loss"]
    yield "grad_tsd", torch.autograd.grad(tsd, logits, retain_graph=True)[0], golden["grad_tsd"]
    yield "grad_logits", torch.autograd.grad(loss, logits)[0], golden["grad_logits"]
    yield "loss_ce", F.cross_entropy(logits, labels), golden["loss_ce"]
    yield "topk_probs", F.softmax(logits, 1).topk(num_top).values, golden["topk_probs"]


def fkd_labels(golden):
    num_classes, temperature = golden.hyper["n_classes"], golden.hyper["student_temp"]
    for mode, reference in golden.under("compressed_").items():
        compressed = soft_labels.compress_labels(golden["probs"], mode)
        indices, probs = compressed
        if mode == "hard":
            released = indices[:, 0]
        elif mode == "ori":
            released = probs
        else:
            released = torch.stack([indices.to(probs.dtype), probs], dim=-2)  # the recorded layout: classes as floats
        yield f"compressed_{mode}", released.reshape(reference.shape), reference
        restored = soft_labels.restore_labels(compressed, mode, num_classes)
        if f"restored_{mode}" in golden:
            yield f"restored_{mode}", restored, golden[f"restored_{mode}"]
        if f"sce_{mode}" in golden:
            logits = _leaf(golden["logits_student"])
            loss = soft_labels.soft_cross_entropy(logits, restored, temperature)
            loss.backward()
            yield f"sce_{mode}", loss, golden[f"sce_{mode}"]
            yield f"sce_grad_{mode}", logits.grad, golden[f"sce_grad_{mode}"]


def fkd_replay(golden):
    image = golden["image"].permute(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W)
    replayed = crops.replay_crops(image, golden["boxes"][None], golden["flips"][None], golden.hyper["size"])
    replayed = replayed[0].permute(0, 2, 3, 1)
    yield "crops_replayed", replayed, golden["crops_replayed"]
    yield "crops_generated", replayed, golden["crops_generated"]


def sinkhorn_assignment(golden):
    hyper = golden.hyper
    for key, prefix in (("assignment", ""), ("assignment_default", "default_")):
        if key in golden:
            epsilon, num_iters = hyper[f"{prefix}epsilon"], hyper[f"{prefix}num_iters"]
            yield key, sinkhorn(golden["logits"], epsilon, num_iters), golden[key]


def crkd_relation(golden):
    hyper, logits = golden.hyper, _leaf(golden["new_logits"])
    per_head = relation.relation_loss_released(
        logits, golden["old_logits"], ~golden["labelled_mask"], hyper["temperature"], hyper["kd_temperature"]
    )
    loss = hyper["alpha"] * per_head.mean()
    loss.backward()
    yield "loss_per_head", per_head, golden["loss_per_head"]
    yield "loss", loss, golden["loss"]
    yield "grad_new_logits", logits.grad, golden["grad_new_logits"]


def crkd_swapped(golden):
    logits = _leaf(golden["logits"])
    per_head = relation.swapped_prediction(
        logits, golden["targets"], golden.hyper["num_large_crops"], golden.hyper["temperature"]
    )
    loss = per_head.mean()
    loss.backward()
    yield "loss_per_head", per_head, golden["loss_per_head"]
    yield "loss", loss, golden["loss"]
    yield "grad_logits", logits.grad, golden["grad_logits"]


def diswot(golden):
    gradients = {}
    for role in "st":
        pooled = golden[f"embed_{role}"]
        logits = F.linear(pooled, golden[f"fc_weight_{role}"], golden.tensors.get(f"fc_bias_{role}"))
        gradients[role] = zero_cost.classifier_gradient(logits, pooled, golden["target"])
        yield f"fc_grad_{role}", gradients[role], golden[f"fc_grad_{role}"]
    maps = golden["feat_s"], golden["feat_t"]
    ours = {
        "relation_score": zero_cost.relation_score(*maps),
        "semantic_score": zero_cost.semantic_score(gradients["s"], gradients["t"]),
        "score": zero_cost.diswot_score(*maps, gradients["s"], gradients["t"]),
    }
    for key, value in ours.items():
        yield key, value.reshape(golden[key].shape), golden[key]


def elbo_ppca(golden):
    variance = torch.tensor(golden.meta["config"]["sig2"], dtype=golden["W"].dtype)
    model, x = bounds.PPCA(golden["W"], golden["mu"], variance), golden["x"]
    q = golden["q_mean"], golden["q_logvar"].exp().diag_embed()
    posterior_mean, posterior_covariance = bounds.ppca_posterior(x, model)
    log_evidence, elbo, gap = (
        bounds.ppca_log_evidence(x, model),
        bounds.ppca_elbo(x, model, *q),
        bounds.ppca_gap(x, model, *q),
    )
    log_weights = bounds.ppca_log_weights(x, model, *q, golden["noise"])
    yield "log_px", log_evidence, golden["log_px"]
    yield "post_mean", posterior_mean, golden["post_mean"]
    yield "post_cov", posterior_covariance, golden["post_cov"]
    yield "elbo", elbo, golden["elbo"]
    yield "reconstruction", bounds.ppca_reconstruction(x, model, *q), golden["reconstruction"]
    yield "kl_to_prior", bounds.diagonal_kl(golden["q_mean"], golden["q_logvar"]).sum(1), golden["kl_to_prior"]
    yield "kl_to_prior, full covariance", bounds.gaussian_kl(*q), golden["kl_to_prior"]
    yield "kl_to_posterior", gap, golden["kl_to_posterior"]
    yield "gap_error", (log_evidence - elbo - gap).abs().max(), torch.zeros_like(variance)
    yield "log_weights", log_weights, golden["log_weights"]
    for samples, reference in golden.under("iwae_K").items():
        yield f"iwae_K{samples}", bounds.iwae_bound(log_weights[: int(samples)]), reference


def vid_mi(golden):
    yield from _vid(golden)
    rho, num_pairs = golden["gauss.rho"], golden.meta["d"]
    yield "gauss.mi", bounds.correlated_pairs_information(rho, num_pairs), golden["gauss.mi"]
    yield (
        "gauss.bound_optimal",
        bounds.correlated_pairs_bound(rho, rho, 1 - rho.square(), num_pairs),
        golden["gauss.bound_optimal"],
    )
    for name, reference in golden.under(
        "gauss.bound_m"
    ).items():  # the name holds the slope and the variance, as in `0.3_v0.9`
        slope, variance = (torch.tensor(float(part), dtype=rho.dtype) for part in name.split("_v"))
        yield f"gauss.bound_m{name}", bounds.correlated_pairs_bound(rho, slope, variance, num_pairs), reference


def _vid(golden):
    weights = golden.under("vid.regressor.")
    channels_mid, channels_s = weights["0.weight"].shape[:2]
    regressor = VIDRegressor(
        channels_s, channels_mid, weights["4.weight"].shape[0], golden.meta["init_pred_var"], golden.meta["eps"]
    ).double()
    regressor.regressor.load_state_dict(weights)
    regressor.log_scale.data.copy_(golden["vid.log_scale"])
    student = _leaf(golden["vid.student"])
    feat_s, feat_t = pool_to_smaller(student, golden["vid.teacher"])
    loss = vid_loss(*regressor(feat_s), feat_t)
    loss.backward()
    yield "vid.loss", loss, golden["vid.loss"]
    yield "vid.grad_student", student.grad, golden["vid.grad_student"]
    yield "vid.grad_log_scale", regressor.log_scale.grad, golden["vid.grad_log_scale"]


HANDLERS = {
    "lsr": lsr,
    "tfkd_normal": tfkd_self,
    "tfkd_self": tfkd_self,
    "tfkd_reg": tfkd_reg,
    "tolerant_teacher_tsd": tolerant_teacher,
    "fkd_labels": fkd_labels,
    "fkd_replay": fkd_replay,
    "sinkhorn": sinkhorn_assignment,
    "crkd_relation": crkd_relation,
    "crkd_swapped_prediction": crkd_swapped,
    "diswot": diswot,
    "elbo_ppca": elbo_ppca,
    "vid_mi": vid_mi,
}
