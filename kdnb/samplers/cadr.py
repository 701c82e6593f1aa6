"""Confidence-aware dynamic rectification (CADR): a classifier steers a diffusion sampler towards its own training data.

At every denoising step, with x_t the noisy images, eps the prior's noise estimate and abar the cumulative signal share:

    x0    = (x_t - sqrt(1 - abar) eps) / sqrt(abar)              Tweedie estimate, clamped to [-1, 1] for the teacher
    L     = w_bn L_BN(x0) + w_ce sum_b CE(T(x0_b), y_b)          guidance loss
    lam_b = lambda_max / (1 + exp(-k (H_b - tau)))               gate: large where the teacher is unsure (H entropy of its softmax)
    r_b   = lam_b eta ||x_t|| g / (||g|| + xi),  g = dL/dx_t     adaptive normalisation, norms per sample
    eps'  = eps + sqrt(1 - abar) r                               rectified noise: descends L

The published equation and code subtract r, which ascends L in the un-clamped regime, and clamp x0 without re-deriving the noise,
which turns the sign back on saturated pixels. Both must change together; the pair is `variant="corrected"` (default), the
original pair is `variant="reference"`.

Source: Fast-AD (confidence-aware dynamic rectification with DDIM and a FIFO buffer); Dhariwal & Nichol, NeurIPS 2021, for the sign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError, check_name
from kdnb.losses.datafree import batch_norm_terms
from kdnb.metrics import entropy
from kdnb.models.probes import BatchNormProbe

VARIANTS = ("corrected", "reference")
GATES = ("entropy", "normalized_entropy", "constant")


# --- the four steps as pure functions ------------------------------------------------------------------------------------------


def tweedie(x_t: Tensor, eps: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Estimate of the clean image, x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar); shapes (B, C, H, W)."""
    return (x_t - _root(1 - alpha_bar) * eps) / _root(alpha_bar)


def noise_from_estimate(x_t: Tensor, x0: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Inverse of `tweedie` in eps: the noise that belongs to (x_t, x0). Needed whenever x0 was clamped."""
    return (x_t - _root(alpha_bar) * x0) / _root(1 - alpha_bar)


def entropy_gate(
    uncertainty: Tensor, lambda_max: float = 1.5, threshold: float = 0.4, sharpness: float = 10.0
) -> Tensor:
    """lambda = lambda_max / (1 + exp(-k (H - tau))), per sample.

    With the defaults it is 0.027 at H = 0, 0.75 at H = 0.4 and 1.5 at H = 2 nats: nearly a switch, and in nats its threshold means
    something else for 10 classes than for 100 (hence the normalised entropy).
    """
    return lambda_max * torch.sigmoid(sharpness * (uncertainty - threshold))


def adaptive_rectification(grad: Tensor, x_t: Tensor, gate: Tensor, eta: float = 0.1, xi: float = 1e-6) -> Tensor:
    """r = gate * eta * ||x_t|| * g / (||g|| + xi), norms over C, H, W of each sample; (B, C, H, W)."""
    shape = (-1,) + (1,) * (x_t.dim() - 1)
    norm_g = grad.flatten(1).norm(dim=1).view(shape)
    norm_x = x_t.flatten(1).norm(dim=1).view(shape)
    return gate.view(shape) * eta * norm_x * grad / (norm_g + xi)


def rectify_noise(eps: Tensor, rectification: Tensor, alpha_bar: Tensor | float, variant: str = "corrected") -> Tensor:
    """eps' = eps + sqrt(1 - abar) r (corrected: descends the loss), or eps - sqrt(1 - abar) r (reference)."""
    sign = 1.0 if variant == "corrected" else -1.0
    return eps + sign * _root(1 - alpha_bar) * rectification


def ddim_step(
    x_t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor | float,
    alpha_bar_prev: Tensor | float,
    *,
    variant: str = "corrected",
    clip: bool = True,
    eta_ddim: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One DDIM update.

        sigma  = eta_ddim sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')
        x_t'   = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) eps + sigma z

    With `clip`, x0 is clamped to [-1, 1]; the corrected variant then re-derives eps from the clamped x0, the reference keeps it.
    abar' = 1 is the true last step and returns x0.

    Source: Song, Meng, Ermon, ICLR 2021, eq. 12 and 16.
    """
    x0 = tweedie(x_t, eps, alpha_bar)
    if clip:
        x0 = x0.clamp(-1, 1)
        if variant == "corrected":
            eps = noise_from_estimate(x_t, x0, alpha_bar)
    if eta_ddim == 0.0:
        return _root(alpha_bar_prev) * x0 + _root(1 - alpha_bar_prev) * eps
    sigma = eta_ddim * _root((1 - alpha_bar_prev) / (1 - alpha_bar)) * _root(1 - alpha_bar / alpha_bar_prev)
    return _root(alpha_bar_prev) * x0 + _root(1 - alpha_bar_prev - sigma**2) * eps + sigma * noise


def _root(value: Tensor | float) -> Tensor | float:
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else max(value, 0.0) ** 0.5


# --- guidance ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuidanceConfig:
    """Constants of CADR; the defaults are the published CIFAR-100 values but for what is said to be ours.

    Attributes:
        lambda_max, eta, xi: strength, step share and guard of the adaptive normalisation.
        threshold, sharpness: tau and k of the gate, in the unit of the entropy (nats, or 0..1 when normalised).
        gate: "entropy", "normalized_entropy" or "constant" (lambda_max for every sample).
        ce_weight, bn_weight: weights of the label and of the batch-norm loss.
        ce_reduction: "sum" (ours): each image keeps its own class signal whatever the batch size; "mean" (published): the batch-norm
            term, which is a batch statistic, outweighs it B times.
        bn_squared: squared norms in the batch-norm term.
        variant: "corrected" or "reference". The reference also takes the statistics of the layers' outputs, squared, averaged over
            layers, and clamps x0 in the graph.
        straight_through: let the gradient pass the clamp of x0; otherwise saturated pixels (94 % of them at t = 980) get none.
        through_prior: differentiate through the prior as well (about three times its cost); default: its output is a constant.
        gate_floor: gates below this share of lambda_max count as closed, and their samples are not sent backward. 0: never.
        every: guide only every n-th step.
    """

    lambda_max: float = 1.5
    eta: float = 0.1
    threshold: float = 0.4
    sharpness: float = 10.0
    xi: float = 1e-6
    gate: str = "entropy"
    ce_weight: float = 1.0
    bn_weight: float = 1.0
    ce_reduction: str = "sum"
    bn_squared: bool = False
    variant: str = "corrected"
    straight_through: bool = True
    through_prior: bool = False
    gate_floor: float = 0.05
    every: int = 1

    def __post_init__(self):
        check_name("gate", self.gate, GATES)
        check_name("variant", self.variant, VARIANTS)
        check_name("ce_reduction", self.ce_reduction, ("sum", "mean"))
        if (
            self.lambda_max < 0
            or self.eta < 0
            or self.xi <= 0
            or self.sharpness <= 0
            or self.every < 1
            or not 0 <= self.gate_floor < 1
        ):
            raise InputError(
                "guidance needs lambda_max >= 0, eta >= 0, xi > 0, sharpness > 0, every >= 1 and 0 <= gate_floor < 1, got "
                f"{self.lambda_max}, {self.eta}, {self.xi}, {self.sharpness}, {self.every}, {self.gate_floor}"
            )

    @property
    def off(self) -> bool:
        return self.lambda_max == 0 or self.eta == 0 or (self.ce_weight == 0 and self.bn_weight == 0)


# A part of the batch that went through the teacher together: its size and its statistics. A negative size takes a part out again.
_Group = tuple[int, list[Tensor], list[Tensor]]


class Guidance:
    """CADR for one teacher: hooks the teacher's batch-norm layers once and keeps them until `close()`.

    One teacher forward gives the logits of the gate, the label loss and the batch-norm statistics. Samples whose gate was closed at
    the step before go through the teacher in inference mode; only one that turns out to have re-opened is passed again, with a
    graph. The gradient of the others is exact: the teacher is in eval mode, so samples meet only in the batch statistics.
    """

    def __init__(self, teacher: nn.Module, config: GuidanceConfig):
        self.teacher = teacher.eval()
        self.config = config
        self.probe = BatchNormProbe(teacher, of="outputs" if config.variant == "reference" else "inputs")
        if not self.probe.layers and config.bn_weight:
            raise InputError("this teacher has no batch-norm layers; guide with bn_weight=0")
        self.reset()

    def reset(self) -> None:
        """Forget the previous trajectory; call before each batch of samples."""
        self._open: Tensor | None = None
        self.last: dict[str, Tensor] = {}

    def close(self) -> None:
        self.probe.close()

    def __enter__(self) -> "Guidance":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def rectification(self, x_t: Tensor, eps: Tensor, alpha_bar: Tensor | float, labels: Tensor, prior=None) -> Tensor:
        """r of the module's head for one step; (B, C, H, W).

        Args:
            x_t, eps: (B, C, H, W) noisy images and noise estimate.
            labels: (B,) the classes asked for.
            prior: callable x_t -> eps, used only with `through_prior`.
        """
        if self.config.through_prior:
            return self._through_prior(x_t, alpha_bar, labels, prior)
        x0 = tweedie(x_t, eps, alpha_bar)
        grad_x0, gate = self._gradient(x0.clamp(-1, 1), labels)
        if not self.config.straight_through or self.config.variant == "reference":
            grad_x0 = grad_x0 * (x0.abs() <= 1)  # what a clamp in the graph leaves
        return adaptive_rectification(grad_x0 / _root(alpha_bar), x_t, gate, self.config.eta, self.config.xi)

    def gate(self, logits: Tensor) -> Tensor:
        """Strength per sample, (B,), with closed gates at exactly 0."""
        c = self.config
        if c.gate == "constant":
            return torch.full_like(logits[:, 0], c.lambda_max)
        gate = entropy_gate(entropy(logits, c.gate == "normalized_entropy"), c.lambda_max, c.threshold, c.sharpness)
        return torch.where(gate < c.gate_floor * c.lambda_max, 0.0, gate) if c.gate_floor else gate

    def _gradient(self, x0: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dx0 of the samples whose gate is open (zero elsewhere) and the gates."""
        B = len(x0)
        logits = torch.empty(B, 0)
        groups: list[_Group] = []
        active = torch.arange(B, device=x0.device)
        if self._open is not None and not bool(self._open.all()):
            resting = (~self._open).nonzero().flatten()
            with torch.inference_mode():
                quiet = self.teacher(x0[resting])
                groups.append(self._group(len(resting)))
            logits = quiet.new_zeros(B, quiet.shape[1]).index_copy_(0, resting, quiet)
            woken = resting[self.gate(quiet) > 0]
            if len(woken):
                with torch.inference_mode():
                    self.teacher(x0[woken])
                    groups.append((-len(woken), *self._group(len(woken))[1:]))
            active = torch.cat([self._open.nonzero().flatten(), woken])

        grad = torch.zeros_like(x0)
        if len(active):
            with torch.enable_grad():
                x = x0[active].detach().requires_grad_()
                loud = self.teacher(x)
                groups.append(self._group(len(active)))
                logits = loud.detach() if len(active) == B else logits.clone().index_copy_(0, active, loud.detach())
                gate = self.gate(logits)
                if bool((gate[active] > 0).any()):
                    loss = self._loss(loud, labels[active], groups, B)
                    grad[active] = torch.autograd.grad(loss, x)[0]
        gate = self.gate(logits)
        self._open = gate > 0 if self.config.gate_floor and self.config.gate != "constant" else None
        self.last = {
            "gate": gate.mean(),
            "entropy": entropy(logits).mean(),
            "cross_entropy": F.cross_entropy(logits, labels),
            "bn": self._bn_loss(groups, B).detach(),
        }
        return grad, gate

    def _through_prior(self, x_t: Tensor, alpha_bar, labels: Tensor, prior) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0 = tweedie(x, prior(x), alpha_bar)
            clamped = x0.clamp(-1, 1)
            if self.config.straight_through:
                clamped = x0 + (clamped - x0).detach()
            logits = self.teacher(clamped)
            groups = [self._group(len(x))]
            grad = torch.autograd.grad(self._loss(logits, labels, groups, len(x)), x)[0]
        gate = self.gate(logits.detach())
        self.last = {
            "gate": gate.mean(),
            "entropy": entropy(logits.detach()).mean(),
            "cross_entropy": F.cross_entropy(logits.detach(), labels),
            "bn": self._bn_loss(groups, len(x)).detach(),
        }
        return adaptive_rectification(grad, x_t, gate, self.config.eta, self.config.xi)

    def _loss(self, logits: Tensor, labels: Tensor, groups: list[_Group], batch: int) -> Tensor:
        c = self.config
        ce = F.cross_entropy(logits, labels, reduction="sum")
        loss = c.ce_weight * (ce / batch if c.ce_reduction == "mean" else ce)
        return loss + c.bn_weight * self._bn_loss(groups, batch) if c.bn_weight else loss

    def _bn_loss(self, groups: list[_Group], batch: int) -> Tensor:
        """Batch-norm loss of the whole batch from the statistics of its parts."""
        if not self.probe.layers:
            return torch.zeros(())
        means, variances = _merge(groups, batch)
        reference = self.config.variant == "reference"
        terms = batch_norm_terms(
            means,
            variances,
            self.probe.running_means,
            self.probe.running_variances,
            squared=self.config.bn_squared or reference,
        )
        return terms.mean() if reference else terms.sum()

    def _group(self, size: int) -> _Group:
        return (
            size,
            list(self.probe.means) if self.probe.layers else [],
            list(self.probe.variances) if self.probe.layers else [],
        )


def _merge(groups: list[_Group], batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and biased variance of a batch from those of its parts, per layer: E[x] and E[x^2] add up."""
    if len(groups) == 1:
        return groups[0][1], groups[0][2]
    means, variances = [], []
    for layer in range(len(groups[0][1])):
        parts = [(size / batch, mean[layer].clone(), variance[layer].clone()) for size, mean, variance in groups]
        mean = sum(share * m for share, m, _ in parts)
        second = sum(share * (v + m.square()) for share, m, v in parts)
        means.append(mean)
        variances.append((second - mean.square()).clamp(min=0))
    return means, variances
