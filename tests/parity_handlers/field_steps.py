"""Recorded steps of the data-free field: optimiser steps of generators, pixels and students. Compared at 1e-7, see `TOLERANCES`."""

import torch
import torch.nn.functional as F
from torch import nn

from kdnb.losses.contrastive import ProjectionHead
from kdnb.losses.pixel_priors import adaptive_loss_released, clip_pixels, l2_prior, l2_prior_batch
from kdnb.models.probes import BatchNormProbe
from kdnb.samplers import authors_steps
from kdnb.samplers.contrastive_memory import MemoryConfig, MemorySynthesizer
from kdnb.samplers.deepinversion import PixelConfig, PixelSynthesizer, pixel_rate
from kdnb.samplers.noisy_layers import NoisyConfig, NoisyLayerSynthesizer
from kdnb.samplers.one_step import OneStepConfig, OneStepSynthesizer
from kdnb.samplers.synthesizer import MetaConfig, Synthesizer
from tests.parity_handlers.field import (
    Normalized,
    after,
    dafl_generator_filled,
    latent_generator,
    loaded,
    networks,
    noisy_generator,
    normalization,
)


def dafl_step(golden):
    hyper = golden.hyper
    teacher, student = networks(golden)
    student.requires_grad_(True)
    shapes = {"conv_blocks2.3.weight": list(golden["after.generator.conv_blocks2.3.weight"].shape)}
    generator = dafl_generator_filled(shapes, hyper["image_size"], hyper["latent_dim"], hyper["generator_seed"])
    constants = authors_steps.DaflConstants(
        hyper["oh"], hyper["ie"], hyper["a"], hyper["lr_G"], hyper["lr_S"], hyper["momentum"], hyper["weight_decay"]
    )
    steps = authors_steps.DaflStepsReleased(generator, teacher, student, constants)
    losses = [steps.step(z) for z in golden["z"]]
    yield "losses", torch.stack([loss["total"] for loss in losses]), golden["losses"]
    yield "kd_last", losses[-1]["kd"], golden["kd_last"]
    yield from after(student, golden.under("after.student."), "after.student.")
    yield from after(generator, golden.under("after.generator."), "after.generator.")


class ZsktRecorded(nn.Module):
    """The small generator of the ZSKT recording."""

    def __init__(self, state):
        super().__init__()
        channels, width = state["conv.weight"].shape[:2]
        self.l1 = nn.Linear(state["l1.weight"].shape[1], state["l1.weight"].shape[0])
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)
        self.size = round((self.l1.out_features / width) ** 0.5)
        loaded(self, state)

    def forward(self, z):
        x = self.bn1(self.l1(z).unflatten(1, (-1, self.size, self.size)))
        return self.bn2(self.conv(F.interpolate(x, scale_factor=2)))


def zskt_step(golden):
    hyper = golden.hyper
    teacher, student = networks(golden)
    student.requires_grad_(True)
    generator = ZsktRecorded(golden.under("generator."))
    constants = authors_steps.ZsktConstants(
        hyper["pseudo_batches"],
        hyper["n_generator_iter"],
        hyper["n_student_iter"],
        hyper["lr_generator"],
        hyper["lr_student"],
        hyper["clip"],
        hyper["beta"],
        hyper["temperature"],
    )

    def look(network, images):
        features = network(images, return_features=True)
        return features.logits, features.feats

    steps = authors_steps.ZsktStepsReleased(generator, teacher, student, constants, look)
    losses, norms = zip(*[steps.batch(z) for z in golden["z"]], strict=True)
    yield "losses", torch.cat(losses), golden["losses"]
    yield "gradient_norms", torch.cat(norms), golden["gradient_norms"]
    yield from after(student, golden.under("after.student."), "after.student.")
    yield from after(generator, golden.under("after.generator."), "after.generator.")


def generative_step(golden):
    hyper, normalize = golden.hyper, normalization(golden)
    for mode, weights in hyper["modes"].items():
        teacher, student = (Normalized(network, normalize) for network in networks(golden))
        generator = latent_generator(golden.under("generator."), hyper["image_size"], "dfq")
        config = OneStepConfig(
            batch_size=hyper["batch_size"],
            num_steps=hyper["iterations"],
            lr=hyper["lr_g"],
            criterion="l1" if mode == "dfad" else "kl",
            **{f"{name}_weight": weight for name, weight in weights.items()},
        )
        synthesizer = OneStepSynthesizer(generator, teacher, student, config)
        synthesizer.optimizer.param_groups[0]["betas"] = tuple(hyper["betas"])
        made = synthesizer(z=golden[f"{mode}.z"])
        yield f"{mode}.losses", made.losses["total"], golden[f"{mode}.losses"]
        for name, gradient in golden.under(f"{mode}.grad_last.").items():
            yield f"{mode}.grad_last.{name}", generator.get_parameter(name).grad, gradient
        yield from after(generator, golden.under(f"{mode}.after."), f"{mode}.after.")
        sample = synthesizer.sample(0, z=golden[f"{mode}.sample_z"])
        yield f"{mode}.sample", normalize(sample), golden[f"{mode}.sample"]


def deepinversion_cifar(golden):
    hyper, x = golden.hyper, golden["x_init"]
    teacher, student = networks(golden)
    config = PixelConfig(
        batch_size=len(x),
        lr=hyper["lr"],
        betas=tuple(hyper["betas"]),
        bn_weight=hyper["r_feature"],
        tv_l2_weight=hyper["tv_l2"],
        l2_weight=hyper["l2"],
        adv_weight=hyper["adi"],
    )
    half = (0.5,) * x.shape[1]
    synthesizer = PixelSynthesizer(
        teacher,
        student,
        tuple(x.shape[1:]),
        hyper["classes"],
        half,
        half,
        config,
        norm=l2_prior_batch,
        competition=adaptive_loss_released,
    )
    shifts, steps = golden["shifts"].tolist(), hyper["steps"]
    yield "grad_first", _first_gradient(synthesizer, x, golden["labels"], shifts[0], False, 1), golden["grad_first"]
    found = synthesizer.descend(x, golden["labels"], [hyper["lr"]] * steps, shifts, [False] * steps)
    yield "losses", found.losses["total"], golden["losses"]
    yield "x_last", found.last, golden["x_last"]
    yield "returned", found.last, golden["returned"]


def deepinversion_imagenet(golden):
    hyper, x = golden.hyper, golden["x_init"]
    mean, std = hyper.get("mean", (0.485, 0.456, 0.406)), hyper.get("std", (0.229, 0.224, 0.225))
    m, s = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    teacher, student = (Normalized(network, lambda images: ((images + 1) / 2 - m) / s) for network in networks(golden))
    config = PixelConfig(
        batch_size=len(x),
        betas=tuple(hyper["betas"]),
        lr=hyper["lr"],
        schedule="cosine",
        oh_weight=hyper["main_loss_multiplier"],
        bn_weight=hyper["r_feature"],
        first_bn_multiplier=hyper["first_bn_multiplier"],
        tv_l1_weight=hyper["tv_l1"],
        tv_l2_weight=hyper["tv_l2"],
        l2_weight=hyper["l2"],
        adv_weight=hyper["adi_scale"],
        clip=True,
    )
    synthesizer = PixelSynthesizer(
        teacher,
        student,
        tuple(x.shape[1:]),
        2,
        mean,
        std,
        config,
        norm=l2_prior,
        competition=adaptive_loss_released,
    )
    synthesizer.denormalize.scale, synthesizer.denormalize.shift = 2 * s, 2 * m - 1  # not rounded to single precision
    reduction = 2 if hyper["setting_id"] == 0 else 1
    shifts, flips = golden["shifts"].tolist(), golden["flips"].bool().tolist()
    rates = [pixel_rate(config, step, 1000) for step in range(hyper["steps"])]
    yield "rates", torch.tensor(rates, dtype=torch.float64), golden["rates"]
    first = _first_gradient(synthesizer, x, golden["labels"], shifts[0], flips[0], reduction)
    yield "grad_first", first, golden["grad_first"]
    found = synthesizer.descend(x, golden["labels"], rates, shifts, flips, reduction)
    yield "losses", found.losses["total"], golden["losses"]
    yield "x_before_last_clip", found.last, golden["x_before_last_clip"]
    if "returned" in golden:
        yield "returned", clip_pixels(found.last, mean, std), golden["returned"]


def _first_gradient(synthesizer, x, labels, shift, flip, reduction):
    x = x.clone().requires_grad_()
    with BatchNormProbe(synthesizer.teacher) as probe:
        return torch.autograd.grad(synthesizer.losses(x, labels, probe, shift, flip, reduction)["total"], x)[0]


def cmi_step(golden):
    hyper, normalize = golden.hyper, normalization(golden)
    teacher, student = networks(golden)
    state = golden.under("head.")
    hidden, width = state["head.0.weight"].shape
    head = loaded(ProjectionHead(width, state["head.2.weight"].shape[0], hidden), state)
    config = MemoryConfig(
        batch_size=hyper["batch_size"],
        num_steps=hyper["iterations"],
        lr=hyper["lr_g"],
        bn_weight=hyper["bn"],
        oh_weight=hyper["oh"],
        adv_weight=hyper["adv"],
        cr_weight=hyper["cr"],
        temperature=hyper["cr_T"],
        bank_size=hyper["bank"],
        negatives=hyper["n_neg"],
    )
    generator = latent_generator(golden.under("call0.generator."), hyper["image_size"])

    def views(images):
        x = normalize(images)
        return x, x.flip(3)

    synthesizer = MemorySynthesizer(generator, teacher, student, teacher.fc.out_features, config, views, head)
    synthesizer.head_optimizer.param_groups[0]["betas"] = tuple(hyper["betas_head"])
    call = 0
    while f"call{call}.z" in golden:
        loaded(generator, golden.under(f"call{call}.generator."))
        made = synthesizer.invert(golden[f"call{call}.labels"], golden[f"call{call}.z"])
        yield f"call{call}.losses", made.losses["total"], golden[f"call{call}.losses"]
        yield f"call{call}.images", (made.images + 1) / 2, golden[f"call{call}.images"]
        newest = synthesizer.bank.rows[torch.arange(-len(made.images), 0) + synthesizer.bank.pushed]
        yield f"call{call}.features", newest, golden[f"call{call}.features"]
        yield from after(head, golden.under(f"call{call}.head."), f"call{call}.head.")
        call += 1


def fast_meta(golden):
    hyper, normalize = golden.hyper, normalization(golden)
    modes = sorted({key.partition(".")[0] for key in golden.tensors if key.endswith("call0.losses")})
    for mode in modes:
        teacher, student = networks(golden)
        generator = latent_generator(golden.under("generator."), hyper["image_size"])
        synthesizer = Synthesizer(
            generator,
            teacher,
            student,
            teacher.fc.out_features,
            MetaConfig(
                num_steps=hyper["iterations"],
                lr_generator=hyper["lr_g"],
                lr_latent=hyper["lr_z"],
                bn_weight=hyper["bn"],
                oh_weight=hyper["oh"],
                adv_weight=hyper["adv"],
                warmup=hyper["warmup"],
                bn_momentum=hyper["bn_mmt"],
                meta_update=mode,
            ),
            augment=normalize,
        )
        for call in range(hyper["calls"]):
            made = synthesizer(golden["targets_unsorted"][call], golden[f"call{call}.z"])
            label = f"{mode}.call{call}."
            yield f"{label}losses", made.losses["total"], golden[f"{label}losses"]
            yield f"{label}images", (made.images + 1) / 2, golden[f"{label}images"]
            yield from after(generator, golden.under(f"{label}generator."), f"{label}generator.")


def nayer_step(golden):
    hyper = golden.hyper
    teacher, student = networks(golden)
    start = golden.under("loop0.generator.")
    layers = len([name for name in start if name.startswith("le1.") and name.endswith("weight")])
    generator = noisy_generator(golden, start, layers, hyper["noisy_width"], hyper["width"])
    config = NoisyConfig(
        batch_size=hyper["batch_size"],
        num_steps=hyper["g_steps"],
        lr=hyper["lr_g"],
        bn_weight=hyper["bn"],
        oh_weight=hyper["oh"],
        adv_weight=hyper["adv"],
        bn_momentum=hyper["bn_mmt"],
        warmup=hyper["warmup"],
        warmup_loops=hyper["gwp_loops"],
        loops=hyper["g_loops"],
        life=hyper["g_life"],
    )
    synthesizer = NoisyLayerSynthesizer(generator, teacher, student, config, augment=normalization(golden))
    call = 0
    while f"call{call}.loops" in golden:
        first, last = golden[f"call{call}.loops"].tolist()
        yield f"renewed{call}", torch.tensor(int(synthesizer.renews)), golden["renewed"][call]
        yield f"call{call}.loops", torch.tensor([first, first + synthesizer.num_loops]), golden[f"call{call}.loops"]
        synthesizer.calls += 1
        for number in range(first, last):
            loaded(generator, golden.under(f"loop{number}.generator."))
            made = synthesizer.loop(golden[f"loop{number}.targets"])
            yield f"loop{number}.losses", made.losses["total"], golden[f"loop{number}.losses"]
            yield f"loop{number}.images", (made.images + 1) / 2, golden[f"loop{number}.images"]
        call += 1
    yield from after(generator, golden.under("after.generator."), "after.generator.")


HANDLERS = {
    "dafl_step": dafl_step,
    "zskt_step": zskt_step,
    "generative_step": generative_step,
    "deepinversion_cifar": deepinversion_cifar,
    "deepinversion_imagenet": deepinversion_imagenet,
    "cmi_step": cmi_step,
    "fast_meta": fast_meta,
    "nayer_step": nayer_step,
}
# Adam divides by a root of squared gradients, which lifts rounding where a gradient is nearly zero.
TOLERANCES = dict.fromkeys(HANDLERS, 1e-7)
