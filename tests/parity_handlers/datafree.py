"""Recorded vectors of data-free distillation: losses, generators, synthesis, perturbations, attacks on inputs and weights, measures."""

import torch
import torch.nn.functional as F
from torch import nn

from kdnb import metrics
from kdnb.losses import contrastive, datafree
from kdnb.models.probes import BatchNormProbe


class TinyTeacher(nn.Module):
    """The small classifier of the recordings: two strided convolutions with batch norm, spatial mean, one linear layer."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        first, second, last = state["conv1.weight"], state["conv2.weight"], state["fc.weight"]
        self.conv1 = nn.Conv2d(first.shape[1], first.shape[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first.shape[0])
        self.conv2 = nn.Conv2d(second.shape[1], second.shape[0], 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(second.shape[0])
        self.fc = nn.Linear(last.shape[1], last.shape[0])
        self.to(last.dtype).load_state_dict(state, strict=False)  # the recordings leave `num_batches_tracked` out
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


def deepinversion_bn(golden):
    teacher = TinyTeacher(golden.under("teacher."))
    momentum = datafree.BatchNormMomentum(golden.meta.get("momentum", 0.9))
    step = 0
    while f"step{step}.x" in golden:
        x = golden[f"step{step}.x"].clone().requires_grad_()
        with BatchNormProbe(teacher) as probe:
            teacher(x)
            means, variances = momentum.mix(probe.means, probe.variances)
            terms = datafree.batch_norm_terms(means, variances, probe.running_means, probe.running_variances)
            total = datafree.batch_norm_loss(means, variances, probe.running_means, probe.running_variances)
            momentum.update(probe.means, probe.variances)
        total.backward()
        yield f"step{step}.r_layers", terms, golden[f"step{step}.r_layers"]
        yield f"step{step}.total", total, golden[f"step{step}.total"]
        yield f"step{step}.grad_x", x.grad, golden[f"step{step}.grad_x"]
        for layer, (mean, variance) in enumerate(zip(momentum.means, momentum.variances, strict=True)):
            yield f"step{step}.mmt_mean{layer}", mean, golden[f"step{step}.mmt_mean{layer}"]
            yield f"step{step}.mmt_var{layer}", variance, golden[f"step{step}.mmt_var{layer}"]
        step += 1


def dfkd_losses(golden):
    logits_s, logits_t, labels = golden["student_logits"], golden["teacher_logits"], golden["labels"]
    kd_weight, ce_weight = golden.meta.get("alpha", 0.9), golden.meta.get("beta", 0.1)
    agree = (logits_s.argmax(1) == logits_t.argmax(1)).to(logits_t.dtype)
    outputs = {
        "decision_mask": agree,
        "loss_adv": datafree.adversarial_loss(logits_s, logits_t),
        "loss_oh": datafree.one_hot_loss(logits_t, labels),
        "kd_T20": datafree.hard_mix_loss(logits_s, logits_t, 1.0, 0.0, 20.0),
        "kd_T1": datafree.hard_mix_loss(logits_s, logits_t, 1.0, 0.0, 1.0),
        "jsdiv_T3": datafree.js_divergence_released(logits_s, logits_t, 3.0),
        "class_balance": datafree.class_balance_loss(logits_t),
        "hard_mix": datafree.hard_mix_loss(logits_s, logits_t, kd_weight, ce_weight, 20.0),
        "pseudo_onehot": datafree.one_hot_loss(logits_t),
        "tv_l1": datafree.total_variation_l1(golden["image"]),
        "activation_l1": datafree.activation_loss(golden["features"]),
    }
    for name, value in outputs.items():
        if name in golden:
            yield name, value, golden[name]


def _projection_head(golden):
    state = golden.under("head.")
    hidden, in_features = state["head.0.weight"].shape
    head = contrastive.ProjectionHead(in_features, state["head.2.weight"].shape[0], hidden).to(state["head.0.weight"].dtype)
    head.load_state_dict(state)
    return head


def cmi(golden):
    temperature = golden.meta.get("config", {}).get("T", 0.1)
    head = _projection_head(golden)
    local = golden["local_feature"].clone().requires_grad_()
    views = golden["global_feature"].clone().requires_grad_()
    cached = [head(half) for half in golden["cached_feature"].chunk(2, dim=1)] if "cached_feature" in golden else []
    plain = contrastive.contrastive_inversion_loss(head(local), head(views), temperature=temperature)
    loss = contrastive.contrastive_inversion_loss(head(local), head(views), *cached, temperature=temperature)
    loss.backward()
    yield "loss_cr", loss, golden["loss_cr"]
    if "loss_cr_no_cache" in golden:
        yield "loss_cr_no_cache", plain, golden["loss_cr_no_cache"]
    yield "grad_local", local.grad, golden["grad_local"]
    yield "grad_global", torch.zeros_like(views) if views.grad is None else views.grad, golden["grad_global"]
    for name, parameter in head.named_parameters():
        yield f"grad.head.{name}", parameter.grad, golden[f"grad.head.{name}"]
    if "sup.features" in golden:
        yield from _supervised(golden)
    if "inst.x" in golden:
        teacher = TinyTeacher(golden.under("teacher."))
        with BatchNormProbe(teacher, keep_inputs=True) as probe:
            teacher(golden["inst.x"])
            yield "inst.feature", contrastive.instance_features(probe.inputs), golden["inst.feature"]


def _supervised(golden):
    features, labels = golden["sup.features"], golden["sup.labels"]
    temperature = golden.meta.get("config", {}).get("T", 0.1)
    for name, ids, anchors in (("simclr_all", None, "all"), ("simclr_one", None, "one"), ("supcon_all", labels, "all"), ("supcon_one", labels, "one")):
        if f"sup.{name}" in golden:
            yield f"sup.{name}", contrastive.supervised_contrast(features, ids, temperature, 0.07, anchors), golden[f"sup.{name}"]


def behaviour(golden):
    logits, labels = golden["logits"], golden["labels"]
    bins = golden.meta.get("config", {}).get("bins", golden.meta.get("bins", 15))
    for name in ("accuracy", "brier", "nll"):
        yield name, getattr(metrics, name)(logits, labels), golden[name]
    for name in ("ece", "mce"):
        yield name, getattr(metrics, name)(logits, labels, bins), golden[name]
    for name in ("entropy", "margin"):
        yield name, getattr(metrics, name)(logits), golden[name]


def fid(golden):
    for case in golden.meta["cases"]:
        key = case["key"]
        real, fake = golden[f"{key}.real"], golden[f"{key}.fake"]
        yield f"{key}.fid", metrics.frechet_distance(real, fake), golden[f"{key}.fid"]
        if f"{key}.fid_reference_elementwise_sqrt" in golden:
            yield f"{key}.released", metrics.frechet_distance_released(real, fake), golden[f"{key}.fid_reference_elementwise_sqrt"]


HANDLERS = {
    "deepinversion_bn": deepinversion_bn,
    "dfkd_losses": dfkd_losses,
    "cmi": cmi,
    "behaviour": behaviour,
    "fid": fid,
}

# Roots of matrices with small eigenvalues in the recording itself.
TOLERANCES = {"fid": 1e-8}
