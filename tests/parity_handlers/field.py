"""Recorded vectors of the data-free field: losses and generators of DAFL, ZSKT, DeepInversion, NAYER and SpaceshipNet; CMI's memory."""

import math

import torch
from torch import nn

from kdnb.generators.latent import LatentGenerator
from kdnb.generators.noisy import NoisyLayerGenerator
from kdnb.generators.normalized import DaflGeneratorReleased, ZsktGeneratorReleased
from kdnb.losses import datafree, disagreement, pixel_priors
from kdnb.models.base import Features
from kdnb.models.probes import BatchNormProbe
from kdnb.samplers import authors_steps, deepinversion
from kdnb.samplers.channel_exchange import exchange_channels
from kdnb.samplers.contrastive_memory import EmbeddingBank
from tests.parity_handlers.datafree import TinyTeacher
from tests.parity_handlers.zoo import fill


class TinyClassifier(TinyTeacher):
    """The recordings' classifier, with what a classifier of the package tells about its inside."""

    def forward(self, x, return_features=False):
        first = torch.relu(self.bn1(self.conv1(x)))
        second = torch.relu(self.bn2(self.conv2(first)))
        pooled = second.mean(dim=(2, 3))
        logits = self.fc(pooled)
        return Features(logits, [first, second], pooled, second) if return_features else logits


def networks(golden):
    return TinyClassifier(golden.under("teacher.")), TinyClassifier(golden.under("student."))


def normalization(golden):
    """images in [-1, 1] -> normalised pixels, as the recordings' classifiers want them; and back from (0, 1)."""
    mean, std = (torch.tensor(golden.hyper[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
    return lambda images: ((images + 1) / 2 - mean) / std


class Normalized(nn.Module):
    """A classifier of images in [-1, 1] around one of normalised pixels."""

    def __init__(self, inner, normalize):
        super().__init__()
        self.inner, self.normalize = inner, normalize

    def forward(self, images, **keywords):
        return self.inner(self.normalize(images), **keywords)


def loaded(network, state):
    """The network in double precision with a recorded state, in which `num_batches_tracked` is left out."""
    missing, unexpected = network.double().load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return network


def latent_generator(state, image_size, variant="cmi"):
    third, channels = state["conv_blocks.9.weight"].shape[1], state["conv_blocks.9.weight"].shape[0]
    latent_dim = state["l1.0.weight"].shape[1]
    return loaded(LatentGenerator(image_size, channels, latent_dim, third, variant), state)


def after(module, recorded, label):
    state = module.state_dict()
    for name, value in recorded.items():
        yield f"{label}{name}", state[name].clone(), value


# --- losses --------------------------------------------------------------------------------------------------------------------


def dafl_losses(golden):
    inputs = {
        name: golden[name].clone().requires_grad_() for name in ("logits_t", "features", "logits_s") if name in golden
    }
    hyper = golden.hyper
    losses = authors_steps.dafl_loss_released(
        **inputs, **{f"{k}_weight": hyper[k] for k in ("oh", "ie")}, act_weight=hyper["a"]
    )
    for name, key in (("oh", "loss_oh"), ("ie", "loss_ie"), ("act", "loss_a"), ("kd", "loss_kd"), ("total", "loss")):
        yield key, losses[name], golden[key]
    gradients = torch.autograd.grad(losses["total"], list(inputs.values()), retain_graph=True)
    for name, gradient in zip(inputs, gradients, strict=True):
        yield f"grad_{name}", gradient, golden[f"grad_{name}"]
    for name, term, source in (("oh", "oh", "logits_t"), ("ie", "ie", "logits_t"), ("a", "act", "features")):
        key = f"grad_{source}_{name}"
        if key in golden:
            yield key, torch.autograd.grad(losses[term], inputs[source], retain_graph=True)[0], golden[key]


def zskt_losses(golden):
    temperature, beta = golden.hyper["temperature"], golden.hyper["beta"]
    logits_s, logits_t = (golden[name].clone().requires_grad_() for name in ("logits_s", "logits_t"))
    count = len([key for key in golden.tensors if key.startswith("attention_loss")])
    feats_s = [golden[f"feat_s{i}"].clone().requires_grad_() for i in range(count)]
    feats_t = [golden[f"feat_t{i}"] for i in range(count)]
    for i, (feat_s, feat_t) in enumerate(zip(feats_s, feats_t, strict=True)):
        yield f"attention_s{i}", disagreement.attention_map(feat_s), golden[f"attention_s{i}"]
        yield f"attention_t{i}", disagreement.attention_map(feat_t), golden[f"attention_t{i}"]
        yield f"attention_loss{i}", disagreement.attention_loss(feat_s, feat_t), golden[f"attention_loss{i}"]
    divergence = disagreement.element_mean_kl_released(logits_s, logits_t, temperature)
    yield "divergence", divergence, golden["divergence"]
    yield "loss_generator", -divergence, golden["loss_generator"]
    for name, gradient in zip("st", torch.autograd.grad(-divergence, (logits_s, logits_t)), strict=True):
        yield f"grad_generator_logits_{name}", gradient, golden[f"grad_generator_logits_{name}"]
    plain = authors_steps.zskt_student_loss_released(logits_s, logits_t, [], [], beta, temperature)
    yield "loss_student_no_attention", plain, golden["loss_student_no_attention"]
    loss = authors_steps.zskt_student_loss_released(logits_s, logits_t, feats_s, feats_t, beta, temperature)
    yield "loss_student", loss, golden["loss_student"]
    loss.backward()
    yield "grad_student_logits_s", logits_s.grad, golden["grad_student_logits_s"]
    for i, feat_s in enumerate(feats_s):
        yield f"grad_student_feat_s{i}", feat_s.grad, golden[f"grad_student_feat_s{i}"]


def deepinversion_terms(golden):
    hyper, labels = golden.hyper, golden["labels"]
    teacher, student = networks(golden)
    x = golden["x"].clone().requires_grad_()
    with BatchNormProbe(teacher) as probe:
        logits_t, logits_s = teacher(x), student(x)
        statistics = probe.means, probe.variances, probe.running_means, probe.running_variances
        terms = {
            "tv_l1": datafree.total_variation_l1(x),
            "tv_l2": datafree.total_variation_l2(x),
            "r_feature": datafree.batch_norm_loss(*statistics, first_layer_weight=hyper["first_bn_multiplier"]),
            "adi": pixel_priors.adaptive_loss_released(logits_s, logits_t),
            "l2_per_image": pixel_priors.l2_prior(x),
            "l2_batch": pixel_priors.l2_prior_batch(x),
            "cross_entropy": datafree.one_hot_loss(logits_t, labels),
        }
        yield "r_layers", datafree.batch_norm_terms(*statistics), golden["r_layers"]
    yield "logits_t", logits_t, golden["logits_t"]
    yield "logits_s", logits_s, golden["logits_s"]
    terms["total"] = sum(weight * terms[name] for name, weight in hyper["weights"].items())
    for name, value in terms.items():
        yield name, value, golden[name]
        yield f"grad_{name}", torch.autograd.grad(value, x, retain_graph=True)[0], golden[f"grad_{name}"]
    factor = float(hyper["clip_input"].partition("*")[0])
    clipped = pixel_priors.clip_pixels(factor * golden["x"], hyper["clip_mean"], hyper["clip_std"])
    yield "clipped", clipped, golden["clipped"]
    schedule = hyper["schedule"]
    config = deepinversion.PixelConfig(schedule="cosine", lr=schedule["lr"], rate_warmup=schedule["warmup"])
    rates = [deepinversion.pixel_rate(config, i, schedule["iterations"]) for i in range(schedule["iterations"])]
    yield "rates", torch.tensor(rates, dtype=torch.float64), golden["rates"]


def spaceship_terms(golden):
    yield "mixed", exchange_channels(golden["features"], golden["picks"]), golden["mixed"]
    logits_s, maps_s = (golden[name].clone().requires_grad_() for name in ("logits_s", "maps_s"))
    cam = disagreement.class_activation_loss(maps_s, golden["maps_t"], golden["fc_s"], golden["fc_t"])
    kl = disagreement.element_mean_kl(logits_s, golden["logits_t"], golden.hyper["temperature"])
    yield "cam_loss", cam, golden["cam_loss"]
    yield "kl", kl, golden["kl"]
    yield "grad_maps_s", torch.autograd.grad(cam, maps_s)[0], golden["grad_maps_s"]
    yield "grad_logits_s", torch.autograd.grad(kl, logits_s)[0], golden["grad_logits_s"]


# --- generators ----------------------------------------------------------------------------------------------------------------


def dafl_generator_filled(shapes, image_size, latent_dim, seed):
    channels, width = shapes["conv_blocks2.3.weight"][:2]
    generator = DaflGeneratorReleased(image_size, latent_dim, width, mean=(0.5,) * channels, std=(0.5,) * channels)
    generator.double().load_state_dict(fill(generator.state_dict(), seed))
    return generator


def dafl_generator(golden):
    hyper = golden.hyper
    generator = dafl_generator_filled(hyper["state"], hyper["image_size"], hyper["latent_dim"], hyper["seed"])
    assert {name: list(value.shape) for name, value in generator.state_dict().items()} == hyper["state"]
    yield from released_generator(golden, generator)


def zskt_generator(golden):
    hyper = golden.hyper
    shapes = hyper["state"]
    channels, width = shapes["layers.11.weight"][:2]
    image_size = 4 * math.isqrt(shapes["layers.0.weight"][0] // (2 * width))
    generator = ZsktGeneratorReleased(
        image_size, hyper["latent_dim"], width, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    generator.double().load_state_dict(fill(generator.state_dict(), hyper["seed"]))
    assert {name: list(value.shape) for name, value in generator.state_dict().items()} == shapes
    yield from released_generator(golden, generator)


def released_generator(golden, generator):
    with torch.no_grad():
        yield "eval_initial.image", generator.eval().normalized_pixels(golden["z"]), golden["eval_initial.image"]
    z = golden["z"].clone().requires_grad_()
    image = generator.train().normalized_pixels(z)
    image.backward(golden["cotangent"])
    yield "train.image", image, golden["train.image"]
    yield "train.grad_z", z.grad, golden["train.grad_z"]
    for name, gradient in golden.under("train.grad.").items():
        yield f"train.grad.{name}", generator.get_parameter(name).grad, gradient
    yield from after(generator, golden.under("after."), "after.")
    if "eval_after.image" in golden:
        with torch.no_grad():
            yield "eval_after.image", generator.eval().normalized_pixels(golden["z"]), golden["eval_after.image"]


def noisy_generator(golden, state, num_layers, noisy_width, width):
    channels = state["conv_blocks.9.weight"].shape[0]
    generator = NoisyLayerGenerator(
        golden["label_emb"], num_layers, noisy_width, golden.hyper["image_size"], channels, width
    )
    return loaded(generator, state)


def nayer_generator(golden):
    hyper, targets = golden.hyper, golden["targets"]
    generator = noisy_generator(
        golden, golden.under("generator."), hyper["noisy_layers"], hyper["noisy_width"], hyper["width"]
    )
    with torch.no_grad():
        yield "eval_initial.image", generator.eval().unit_images(targets), golden["eval_initial.image"]
    image = generator.train().unit_images(targets)
    image.backward(golden["cotangent"])
    yield "train.image", image, golden["train.image"]
    for name, gradient in golden.under("train.grad.").items():
        yield f"train.grad.{name}", generator.get_parameter(name).grad, gradient
    yield from after(generator, golden.under("after."), "after.")
    with torch.no_grad():
        yield "eval_after.image", generator.eval().unit_images(targets), golden["eval_after.image"]


# --- memory --------------------------------------------------------------------------------------------------------------------


def cmi_bank(golden):
    initial = golden["initial"]
    bank = EmbeddingBank(*initial.shape, dtype=initial.dtype)
    bank.rows.copy_(initial)
    for call, features in enumerate(golden["features"]):
        bank.push(features)
        if f"data{call}" in golden:
            yield f"data{call}", bank.rows.clone(), golden[f"data{call}"]
        place = torch.tensor([bank.pointer, bank.pushed])
        yield f"pointer_and_updates{call}", place, golden["pointer_and_updates"][call]
        everything, some = bank.sample(bank.capacity), bank.sample(golden.hyper["k"])
        expected = golden["rows_expected"][call]
        yield f"rows_expected{call}", torch.tensor(len(everything)), expected
        yield f"rows_expected_k{call}", torch.tensor(len(some)), expected.clamp(max=golden.hyper["k"])


HANDLERS = {
    "dafl_losses": dafl_losses,
    "zskt_losses": zskt_losses,
    "deepinversion_terms": deepinversion_terms,
    "spaceship_terms": spaceship_terms,
    "dafl_generator": dafl_generator,
    "zskt_generator": zskt_generator,
    "nayer_generator": nayer_generator,
    "cmi_bank": cmi_bank,
}
