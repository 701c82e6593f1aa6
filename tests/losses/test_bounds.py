import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from kdnb.errors import InputError
from kdnb.losses import bounds

N, D, Q = 9, 5, 2


def _problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = bounds.PPCA(draw(D, Q), draw(D), torch.tensor(0.4, dtype=torch.float64))
    factor = draw(N, Q, Q).tril() + 2 * torch.eye(Q, dtype=torch.float64)
    return model, draw(N, D) * 2, draw(N, Q), factor @ factor.mT, generator


def _covariance(model):
    return model.weight @ model.weight.T + model.variance * torch.eye(D, dtype=torch.float64)


def test_evidence_is_the_gaussian_density():
    model, x, *_ = _problem()
    assert torch.allclose(
        bounds.ppca_log_evidence(x, model), MultivariateNormal(model.mean, _covariance(model)).log_prob(x), rtol=1e-12
    )


def test_evidence_by_hand():
    model = bounds.PPCA(torch.tensor([[1.0], [0.0]]), torch.zeros(2), torch.tensor(1.0))  # C = diag(2, 1)
    expected = -math.log(2 * math.pi) - 0.5 * math.log(2) - 0.5 * (4 / 2 + 9)
    assert bounds.ppca_log_evidence(torch.tensor([[2.0, 3.0]]), model).item() == pytest.approx(expected, rel=1e-6)


def test_posterior_is_that_of_conditioning_the_joint_gaussian():
    model, x, *_ = _problem()
    mean, covariance = bounds.ppca_posterior(x, model)
    gain = model.weight.T @ torch.linalg.inv(_covariance(model))
    assert torch.allclose(mean, (x - model.mean) @ gain.T)
    assert torch.allclose(covariance, torch.eye(Q, dtype=torch.float64) - gain @ model.weight)


def test_evidence_is_elbo_plus_gap_for_any_q():
    model, x, mean, covariance, _ = _problem()
    evidence, elbo, gap = (
        bounds.ppca_log_evidence(x, model),
        bounds.ppca_elbo(x, model, mean, covariance),
        bounds.ppca_gap(x, model, mean, covariance),
    )
    assert (evidence - elbo - gap).abs().max() < 1e-10 * evidence.abs().max()
    assert (gap > 0).all()


def test_gap_closes_at_the_posterior():
    model, x, *_ = _problem()
    assert bounds.ppca_gap(x, model, *bounds.ppca_posterior(x, model)).abs().max() < 1e-12


def test_kl_agrees_with_torch_distributions_in_both_forms():
    model, _, mean, covariance, generator = _problem()
    other = torch.eye(Q, dtype=torch.float64) * 2 + 0.5
    q, p = MultivariateNormal(mean, covariance), MultivariateNormal(mean.flip(0), other)
    assert torch.allclose(bounds.gaussian_kl(mean, covariance, mean.flip(0), other), kl_divergence(q, p))
    standard = MultivariateNormal(torch.zeros(Q, dtype=torch.float64), torch.eye(Q, dtype=torch.float64))
    assert torch.allclose(bounds.gaussian_kl(mean, covariance), kl_divergence(q, standard))


def test_kl_of_as_many_samples_as_dimensions_is_not_mistaken_for_a_diagonal_one():
    mean, shared = torch.zeros(Q, Q, dtype=torch.float64), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(bounds.gaussian_kl(mean, shared), bounds.gaussian_kl(mean[:1], shared).expand(2))


def test_diagonal_kl_sums_to_the_full_one_and_is_zero_where_collapsed():
    _, _, mean, _, _ = _problem()
    log_variance = mean.flip(0) / 3
    assert torch.allclose(
        bounds.diagonal_kl(mean, log_variance).sum(1), bounds.gaussian_kl(mean, log_variance.exp().diag_embed())
    )
    assert bounds.diagonal_kl(torch.zeros(3), torch.zeros(3)).tolist() == [0, 0, 0]


def test_reconstruction_is_the_expected_likelihood():
    model, x, mean, covariance, generator = _problem()
    z = (
        mean
        + (torch.linalg.cholesky(covariance) @ torch.randn(20_000, N, Q, 1, generator=generator, dtype=torch.float64))[
            ..., 0
        ]
    )
    likelihood = Normal(model.mean + z @ model.weight.T, model.variance.sqrt()).log_prob(x).sum(-1)
    error = likelihood.std(0) / 20_000**0.5
    assert ((bounds.ppca_reconstruction(x, model, mean, covariance) - likelihood.mean(0)).abs() < 5 * error).all()


def test_mean_field_optimum_leaves_exactly_the_stated_gap():
    model, x, *_ = _problem()
    posterior_mean, _ = bounds.ppca_posterior(x, model)
    variance, gap = bounds.mean_field_optimum(model)
    assert torch.allclose(bounds.ppca_gap(x, model, posterior_mean, variance.diag_embed()), gap.expand(N))
    assert (bounds.ppca_gap(x, model, posterior_mean, (1.1 * variance).diag_embed()) > gap).all()


def test_mean_field_gap_is_zero_when_the_loadings_are_orthogonal():
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    _, gap = bounds.mean_field_optimum(bounds.PPCA(weight, torch.zeros(3).double(), torch.tensor(0.5).double()))
    assert abs(gap.item()) < 1e-12


def test_fit_maximises_the_evidence():
    _, x, *_, generator = _problem()
    x = x @ torch.randn(D, D, generator=generator, dtype=torch.float64)
    best = bounds.ppca_fit(x, Q)
    evidence = bounds.ppca_log_evidence(x, best).mean()
    parameters = [part.clone().requires_grad_() for part in best]
    bounds.ppca_log_evidence(x, bounds.PPCA(*parameters)).mean().backward()
    assert all(part.grad.abs().max() < 1e-9 for part in parameters)
    worse = best._replace(variance=best.variance * 1.2)
    assert bounds.ppca_log_evidence(x, worse).mean() < evidence


def test_fit_recovers_a_model_covariance():
    model, *_ = _problem()
    values, vectors = torch.linalg.eigh(_covariance(model))
    x = (vectors * values.sqrt()).T * D**0.5  # D points whose second moment is the covariance
    x = torch.cat([x, -x])
    fitted = bounds.ppca_fit(x, Q)
    assert torch.allclose(_covariance(fitted), _covariance(model)) and torch.allclose(fitted.variance, model.variance)


def test_fit_refuses_as_many_latents_as_dimensions():
    with pytest.raises(InputError, match="num_latents"):
        bounds.ppca_fit(torch.zeros(4, 3), 3)


def test_weights_are_density_ratios():
    model, x, mean, covariance, generator = _problem()
    noise = torch.randn(4, N, Q, generator=generator, dtype=torch.float64)
    z = mean + (torch.linalg.cholesky(covariance) @ noise[..., None])[..., 0]
    joint = Normal(model.mean + z @ model.weight.T, model.variance.sqrt()).log_prob(x).sum(-1) + Normal(0, 1).log_prob(
        z
    ).sum(-1)
    expected = joint - MultivariateNormal(mean, covariance).log_prob(z)
    assert torch.allclose(bounds.ppca_log_weights(x, model, mean, covariance, noise), expected)


def test_with_the_posterior_every_weight_is_the_evidence():
    model, x, *_, generator = _problem()
    noise = torch.randn(4, N, Q, generator=generator, dtype=torch.float64)
    log_weights = bounds.ppca_log_weights(x, model, *bounds.ppca_posterior(x, model), noise)
    assert torch.allclose(log_weights, bounds.ppca_log_evidence(x, model).expand(4, N), rtol=1e-10)


def test_more_samples_tighten_the_importance_weighted_bound():
    model, x, mean, _, generator = _problem()
    posterior_mean, posterior = bounds.ppca_posterior(x, model)
    noise = torch.randn(64, 1000, N, Q, generator=generator, dtype=torch.float64)
    log_weights = bounds.ppca_log_weights(x, model, posterior_mean + 0.3, posterior * 1.5, noise)
    levels = [bounds.iwae_bound(log_weights[:samples]).mean() for samples in (1, 4, 16, 64)]
    assert levels == sorted(levels) and levels[-1] < bounds.ppca_log_evidence(x, model).mean()
    assert torch.allclose(
        levels[0], bounds.ppca_elbo(x, model, posterior_mean + 0.3, posterior * 1.5).mean(), atol=0.05
    )


def test_importance_weighted_bound_by_hand_and_at_huge_values():
    assert bounds.iwae_bound(torch.tensor([1.0, 3.0]).log()).item() == pytest.approx(math.log(2), rel=1e-6)
    assert bounds.iwae_bound(torch.tensor([-1e4, -1e4])).item() == pytest.approx(-1e4)


def test_information_of_pairs_is_that_of_their_joint_covariance():
    rho, d = 0.6, 3
    eye = torch.eye(d, dtype=torch.float64)
    covariance = torch.cat([torch.cat([eye, rho * eye], 1), torch.cat([rho * eye, eye], 1)])
    expected = -torch.logdet(covariance).item() / 2  # 1/2 ln( |S_t| |S_s| / |S| ), and both marginals are standard
    found = bounds.correlated_pairs_information(torch.tensor(rho, dtype=torch.float64), d)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_variational_bound_touches_the_information_only_at_the_conditional():
    rho = torch.tensor(0.6, dtype=torch.float64)
    information = bounds.correlated_pairs_information(rho, 4)
    assert torch.allclose(bounds.correlated_pairs_bound(rho, rho, 1 - rho**2, 4), information)
    for slope, variance in ((0.5, 0.64), (0.6, 0.7), (0.0, 1.0), (-0.6, 0.64)):
        assert bounds.correlated_pairs_bound(rho, slope, variance, 4) < information


def test_variational_bound_is_entropy_plus_expected_log_density():
    generator = torch.Generator().manual_seed(0)
    s, noise = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    t = 0.6 * s + 0.8 * noise
    sampled = 0.5 * math.log(2 * math.pi * math.e) + Normal(0.3 * s, 0.9**0.5).log_prob(t).mean()
    assert bounds.correlated_pairs_bound(0.6, 0.3, 0.9, 1).item() == pytest.approx(sampled.item(), abs=0.01)


def test_info_nce_never_exceeds_the_logarithm_of_the_batch():
    assert bounds.info_nce(torch.eye(8) * 1e4).item() == pytest.approx(math.log(8), rel=1e-6)
    assert bounds.info_nce(torch.zeros(8, 8)).item() == pytest.approx(0.0, abs=1e-6)
    assert bounds.info_nce(torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])).item() == pytest.approx(
        math.log(1.5), rel=1e-6
    )
