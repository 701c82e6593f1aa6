"""tests.parity follows the file: here one of guidance whose weight of the class term is not 1, computed by the formulas written out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity import Golden, check
from tests.parity_handlers.cadr import cadr

CONFIG = {"lambda_max": 1.2, "eta": 0.2, "tau_ent": 0.5, "k_sigmoid": 6.0, "xi": 1e-6, "gamma": 0.3}


def weights(rng: torch.Generator) -> dict[str, Tensor]:
    found = {}
    for layer, (out, inside) in enumerate(((4, 2), (5, 4)), start=1):
        found[f"conv{layer}.weight"] = torch.randn(out, inside, 3, 3, generator=rng, dtype=torch.float64) / 3
        found |= {
            f"bn{layer}.{name}": torch.rand(out, generator=rng, dtype=torch.float64) + 0.5
            for name in ("weight", "bias", "running_mean", "running_var")
        }
    found["fc.weight"] = 3 * torch.randn(3, 5, generator=rng, dtype=torch.float64)
    return found | {"fc.bias": torch.zeros(3, dtype=torch.float64)}


def asked(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the batch-norm loss of the reference: squared distances of the layers' outputs, the mean over layers."""
    terms = []
    for layer in ("1", "2"):
        x = F.conv2d(x, w[f"conv{layer}.weight"], stride=2, padding=1)
        norm = {
            name: w[f"bn{layer}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        }
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        rows = x.transpose(0, 1).flatten(1)  # (C, B H W)
        mean, variance = rows.mean(1), rows.var(1, unbiased=False)
        terms.append(
            (mean - w[f"bn{layer}.running_mean"]).square().sum()
            + (variance - w[f"bn{layer}.running_var"]).square().sum()
        )
        x = x.relu()
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"], sum(terms) / 2


def guided(w: dict[str, Tensor], x_t: Tensor, eps: Tensor, labels: Tensor, alpha: Tensor, bn: bool, gamma: float):
    """What a recording holds of one step: gate, loss, gradient, rectification and rectified noise."""
    x = x_t.clone().requires_grad_()
    logits, loss_bn = asked(w, ((x - (1 - alpha).sqrt() * eps) / alpha.sqrt()).clamp(-1, 1))
    loss = gamma * F.cross_entropy(logits, labels) + (loss_bn if bn else 0)
    grad = torch.autograd.grad(loss, x)[0]
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).detach()
    gate = CONFIG["lambda_max"] / (1 + (-CONFIG["k_sigmoid"] * (entropy - CONFIG["tau_ent"])).exp())
    length, size = (part.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for part in (grad, x_t))
    r = gate.view(-1, 1, 1, 1) * CONFIG["eta"] * size * grad / (length + CONFIG["xi"])
    noise = eps - (1 - alpha).sqrt() * r
    return {"gate": gate, "guidance_loss": loss.detach(), "grad": grad, "g_rect": r, "rectified_noise_ref": noise}


def recording(gamma_without_bn: float) -> Golden:
    """Both kinds of cases and a loop of two steps; the class term of the case without batch norm carries what is given."""
    rng = torch.Generator().manual_seed(0)
    w, alphas = weights(rng), torch.linspace(0.99, 0.05, 10, dtype=torch.float64)
    x_t, eps = torch.randn(2, 4, 2, 8, 8, generator=rng, dtype=torch.float64)
    labels, gamma = torch.tensor([0, 1, 2, 0]), CONFIG["gamma"]
    cases = [{"key": "case0a", "bn": False, "t": 6, "t_prev": 5}, {"key": "case0b", "bn": True, "t": 6, "t_prev": 5}]
    tensors = {f"teacher.{name}": value for name, value in w.items()} | {"alphas_cumprod": alphas}
    for case, weight in zip(cases, (gamma_without_bn, gamma), strict=True):
        found = guided(w, x_t, eps, labels, alphas[6], case["bn"], weight)
        found |= {"x_t": x_t, "eps": eps, "labels": labels}
        tensors |= {f"{case['key']}.{name}": value for name, value in found.items()}

    kernel = torch.randn(2, 2, 3, 3, generator=rng, dtype=torch.float64) / 5
    tensors |= {"eps_model.conv.weight": kernel, "eps_model.conv.bias": torch.zeros(2, dtype=torch.float64)}
    x = x_t
    for t, previous in ((5, 0), (0, 0)):
        noise = F.conv2d(x, kernel, padding=1) + 0.1 * t / 1000
        noise = guided(w, x, noise, labels, alphas[t], True, gamma)["rectified_noise_ref"]
        clean = ((x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()).clamp(-1, 1)
        x = alphas[previous].sqrt() * clean + (1 - alphas[previous]).sqrt() * noise
    tensors |= {"loop.x_T": x_t, "loop.labels": labels, "loop.x_final_ref": x}
    return Golden("cadr_x", tensors, {"config": CONFIG, "cases": cases, "loop": {"timesteps": [5, 0], "bn": True}})


def test_the_class_term_carries_its_weight_with_batch_norm_and_without():
    worst, failed = check(recording(CONFIG["gamma"]), cadr, None)
    assert failed == [] and worst < 1e-9


def test_a_recording_without_the_weight_is_told_from_it():
    _, failed = check(recording(1.0), cadr, None)
    assert any(label.startswith("case0a.guidance_loss") for label in failed)
    assert not any(label.startswith(("case0b", "loop")) for label in failed)
