"""Recorded vectors of data-free distillation: losses, generators, synthesis, perturbations, attacks on inputs and weights, measures."""

import torch
import torch.nn.functional as F
from torch import nn

from kdnb import metrics
from kdnb.attacks import hard_loss
from kdnb.attacks.bit_flip import ProgressiveBitSearch
from kdnb.attacks.carlini_wagner import carlini_wagner_l2_released
from kdnb.attacks.quantization import Quantization
from kdnb.generators.perturbation import PerturbationGenerator
from kdnb.generators.reusable import ReusableGenerator
from kdnb.losses import contrastive, datafree
from kdnb.models.probes import BatchNormProbe
from kdnb.samplers.synthesizer import MetaConfig, Synthesizer


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
    head = contrastive.ProjectionHead(in_features, state["head.2.weight"].shape[0], hidden).to(
        state["head.0.weight"].dtype
    )
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
    for key, reference in golden.under("sup.").items():
        kind, _, anchors = key.partition("_")
        if kind in ("simclr", "supcon"):
            ids = labels if kind == "supcon" else None
            yield f"sup.{key}", contrastive.supervised_contrast(features, ids, temperature, 0.07, anchors), reference


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
            yield (
                f"{key}.released",
                metrics.frechet_distance_released(real, fake),
                golden[f"{key}.fid_reference_elementwise_sqrt"],
            )


def _reusable_generator(states, config):
    """A `ReusableGenerator` of the recorded sizes with the recorded weights (`num_batches_tracked` is left out there)."""
    start = states["gan1.l1.0.weight"]
    channels = states["gan1.conv_blocks.9.weight"].shape[0]
    generator = ReusableGenerator(config["S"], channels, start.shape[1], config["ngf"]).to(start.dtype)
    missing, unexpected = generator.load_state_dict(states, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return generator


def rg_generator(golden):
    parts = ("gan1.", "gan2.", "decoder.")
    states = {key: value for key, value in golden.tensors.items() if key.startswith(parts)}
    generator = _reusable_generator(states, golden.meta["config"])
    z = golden["z"]
    with torch.no_grad():
        yield "eval_initial_stats.image", generator.eval().unit_images(z), golden["eval_initial_stats.image"]
        yield "train.image", generator.train().unit_images(z), golden["train.image"]
        trained = generator.state_dict()
        for part in parts:
            for key, value in golden.under(f"train.after_{part}").items():
                yield f"train.after_{part}{key}", trained[f"{part}{key}"].clone(), value
        yield (
            "eval_after_one_train_forward.image",
            generator.eval().unit_images(z),
            golden["eval_after_one_train_forward.image"],
        )
        generator.train()
        for name in ("gan1", "gan2"):
            if f"train.{name}_out" in golden:
                yield f"train.{name}_out", getattr(generator, name).unit_images(z), golden[f"train.{name}_out"]


def rg_synthesis(golden):
    config = golden.meta["config"]
    mean, std = (torch.tensor(config[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
    modes = {key.split(".")[0] for key in golden.tensors if key.endswith(".losses")}
    for mode in sorted(modes):
        teacher, student = TinyTeacher(golden.under("teacher.")), TinyTeacher(golden.under("student."))
        synthesizer = Synthesizer(
            _reusable_generator(golden.under("init."), config),
            teacher,
            student,
            config["nc"],
            MetaConfig(
                num_steps=config["it"],
                lr_generator=config["lr_g"],
                lr_latent=config["lr_z"],
                bn_weight=config["bn"],
                oh_weight=config["oh"],
                adv_weight=config["adv"],
                warmup=golden.meta["warmup"],
                bn_momentum=config["mmt"],
                meta_update="reptile" if mode.endswith("_reptile") else "fomaml",
            ),
            mode=mode.removesuffix("_reptile"),
            augment=lambda images: ((images + 1) / 2 - mean) / std,
        )
        losses = []
        for call in range(golden.meta["calls"]):
            made = synthesizer(golden["targets_unsorted"], golden[f"call{call}.z_init"])
            losses.append(made.losses["total"])
            yield f"{mode}.call{call}.best_image", (made.images + 1) / 2, golden[f"{mode}.call{call}.best_image"]
            state = synthesizer.generator.state_dict()
            for key, value in golden.under(f"{mode}.call{call}.meta.").items():
                yield f"{mode}.call{call}.meta.{key}", state[key].clone(), value
        yield f"{mode}.losses", torch.cat(losses), golden[f"{mode}.losses"]


def _perturbation_generator(golden):
    state = golden.under("gap.")
    first = state["model0.1.weight"]
    blocks = len([key for key in state if key.endswith("conv_block.1.weight")])
    network = PerturbationGenerator(first.shape[1], first.shape[0], blocks).to(first.dtype)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return network


def gap(golden):
    config, x = golden.meta["config"], golden["x"]
    mean, std = (torch.tensor(config[name], dtype=x.dtype) for name in ("mean", "std"))
    teacher, network = TinyTeacher(golden.under("teacher.")), _perturbation_generator(golden)
    with torch.no_grad():
        yield "eval_initial_stats.delta", network.eval()(x), golden["eval_initial_stats.delta"]
        delta = network.train()(x)
        yield "train.delta", delta, golden["train.delta"]
        yield "least_likely", teacher(x).argmin(dim=1), golden["least_likely"]
        yield (
            "train.delta_denormalised",
            delta * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1),
            golden["train.delta_denormalised"],
        )
        yield (
            "train.adversarial_clamped",
            hard_loss.perturb_released(network, x, mean, std),
            golden["train.adversarial_clamped"],
        )
        key = f"linf_scaled_delta_mag{config['magnitude']}"
        yield key, hard_loss.bound_released(delta, mean, std, config["magnitude"]), golden[key]
    trainer = hard_loss.PerturbationTrainerReleased(network, teacher, mean, std, lr=config["lr"])
    trainer.optimizer.param_groups[0]["betas"] = tuple(config["betas"])
    yield "train.loss_log_ce", trainer.step(x), golden["train.loss_log_ce"]
    yield "after_step.first_conv.weight", network.model0[1].weight, golden["after_step.first_conv.weight"]
    last = [layer for layer in network.model0 if isinstance(layer, nn.Conv2d)][-1]
    yield "after_step.last_conv.weight", last.weight, golden["after_step.last_conv.weight"]


def cw_l2(golden):
    config, images, labels = golden.meta["config"], golden["images"], golden["labels"]
    teacher = TinyTeacher(golden.under("teacher."))
    runs = {key.split(".")[0] for key in golden.tensors if key.endswith(".adversarial")}
    for run in sorted(runs):
        targeted = run.startswith("targeted")
        lr = config.get("high_lr", 2.0) if run.endswith("high_lr") else config["lr"]
        wanted = golden["target_labels"] if targeted else labels
        adversarial = carlini_wagner_l2_released(
            teacher, images, wanted, targeted, config["c"], config["kappa"], lr, config["max_iter"]
        )
        yield f"{run}.adversarial", adversarial, golden[f"{run}.adversarial"]
        yield f"{run}.logits", teacher(adversarial), golden[f"{run}.logits"]
        yield f"{run}.l2", (adversarial - images).flatten(1).norm(dim=1), golden[f"{run}.l2"]


class FlipNet(nn.Module):
    """The network of the bit-flip recordings."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        first, second, last = state["conv1.weight"], state["conv2.weight"], state["fc.weight"]
        self.conv1 = nn.Conv2d(first.shape[1], first.shape[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first.shape[0])
        self.conv2 = nn.Conv2d(second.shape[1], second.shape[0], 3, 2, 1)
        self.fc = nn.Linear(last.shape[1], last.shape[0])
        self.load_state_dict(state, strict=False)
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean(dim=(2, 3)))


def bfa(golden):
    model = FlipNet(golden.under("float."))
    recorded = golden.under("int_weight.")
    quantization = Quantization(
        model, golden.meta["config"].get("bits", 8), [name for name in ("conv1", "conv2", "fc") if name in recorded]
    )
    for layer in quantization.layers:
        yield f"step_size.{layer.name}", layer.step, golden[f"step_size.{layer.name}"]
        yield f"int_weight.{layer.name}", layer.integers, recorded[layer.name]
    yield "quantised_logits", model(golden["x"]), golden["quantised_logits"]
    if "clean_acc" in golden.meta:
        yield "clean_acc", _top1(model, golden), golden.meta["clean_acc"]
    search = ProgressiveBitSearch(quantization, golden["x"], k_top=golden.meta["config"]["k_top"])
    yield "target", search.labels, golden["target"]
    for name, gradient in golden.under("step0.grad.").items():
        yield f"step0.grad.{name}", search.gradients()[name], gradient
    losses = []
    for number, recorded_step in enumerate(golden.meta["steps"]):
        yield from _bit_flip_step(golden, search, number, recorded_step)
        losses.append([search.trail[-1].loss_before, search.trail[-1].loss_after])
    yield (
        "losses",
        torch.tensor(losses, dtype=torch.float64),
        golden["losses"].float(),
    )  # single precision inside: its tolerance


def _bit_flip_step(golden, search, number, recorded):
    step = search.step()
    yield f"step{number}.layer", step.flips[0].layer == recorded["layer"], True
    yield f"step{number}.n_bits", len(step.flips), recorded["n_bits"]
    yield f"step{number}.bit_counter", search.num_flips, recorded["bit_counter"]
    yield (
        f"step{number}.flips",
        _merged(step.flips) == {flip["flat_index"]: _plain(flip) for flip in recorded["flips"]},
        True,
    )
    for name, loss in recorded["layer_losses"].items():
        yield f"step{number}.layer_losses.{name}", torch.tensor(step.layer_losses[name]), torch.tensor(loss)
    for name, integers in golden.under(f"step{number}.int_weight.").items():
        yield f"step{number}.int_weight.{name}", search.quantization.index[name].integers.clone(), integers
    if "hamming" in recorded:
        yield f"step{number}.hamming", search.hamming, recorded["hamming"]
    if "eval_acc" in recorded:
        yield f"step{number}.eval_acc", _top1(search.model, golden), recorded["eval_acc"]


def _merged(flips):
    """index -> (first before, last after, bits) of one step's flips in the recordings' form."""
    merged = {}
    for flip in flips:
        before, _, bits = merged.get(flip.index, (flip.before, None, []))
        merged[flip.index] = (before, flip.after, sorted([*bits, flip.bit]))
    return merged


def _plain(flip):
    return flip["before"], flip["after"], sorted(flip["bits"])


def _top1(model, golden):
    return metrics.accuracy(model(golden["eval_x"]), golden["eval_y"])


HANDLERS = {
    "deepinversion_bn": deepinversion_bn,
    "dfkd_losses": dfkd_losses,
    "cmi": cmi,
    "behaviour": behaviour,
    "fid": fid,
    "bfa": bfa,
    "bfa_multibit": bfa,
    "cw_l2": cw_l2,
    "gap": gap,
    "rg_generator": rg_generator,
    "rg_synthesis": rg_synthesis,
}

# Roots of matrices with small eigenvalues in the recording itself.
# Adam divides by a root of squared gradients, which lifts rounding where a gradient is nearly zero.
TOLERANCES = {"fid": 1e-8, "gap": 1e-8, "cw_l2": 1e-8, "rg_synthesis": 1e-7}
