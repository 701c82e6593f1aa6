"""Confidence-aware dynamic rectification (CADR): a classifier steers a diffusion sampler towards its own training data.

At every denoising step, with x_t the noisy images, eps the prior's noise estimate and abar the cumulative signal share:

    x0    = (x_t - sqrt(1 - abar) eps) / sqrt(abar)              Tweedie estimate, clamped to [-1, 1] for the teacher
    L     = w_bn L_BN(x0) + w_ce sum_b CE(T(x0_b), y_b)          guidance loss
    lam_b = lambda_max / (1 + exp(-k (H_b - tau)))               gate: large where the teacher is unsure (H entropy of its softmax)
    r_b   = lam_b eta ||x_t|| g / (||g|| + xi),  g = dL/dx_t     adaptive normalisation, norms per sample
    eps'  = eps + sqrt(1 - abar) r                               rectified noise: descends L

The published equation and code subtract r, which ascends L in the un-clamped regime, and clamp x0 without re-deriving the noise,
which turns the sign back on saturated pixels. Both must change together; the pair is `variant="corrected"` (default), the
original pair is `variant="reference"`. `rule="separate"` replaces the last two lines of the sum above by our own, in which each
term of the loss has its own length and only the class term is gated, see `kdnb.samplers.guidance`.

Source: Fast-AD (confidence-aware dynamic rectification with DDIM and a FIFO buffer); Dhariwal & Nichol, NeurIPS 2021, for the sign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.choices import GATES, REDUCTIONS, RULES, VARIANTS
from kdnb.errors import InputError, check_name
from kdnb.losses.datafree import batch_norm_terms
from kdnb.metrics import entropy
from kdnb.models.probes import BatchNormProbe
from kdnb.randomness import generator_for
from kdnb.samplers.guidance import adaptive_rectification, entropy_gate, separate_rectification, shifted_views, surprise

# --- the four steps as pure functions ------------------------------------------------------------------------------------------


def tweedie(x_t: Tensor, eps: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Estimate of the clean image, x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar); shapes (B, C, H, W)."""
    return (x_t - _root(1 - alpha_bar) * eps) / _root(alpha_bar)


def noise_from_estimate(x_t: Tensor, x0: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Inverse of `tweedie` in eps: the noise that belongs to (x_t, x0). Needed whenever x0 was clamped."""
    return (x_t - _root(alpha_bar) * x0) / _root(1 - alpha_bar)


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
    assert noise is not None
    sigma = eta_ddim * _root((1 - alpha_bar_prev) / (1 - alpha_bar)) * _root(1 - alpha_bar / alpha_bar_prev)
    return _root(alpha_bar_prev) * x0 + _root(1 - alpha_bar_prev - sigma**2) * eps + sigma * noise


def _root(value: Tensor | float) -> Tensor | float:
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else max(value, 0.0) ** 0.5


# --- guidance ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuidanceConfig:
    """Constants of guidance; the defaults are CADR's published CIFAR-100 values but for what is said to be ours.

    Attributes:
        rule: "joint" (CADR: one gradient of the weighted sum, one gate) or "separate" (ours: each term at its own length, the gate on
            the class term alone). The equations are at the head of `kdnb.samplers.guidance`; `SEPARATE` holds good constants.
        lambda_max, eta, xi: strength, step share and guard of the normalisation.
        threshold, sharpness: tau and k of the entropy gates, in the unit of the entropy (nats, or 0..1 when normalised).
        gate: "entropy", "normalized_entropy", "constant" (lambda_max for every sample), or "surprise": lambda_max (1 - p_T(y | x0)).
        ce_weight, bn_weight: weights of the label and of the batch-norm loss (joint), or lengths of the two terms (separate).
        ce_reduction: "sum" (ours): each image keeps its own class signal whatever the batch size; "mean" (published): the batch-norm
            term, which is a batch statistic, outweighs it B times. The separate rule normalises it away.
        bn_squared: squared norms in the batch-norm term.
        views: V, the label loss is the mean over the image and V - 1 shifted and noised views of it. Teacher passes grow V-fold.
        view_shift, view_noise: largest shift in pixels, and standard deviation of the noise in pixel units of [-1, 1].
        variant: "corrected" or "reference". The reference also takes the statistics of the layers' outputs, squared, averaged over
            layers, and clamps x0 in the graph.
        straight_through: let the gradient pass the clamp of x0; otherwise saturated pixels (94 % of them at t = 980) get none.
        through_prior: differentiate through the prior as well (about three times its cost); default: its output is a constant.
        every: guide only every n-th step.
    Raises:
        InputError: an unknown name, a number out of range, or the reference variant of a rule that has none.
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
    every: int = 1
    rule: str = "joint"
    views: int = 1
    view_shift: int = 1
    view_noise: float = 0.2

    def __post_init__(self):
        check_name("gate", self.gate, GATES)
        check_name("variant", self.variant, VARIANTS)
        check_name("rule", self.rule, RULES)
        check_name("ce_reduction", self.ce_reduction, REDUCTIONS)
        if self.rule == "separate" and self.variant == "reference":
            raise InputError('variant="reference" reproduces the published joint rule; use it with rule="joint"')
        if self.lambda_max < 0 or self.eta < 0 or self.xi <= 0 or self.sharpness <= 0 or self.every < 1:
            raise InputError(
                "guidance needs lambda_max >= 0, eta >= 0, xi > 0, sharpness > 0 and every >= 1, got "
                f"{self.lambda_max}, {self.eta}, {self.xi}, {self.sharpness}, {self.every}"
            )
        if self.views < 1 or self.view_shift < 0 or self.view_noise < 0:
            raise InputError(
                "guidance needs views >= 1, view_shift >= 0 and view_noise >= 0, got "
                f"{self.views}, {self.view_shift}, {self.view_noise}"
            )

    @property
    def off(self) -> bool:
        """Whether r is zero whatever the images, so that the teacher need not be asked."""
        class_off = self.lambda_max == 0 or self.ce_weight == 0
        bn_off = self.bn_weight == 0 or (self.rule == "joint" and self.lambda_max == 0)
        return self.eta == 0 or (class_off and bn_off)


# The separate rule at the constants it was first tried with. On private images of one seed (`benchmarks/guidance.py tune`) no other
# setting was clearly better; the grid was not finished.
SEPARATE = GuidanceConfig(rule="separate", gate="surprise", lambda_max=1.0, eta=1.0, bn_weight=0.75, ce_weight=1.5)


class Guidance:
    """One teacher's guidance: hooks the teacher's batch-norm layers once and keeps them until `close()`.

    One teacher forward gives the logits of the gate, the label loss and the batch-norm statistics, which are those of the batch that
    the sampler denoises together. The joint rule needs one backward pass by the images; the separate rule needs two, since a backward
    pass is linear and yields one sum, while both lengths are asked for. (One pass over stacked cotangents gives the same numbers; with
    ResNet-8 on a CPU core it took 100 ms where two took 83.) Further views add one forward and one backward each. Every sample goes
    backward, those with a closed gate too: sorting them out cost more than it saved (1.33 s against 1.11 s for 50 images), and asked
    the device to wait.
    """

    def __init__(self, teacher: nn.Module, config: GuidanceConfig):
        self.teacher = teacher.eval()
        self.config = config
        self.probe = BatchNormProbe(teacher, of="outputs" if config.variant == "reference" else "inputs")
        if not self.probe.layers and config.bn_weight:
            raise InputError("this teacher has no batch-norm layers; guide with bn_weight=0")
        self.reset()

    def reset(self) -> None:
        """Start a trajectory: call before each batch of samples. Every batch gets the same sequence of views."""
        self._generators: tuple | None = None
        self.last: dict[str, Tensor] = {}

    def close(self) -> None:
        self.probe.close()

    def __enter__(self) -> "Guidance":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def rectification(self, x_t: Tensor, eps: Tensor, alpha_bar: Tensor | float, labels: Tensor, prior=None) -> Tensor:
        """r of the configured rule for one step; (B, C, H, W).

        Args:
            x_t, eps: (B, C, H, W) noisy images and noise estimate.
            labels: (B,) the classes asked for.
            prior: callable x_t -> eps, used only with `through_prior`.
        """
        c = self.config
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0 = tweedie(x, prior(x) if c.through_prior else eps, alpha_bar)
            image = x0.clamp(-1, 1)
            if c.straight_through and c.variant == "corrected":
                image = x0 + (image - x0).detach()
            logits = self.teacher(image)
            loss_bn = self._bn_loss()  # before the views pass the same hooks
            loss_ce = self._ce_loss(image, logits, labels)
        logits = logits.detach()
        gate = self.gate(logits, labels)
        self.last = {
            "gate": gate.mean(),
            "entropy": entropy(logits).mean(),
            "cross_entropy": F.cross_entropy(logits, labels),
            "bn": loss_bn.detach(),
        }
        terms = (c.ce_weight, loss_ce), (c.bn_weight, loss_bn)
        if c.rule == "joint":
            with torch.enable_grad():
                loss = sum(weight * term for weight, term in terms if weight)
            return adaptive_rectification(torch.autograd.grad(loss, x)[0], x_t, gate, c.eta, c.xi)
        grad_ce, grad_bn = (
            torch.autograd.grad(term, x, retain_graph=True)[0] if weight else None for weight, term in terms
        )
        return separate_rectification(
            grad_bn, grad_ce, x_t, gate, eta=c.eta, bn_weight=c.bn_weight, ce_weight=c.ce_weight, xi=c.xi
        )

    def gate(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Strength per sample, (B,), in [0, lambda_max]."""
        c = self.config
        if c.gate == "constant":
            return torch.full_like(logits[:, 0], c.lambda_max)
        if c.gate == "surprise":
            return c.lambda_max * surprise(logits, labels)
        return entropy_gate(entropy(logits, c.gate == "normalized_entropy"), c.lambda_max, c.threshold, c.sharpness)

    def _ce_loss(self, image: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Label loss, the mean over the image and its views, summed (or averaged) over the batch."""
        c = self.config
        loss = F.cross_entropy(logits, labels, reduction=c.ce_reduction)
        if c.views == 1:
            return loss
        if self._generators is None:
            self._generators = generator_for("view shifts"), generator_for("view noise", device=image.device)
        more = shifted_views(image, c.views - 1, c.view_shift, c.view_noise, self._generators)
        self.probe.recording = False
        logits = self.teacher(more)
        self.probe.recording = True
        others = F.cross_entropy(logits, labels.repeat(c.views - 1), reduction="sum")
        return (loss + (others / len(labels) if c.ce_reduction == "mean" else others)) / c.views

    def _bn_loss(self) -> Tensor:
        """Batch-norm loss of the batch that passed the hooks last; 0 for a teacher without such layers."""
        probe, reference = self.probe, self.config.variant == "reference"
        if not probe.layers:
            return torch.zeros(())
        terms = batch_norm_terms(
            probe.means,
            probe.variances,
            probe.running_means,
            probe.running_variances,
            squared=self.config.bn_squared or reference,
        )
        return terms.mean() if reference else terms.sum()
