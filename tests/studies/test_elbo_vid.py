"""kdnb.studies.elbo_vid: the bounds are bounds, reach what theory says, and their training resumes bit for bit."""

import math

import pytest
import torch

from kdnb import methods
from kdnb.errors import InputError
from kdnb.losses.bounds import PPCA, ppca_elbo, ppca_fit, ppca_log_evidence
from kdnb.models import build
from kdnb.studies.elbo_vid import VAE, importance_estimates, latent_kl, layer_information, train_vae, vid_bound_on_pairs
from tests.material import Killed

IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def vae(hidden: int = 8, seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE((1, 4, 4), num_latents=3, hidden=hidden)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_ppca(model: VAE) -> PPCA:
    return PPCA(model.decoder.weight.detach(), model.decoder.bias.detach(), model.log_noise.detach().exp())


def test_the_sampled_elbo_of_a_linear_model_is_the_closed_form_on_average():
    model = vae(hidden=0).double()
    images = IMAGES[:2].double()
    mean, log_variance = model.encode(images)
    exact = ppca_elbo(images.flatten(1), as_ppca(model), mean, log_variance.exp().diag_embed())
    with torch.no_grad():
        terms = [model.elbo_terms(images, noise) for noise in normal(4000, 2, 3)]
    sampled = torch.stack([reconstruction - kl.sum(1) for reconstruction, kl in terms])
    assert torch.all((sampled.mean(0) - exact).abs() < 5 * sampled.std(0) / math.sqrt(4000))


def test_one_weight_is_a_sample_of_the_elbo_with_the_sampled_kl():
    model, images = vae().double(), IMAGES[:2].double()
    noise = normal(1, 2, 3)
    with torch.no_grad():
        mean, log_variance = model.encode(images)
        z = mean + (log_variance / 2).exp() * noise[0]
        prior, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, (log_variance / 2).exp())
        pixels = torch.distributions.Normal(model.decode(z).flatten(1), (model.log_noise / 2).exp())
        expected = pixels.log_prob(images.flatten(1)).sum(1) + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1)
    assert torch.allclose(model.log_weights(images, noise)[0], expected, rtol=1e-12)


def test_importance_estimates_rise_to_the_evidence_and_stay_below_it():
    model = vae(hidden=0)
    train_vae(model, IMAGES, IMAGES, epochs=5, batch_size=8)
    evidence = (
        ppca_log_evidence(IMAGES.flatten(1).double(), PPCA(*(part.double() for part in as_ppca(model)))).mean().item()
    )
    found = {
        count: value.mean().item()
        for count, value in importance_estimates(model, IMAGES, [1, 8, 512], repeats=8).items()
    }
    assert found[1] < found[8] < found[512] < evidence + 1e-3
    assert found[512] == pytest.approx(evidence, abs=0.05)


def test_a_linear_vae_approaches_the_maximum_likelihood_of_ppca():
    factors = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    directions = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    images = (factors @ directions + 0.3 * torch.randn(400, 16, generator=torch.Generator().manual_seed(4))).view(
        -1, 1, 4, 4
    )
    torch.manual_seed(0)
    model = VAE((1, 4, 4), num_latents=2, hidden=0)
    rows = train_vae(model, images, images, epochs=60, batch_size=40, lr=3e-2)
    best = ppca_log_evidence(images.flatten(1), ppca_fit(images.flatten(1), 2)).mean().item()
    assert best - 0.5 < rows[-1]["test_elbo"] < best + 0.1  # one noise sample an image: the estimate itself wobbles


def test_a_collapsed_latent_has_no_divergence():
    model = vae(hidden=0)
    with torch.no_grad():
        model.encoder.weight.zero_()
        model.encoder.bias.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0, 0.0]))
    assert torch.allclose(latent_kl(model, IMAGES), torch.tensor([0.0, 2.0, 0.0]))


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 9])
def test_killed_training_resumes_bit_for_bit(stop, tmp_path, monkeypatch):
    straight = vae()
    expected = train_vae(straight, IMAGES, IMAGES[:7], epochs=2, batch_size=8, seed=3)
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    calls, inner = 0, VAE.encode

    def dying(self, images):
        nonlocal calls
        calls += len(images) == 8  # training batches only
        if calls > stop:
            raise Killed
        return inner(self, images)

    monkeypatch.setattr(VAE, "encode", dying)
    with pytest.raises(Killed):
        train_vae(vae(), IMAGES, IMAGES[:7], epochs=2, batch_size=8, seed=3, folder=tmp_path)
    monkeypatch.undo()
    resumed = vae(
        seed=9 if stop else 0
    )  # killed in the first step nothing is saved; later the checkpoint replaces every weight
    found = train_vae(resumed, IMAGES, IMAGES[:7], epochs=2, batch_size=8, seed=3, folder=tmp_path)
    assert found == expected
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_the_bound_on_pairs_rises_to_the_information_and_stays_below(tmp_path):
    rows = vid_bound_on_pairs(0.8, num_pairs=2, steps=300, folder=tmp_path)
    assert rows[0]["information"] == pytest.approx(-math.log(1 - 0.64))
    assert rows[0]["bound"] < rows[-1]["bound"] < rows[0]["information"] + 0.1
    assert rows[-1]["bound"] > 0.8 * rows[0]["information"]
    assert vid_bound_on_pairs(0.8, num_pairs=2, steps=300, folder=tmp_path) == rows, (
        "a finished call is read, not repeated"
    )


def test_layer_information_is_nothing_for_a_regressor_that_says_the_mean_and_more_for_one_that_looks():
    torch.manual_seed(0)
    teacher = build("resnet8w4", num_classes=3, in_channels=1).eval()
    images = torch.randn(16, 1, 8, 8)
    method = methods.build("vid").bind(teacher, teacher, (1, 8, 8), 3, 16)
    for (
        regressor
    ) in method.regressors:  # identity: F^t is non-negative, so the ReLUs between the convolutions pass it on
        for conv in regressor.regressor[::2]:
            conv.weight.data = torch.eye(len(conv.weight))[..., None, None]
        regressor.log_scale.data.fill_(math.log(math.expm1(1e-3)))
    perfect = layer_information(method, teacher, teacher, images)
    assert len(perfect) == 3 and all(row["gain"] > 1 for row in perfect)
    assert perfect[0]["variance_median"] == pytest.approx(1e-3, rel=0.02)
    for regressor in method.regressors:
        regressor.regressor[4].weight.data.zero_()  # says 0 whatever it sees
    assert all(row["gain"] < 0 for row in layer_information(method, teacher, teacher, images))


@pytest.mark.parametrize(
    "call",
    [
        lambda: VAE((1, 4, 4), num_latents=0),
        lambda: VAE((1, 4, 4), hidden=-1),
        lambda: train_vae(vae(), IMAGES[:3], IMAGES, epochs=1, batch_size=8),
        lambda: train_vae(vae(), IMAGES, IMAGES, epochs=0),
        lambda: vid_bound_on_pairs(1.0),
        lambda: vid_bound_on_pairs(0.5, num_pairs=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError, match="got"):
        call()


def test_a_bound_that_is_not_a_number_stops_the_training():
    with pytest.raises(FloatingPointError, match="autoencoder.*step"):
        train_vae(vae(), IMAGES * float("nan"), IMAGES, epochs=1, batch_size=8)
