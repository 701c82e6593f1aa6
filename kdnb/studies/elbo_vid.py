"""Learned bounds: an autoencoder whose evidence is only bounded, and the bound on mutual information that VID maximises.

Everything is in nats. The closed forms that these bounds are held against are in `kdnb.losses.bounds`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.bounds import correlated_pairs_information, diagonal_kl, info_nce, iwae_bound
from kdnb.losses.features import pool_to_smaller, vid_loss
from kdnb.methods.vid import VID, VIDRegressor
from kdnb.progress import progress
from kdnb.randomness import generator_for
from kdnb.rehearsal import seldom
from kdnb.training.resume import Resumable, stop_if_not_finite
from kdnb.training.schedules import cosine_to_zero

_LOG_2PI = math.log(2 * math.pi)


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian decoder whose noise is learned.

        z ~ N(0, I_q),  x | z ~ N(f(z), e^l I_D),  q(z|x) = N(m(x), diag e^{s(x)})

    Args:
        image_shape: (C, H, W); D = C H W.
        num_latents: q >= 1.
        hidden: width of the one hidden layer of encoder and decoder; 0: both are linear, which is probabilistic PCA with a learned q.

    Source: Kingma and Welling, ICLR 2014; learned noise as Rezende and Viola, 2018.
    """

    def __init__(self, image_shape: Sequence[int], num_latents: int = 8, hidden: int = 128):
        super().__init__()
        if num_latents < 1 or hidden < 0:
            raise InputError(f"a VAE needs num_latents >= 1 and hidden >= 0, got {num_latents} and {hidden}")
        self.image_shape, self.num_latents = tuple(image_shape), num_latents
        width = math.prod(image_shape)
        self.encoder = _network(width, hidden, 2 * num_latents)
        self.decoder = _network(num_latents, hidden, width)
        self.log_noise = nn.Parameter(torch.zeros(()))  # l, log-variance of every pixel

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to mean and log-variance of q(z|x), (B, q) each."""
        mean, log_variance = self.encoder(images.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """(..., q) to mean images (..., C, H, W)."""
        return self.decoder(z).unflatten(-1, self.image_shape)

    def log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """ln p(x|z) of images (B, C, H, W) at z (..., B, q): (..., B). Keeps D/2 ln 2 pi e^l, without which this is no bound in nats."""
        residual = (images.flatten(1) - self.decoder(z)).square().sum(-1)
        return -0.5 * (math.prod(self.image_shape) * (_LOG_2PI + self.log_noise) + residual * (-self.log_noise).exp())

    def elbo_terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction ln p(x|z) at z = m + e^{s/2} noise, (B,), and KL(q || p) by latent, (B, q); ELBO = first - sum of second."""
        mean, log_variance = self.encode(images)
        return self.log_likelihood(images, mean + (log_variance / 2).exp() * noise), diagonal_kl(mean, log_variance)

    @torch.no_grad()
    def log_weights(self, images: Tensor, noise: Tensor) -> Tensor:
        """ln p(x, z) - ln q(z|x) at S samples: noise (S, B, q) to (S, B)."""
        mean, log_variance = self.encode(images)
        z = mean + (log_variance / 2).exp() * noise
        # (2 pi)^{-q/2} stands in p(z) and in q(z|x), and cancels
        return self.log_likelihood(images, z) + 0.5 * (noise.square() - z.square() + log_variance).sum(-1)


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    if not hidden:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def train_vae(
    model: VAE,
    train: Tensor,
    test: Tensor,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 1e-2,
    seed: int = 0,
    folder: Path | None = None,
) -> list[dict]:
    """Maximise the mean ELBO by Adam, one sample of z an image; the model is left in eval mode.

    Args:
        train, test: (N, C, H, W) images, on the model's device; the test images are only measured.
        epochs, batch_size, lr: passes, images per step (what is left of a pass is dropped), peak rate of a cosine to 0.
        seed: order and noise are functions of (seed, step).
        folder: for checkpoints; a killed call goes on from there and ends with the same bits. None: nothing is kept.
    Returns:
        A row per epoch: epoch, elbo (of the training steps), test_elbo, test_reconstruction, test_kl.
    Raises:
        InputError: fewer images than a batch.
        FloatingPointError: the bound became infinite or NaN.
    """
    steps_per_epoch = len(train) // batch_size
    if steps_per_epoch < 1 or epochs < 1:
        raise InputError(
            f"training needs epochs >= 1 and at least one batch of {batch_size} images, got {epochs} and {len(train)} images"
        )
    noise_for = _noise(model.num_latents, train.device, seed)

    def loss_at(step: int) -> Tensor:
        epoch, position = divmod(step, steps_per_epoch)
        order = torch.randperm(len(train), generator=generator_for(seed, "order", epoch)).to(train.device)
        images = train[order[position * batch_size : (position + 1) * batch_size]]
        reconstruction, kl = model.elbo_terms(images, noise_for("vae", step, len(images)))
        return (kl.sum(1) - reconstruction).mean()

    @torch.no_grad()
    def row_at(step: int, losses: Tensor) -> dict:
        reconstruction, kl = model.elbo_terms(test, noise_for("test", 0, len(test)))
        return {
            "epoch": step // steps_per_epoch,
            "elbo": -losses[step - steps_per_epoch : step].mean().item(),
            "test_elbo": (reconstruction - kl.sum(1)).mean().item(),
            "test_reconstruction": reconstruction.mean().item(),
            "test_kl": kl.sum(1).mean().item(),
        }

    model.train()
    rows = _descend(model, loss_at, epochs * steps_per_epoch, lr, row_at, steps_per_epoch, folder, "autoencoder")
    model.eval()
    return rows


def _noise(num_latents: int, device: torch.device, seed: int) -> Callable[[str, int, int], Tensor]:
    def draw(purpose: str, step: int, count: int) -> Tensor:
        return torch.randn(
            count, num_latents, generator=generator_for(seed, purpose, step, device=device), device=device
        )

    return draw


def importance_estimates(
    model: VAE, images: Tensor, num_samples: Sequence[int], repeats: int = 1, seed: int = 0
) -> dict[int, Tensor]:
    """Estimates of the bounds L_S = E ln 1/S sum_s w_s; S = 1 is the ELBO, large S estimates ln p(x).

    Args:
        images: (N, C, H, W).
        num_samples: the values of S.
        repeats: R independent estimates of each, for a confidence band.
        seed: of the noise.
    Returns:
        {S: (R,) means over the images}. A spread over R is that of the noise alone: the images are the same.

    Source: Burda, Grosse, Salakhutdinov, ICLR 2016.
    """
    found = {}
    for count in num_samples:
        estimates = []
        for repeat in range(repeats):
            generator = generator_for(seed, "importance", count, repeat, device=images.device)
            noise = torch.randn(count, len(images), model.num_latents, generator=generator, device=images.device)
            # a chunk of samples at a time: S x N images would not fit
            weights = torch.cat([model.log_weights(images, part) for part in noise.split(64)])
            estimates.append(iwae_bound(weights).mean())
        found[count] = torch.stack(estimates)
    return found


def latent_kl(model: VAE, images: Tensor) -> Tensor:
    """Mean KL(q || p) of each latent over the images, (q,): a latent near 0 has collapsed onto the prior and carries nothing."""
    with torch.no_grad():
        return diagonal_kl(*model.encode(images)).mean(0)


# --- mutual information --------------------------------------------------------------------------------------------------------


def correlated_pairs(rho: float, num_pairs: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t and s, (count, num_pairs) each: independent pairs of standard normals with correlation rho."""
    s, independent = torch.randn(2, count, num_pairs, generator=generator)
    return rho * s + math.sqrt(1 - rho**2) * independent, s


def vid_bound_on_pairs(
    rho: float,
    num_pairs: int = 8,
    *,
    steps: int = 600,
    batch_size: int = 256,
    lr: float = 3e-2,
    seed: int = 0,
    folder: Path | None = None,
) -> list[dict]:
    """Train VID's own regressor and variances on correlated Gaussians, where the information it bounds is known.

        I(t; s) = H(t) - H(t|s)  >=  H(t) + E ln q(t|s),   q(t|s) = N(mu(s), diag v)

    Args:
        rho: correlation in (-1, 1); num_pairs: d.
        steps, batch_size, lr: of Adam on fresh samples, cosine to 0.
        seed, folder: as `train_vae`.
    Returns:
        A row every twentieth of the steps: step, bound (on 4096 other samples), information (exact), info_nce (with the optimal critic on
        64 of those samples: never above ln 64), variance (mean of v; exact: 1 - rho^2).
    Raises:
        InputError: |rho| >= 1 or d < 1.

    Source: Barber and Agakov, NeurIPS 2003; Ahn et al., CVPR 2019; van den Oord, Li, Vinyals, 2018.
    """
    if not -1 < rho < 1 or num_pairs < 1 or steps < 1:
        raise InputError(f"needs -1 < rho < 1, num_pairs >= 1 and steps >= 1, got {rho}, {num_pairs} and {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VIDRegressor(num_pairs, 4 * num_pairs, num_pairs)
    information = correlated_pairs_information(torch.tensor(rho), num_pairs).item()
    held_t, held_s = correlated_pairs(rho, num_pairs, 4096, generator_for(seed, "held out"))
    # the critic that InfoNCE can't improve on: ln p(t|s) up to what does not depend on s
    critic = -torch.cdist(held_t[:64], rho * held_s[:64]).square() / (2 * (1 - rho**2))
    every = max(1, steps // 20)

    def negative_log_q(t: Tensor, s: Tensor) -> Tensor:
        mean, variance = model(s[..., None, None])  # a map of one pixel
        return vid_loss(mean, variance, t[..., None, None])  # nats an element without the constant

    @torch.no_grad()
    def row_at(step: int, losses: Tensor) -> dict:
        bound = num_pairs * (0.5 * (_LOG_2PI + 1) - 0.5 * _LOG_2PI - negative_log_q(held_t, held_s).item())
        return {
            "step": step,
            "bound": bound,
            "information": information,
            "info_nce": info_nce(critic).item(),
            "variance": model(held_s[:1, :, None, None])[1].mean().item(),
        }

    def loss_at(step: int) -> Tensor:
        return negative_log_q(*correlated_pairs(rho, num_pairs, batch_size, generator_for(seed, "pairs", step)))

    return _descend(model, loss_at, steps, lr, row_at, every, folder, "information bound")


@torch.inference_mode()
def layer_information(method: VID, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[dict]:
    """What a trained VID student tells about the teacher's maps beyond their mean and variance, layer by layer.

        gain_l = E ln q(F^t|F^s) - E ln N(F^t; mean_c, var_c),   nats an element

    The second term is the best Gaussian that doesn't look at the student, so 0 means nothing was learned of this layer; the entropy of
    the maps, which the bound on mutual information would need, cancels.

    Returns:
        A row per layer: layer (1-based), gain, expected (E ln q per element), variance_low, variance_median, variance_high over channels.
    """
    features_s, features_t = student(images, return_features=True), teacher(images, return_features=True)
    rows = []
    for number, regressor in enumerate(method.regressors, start=1):
        feat_s, feat_t = pool_to_smaller(features_s.feats[number], features_t.feats[number])
        mean, variance = regressor(feat_s)
        expected = -vid_loss(mean, variance, feat_t).item() - 0.5 * _LOG_2PI
        spread = feat_t.transpose(0, 1).flatten(1).var(1, correction=0)
        blind = -0.5 * (_LOG_2PI + 1 + spread.clamp_min(1e-5).log().mean().item())
        low, median, high = variance.quantile(torch.tensor([0.0, 0.5, 1.0], device=variance.device)).tolist()
        rows.append(
            {
                "layer": number,
                "gain": expected - blind,
                "expected": expected,
                "variance_low": low,
                "variance_median": median,
                "variance_high": high,
            }
        )
    return rows


# --- the loop ------------------------------------------------------------------------------------------------------------------


def _descend(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    lr: float,
    row_at: Callable[[int, Tensor], dict],
    every: int,
    folder: Path | None,
    description: str,
) -> list[dict]:
    """Adam on loss_at(0), loss_at(1), ...; row_at(steps done, losses) gives a row after `every` steps and after the last.

    All randomness is a function of the step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr)
    device = next(model.parameters()).device

    def check() -> None:
        stop_if_not_finite(description, {"the loss": losses})

    parts = {"model": model, "optimizer": optimizer}
    work = Resumable(
        folder, parts, {"losses": torch.zeros(steps, device=device), "rows": []}, device=device, check=check
    )
    losses, rows = work["losses"], work["rows"]
    for step in progress(range(work.done, steps), description, steps, work.done):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine_to_zero(step, steps)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        if (step + 1) % every == 0 or step + 1 == steps:
            with seldom(1 / every):
                check()
                rows.append(row_at(step + 1, losses))
        with seldom(1 / steps):
            work.save(step + 1, last=step + 1 == steps)
    return rows
