"""Fast-AD's guidance and sampler."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.metrics import entropy
from kdnb.samplers.cadr import Guidance, GuidanceConfig, ddim_step, rectify_noise, tweedie
from kdnb.samplers.diffusion import sample, timesteps
from kdnb.samplers.guidance import adaptive_rectification, entropy_gate


class RecordedTeacher(nn.Module):
    """conv (stride 2) - BN - ReLU - conv (stride 2) - BN - ReLU - spatial mean - linear, with the recorded weights, in eval mode."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        w1, w2, fc = state["conv1.weight"], state["conv2.weight"], state["fc.weight"]
        self.conv1 = nn.Conv2d(w1.shape[1], w1.shape[0], w1.shape[2], stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w1.shape[0])
        self.conv2 = nn.Conv2d(w2.shape[1], w2.shape[0], w2.shape[2], stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(w2.shape[0])
        self.fc = nn.Linear(fc.shape[1], fc.shape[0])
        self.to(w1.dtype).load_state_dict(state, strict=False)  # num_batches_tracked is not recorded
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


class RecordedPrior:
    """eps(x, t) = conv(x) + 0.1 t / 1000."""

    def __init__(self, weight: Tensor, bias: Tensor, alphas_cumprod: Tensor):
        self.weight, self.bias, self.alphas_cumprod = weight, bias, alphas_cumprod
        self.num_train_timesteps = len(alphas_cumprod)

    def epsilon(self, x: Tensor, t: int) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2) + 0.1 * t / 1000


def _config(golden, bn: bool) -> GuidanceConfig:
    c = golden.meta["config"]
    return GuidanceConfig(
        lambda_max=c["lambda_max"],
        eta=c["eta"],
        threshold=c["tau_ent"],
        sharpness=c["k_sigmoid"],
        xi=c["xi"],
        ce_weight=c["gamma"],
        bn_weight=1.0 if bn else 0.0,
        ce_reduction="mean",
        variant="reference",
        straight_through=False,
    )


def cadr(golden) -> Iterator:
    teacher = RecordedTeacher(golden.under("teacher."))
    alphas = golden["alphas_cumprod"]
    c = golden.meta["config"]
    for case in golden.meta["cases"]:
        part = golden.under(case["key"] + ".")
        x_t, eps, labels, alpha = (
            part["x_t"] if "x_t" in part else None,
            part.get("eps"),
            part.get("labels"),
            alphas[case["t"]],
        )
        if x_t is None:  # the twin case of the same inputs
            twin = golden.under(case["key"][:-1] + "a.")
            x_t, eps, labels = twin["x_t"], twin["eps"], twin["labels"]
        config = _config(golden, case["bn"])
        with Guidance(teacher, config) as guidance:
            r = guidance.rectification(x_t, eps, alpha, labels)
            bn = guidance.last["bn"]
            x = x_t.clone().requires_grad_()
            x0 = tweedie(x, eps, alpha)
            logits = teacher(x0.clamp(-1, 1))
            loss = config.ce_weight * F.cross_entropy(logits, labels) + config.bn_weight * guidance._bn_loss()
            grad = torch.autograd.grad(loss, x)[0]
            gate = guidance.gate(logits, labels)
        uncertainty = entropy(logits)
        ours = {
            "x0_hat_clamped": x0.clamp(-1, 1),
            "logits": logits,
            "entropy": uncertainty,
            "gate": entropy_gate(uncertainty, c["lambda_max"], c["tau_ent"], c["k_sigmoid"]),
            "guidance_loss": loss,
            "grad": grad,
            "grad_l2": grad.flatten(1).norm(dim=1),
            "x_l2": x_t.flatten(1).norm(dim=1),
            "g_rect": r,
            "rectified_noise_ref": rectify_noise(eps, r, alpha, "reference"),
            "x_prev_ref": ddim_step(
                x_t, rectify_noise(eps, r, alpha, "reference"), alpha, alphas[case["t_prev"]], variant="reference"
            ),
            "x_prev_corrected": ddim_step(x_t, rectify_noise(eps, r, alpha), alpha, alphas[case["t_prev"]]),
            "bn_loss_ref_output_mean_over_layers": bn,
        }
        yield f"{case['key']}.gate twice", gate, part["gate"]
        yield (
            f"{case['key']}.g_rect from parts",
            adaptive_rectification(grad, x_t, gate, c["eta"], c["xi"]),
            part["g_rect"],
        )
        for name, reference in part.items():
            if name in ours:
                yield f"{case['key']}.{name}", ours[name], reference

    loop = golden.meta["loop"]
    steps = loop["timesteps"]
    prior = RecordedPrior(golden["eps_model.conv.weight"], golden["eps_model.conv.bias"], alphas)
    yield "loop.timesteps", torch.tensor(timesteps(len(steps), len(alphas), "leading")), torch.tensor(steps)
    with Guidance(teacher, _config(golden, loop["bn"])) as guidance:
        x_T, labels = golden["loop.x_T"], golden["loop.labels"]
        found = sample(
            prior,
            labels,
            x_T.shape[1:],
            guidance=guidance,
            num_steps=len(steps),
            initial_noise=x_T,
            batch_size=len(x_T),
        )
    yield "loop.x_final", found.images, golden["loop.x_final_ref"]


HANDLERS = {"cadr": cadr}
