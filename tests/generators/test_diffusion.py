"""The prior: its conversions against the formulas, its folders, its training and resumption."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdnb.errors import InputError
from kdnb.generators.diffusion import DiffusionPrior, build_prior, linear_alphas_cumprod, load_prior
from kdnb.randomness import generator_for
from kdnb.studies import prior
from kdnb.studies.prior import ema_decay_at, train_prior
from kdnb.training.schedules import warm_cosine
from tests.material import DroppingDenoiser

TINY = {"widths": (8,), "norm_groups": 4, "shuffle": 2}


class Constant(nn.Module):
    """Emits the same tensor whatever it is given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x_t, t):
        return SimpleNamespace(sample=self.output.expand_as(x_t))


@pytest.fixture
def images():
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- the noise schedule and the conversions ------------------------------------------------------------------------------------


def test_linear_schedule_is_the_running_product_of_one_minus_beta():
    alphas = linear_alphas_cumprod()
    product = 1.0
    for step in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
    assert alphas.shape == (1000,) and alphas.dtype == torch.float32
    torch.testing.assert_close(alphas[0], torch.tensor(0.9999))
    torch.testing.assert_close(alphas[999], torch.tensor(product))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_epsilon_is_recovered_from_every_prediction_type(prediction_type):
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 1, 3, 4, 4, generator=generator, dtype=torch.float64)
    alphas = torch.tensor([0.9, 0.36], dtype=torch.float64)
    signal, noise = 0.6, 0.8  # square roots of 0.36 and 0.64
    emitted = {"epsilon": eps, "v_prediction": signal * eps - noise * x_0, "sample": x_0}[prediction_type]
    prior = DiffusionPrior(Constant(emitted), alphas, prediction_type)
    torch.testing.assert_close(prior.epsilon(signal * x_0 + noise * eps, 1), eps)


def test_each_image_may_have_its_own_time_step():
    x_t, x_0 = torch.ones(2, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    prior = DiffusionPrior(Constant(x_0), torch.tensor([0.75, 0.36]), "sample")
    torch.testing.assert_close(prior.epsilon(x_t, torch.tensor([0, 1])).flatten(), torch.tensor([2.0, 1.25]))
    torch.testing.assert_close(prior.epsilon(x_t, torch.tensor(1)).flatten(), torch.tensor([1.25, 1.25]))


def test_channels_of_a_learned_variance_are_ignored():
    class Doubled(nn.Module):
        def forward(self, x_t, t):
            return SimpleNamespace(sample=torch.cat([x_t * 2, x_t * 0 - 7], dim=1))

    x_t = torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(DiffusionPrior(Doubled()).epsilon(x_t, 5), 2 * x_t)


def test_prior_is_frozen_in_eval_mode_and_still_passes_gradients_to_the_images():
    prior = DiffusionPrior(DroppingDenoiser())
    x_t = torch.ones(1, 1, 4, 4, requires_grad=True)
    prior.epsilon(x_t, 3).sum().backward()
    assert not prior.model.training and x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in prior.model.parameters())


@pytest.mark.parametrize("alphas", [[0.9, 0.9], [0.5, 0.9], [1.0, 0.5], [0.5, 0.0], [0.9, float("nan")], [[0.9, 0.5]]])
def test_a_schedule_that_does_not_fall_inside_0_and_1_is_refused(alphas):
    with pytest.raises(InputError, match="alphas_cumprod"):
        DiffusionPrior(DroppingDenoiser(), torch.tensor(alphas))


def test_an_unknown_prediction_type_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'epsilon'"):
        DiffusionPrior(DroppingDenoiser(), prediction_type="epsilom")


# --- building ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, channels, size, kwargs",
    [
        ("compact_unet", 1, 16, {}),
        ("compact_unet", 3, 32, {"shuffle": 4, "widths": (16, 24)}),
        ("unet", 3, 32, {"widths": (8, 16), "layers": 1, "norm_groups": 8}),
    ],
)
def test_output_has_the_shape_of_the_images(name, channels, size, kwargs):
    model = build_prior(name, channels, size, **kwargs)
    x = torch.randn(2, channels, size, size)
    assert model(x, torch.tensor([0, 999])).sample.shape == x.shape
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_compact_unet_sees_every_pixel():
    torch.manual_seed(0)
    model = build_prior("compact_unet", 1, 8, **TINY)
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    model(x, 10).sample.square().sum().backward()
    assert (x.grad != 0).all()


def test_time_step_changes_the_output():
    torch.manual_seed(0)
    model = build_prior("compact_unet", 1, 8, **TINY)
    x = torch.ones(2, 1, 8, 8)
    first, second = model(x, torch.tensor([0, 500])).sample
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name, size, kwargs, message",
    [
        ("compact_net", 16, {}, "did you mean 'compact_unet'"),
        ("compact_unet", 18, {}, "divisible by 4, got 18"),
        ("compact_unet", 16, {"width": (32,)}, "did you mean 'widths'"),
        ("compact_unet", 16, {"widths": (32, 36)}, "divisible by norm_groups"),
        ("unet", 32, {"shuffle": 2}, "unknown argument"),
    ],
)
def test_sizes_that_can_not_work_are_refused(name, size, kwargs, message):
    with pytest.raises(InputError, match=message):
        build_prior(name, 1, size, **kwargs)


# --- training ------------------------------------------------------------------------------------------------------------------


def test_averaging_warms_up_as_one_plus_k_over_ten_plus_k():
    assert [ema_decay_at(step, 0.5) for step in (0, 2, 8, 100)] == [0.1, 0.25, 0.5, 0.5]


def test_learning_rate_rises_then_falls_to_almost_zero():
    factors = [warm_cosine(step, 100) for step in range(100)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(later < earlier for earlier, later in zip(factors[4:], factors[5:], strict=False))
    assert 0 < factors[-1] < 0.001


def test_first_step_leaves_the_stated_average(images):
    """One step by hand: Adam's first update is lr * sign(gradient) up to its epsilon, and the average is 0.1 old + 0.9 new."""
    model = DroppingDenoiser().eval()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_prior(model, images, steps=1, lr=0.01, ema_decay=0.995)
    for old, new in zip(before, model.parameters(), strict=True):
        decayed = old * (1 - 0.01 * 0.01)
        torch.testing.assert_close(
            (new - (0.1 * old + 0.9 * decayed)).abs(), torch.full_like(old, 0.9 * 0.01), rtol=1e-2, atol=1e-4
        )


def test_loss_falls_from_that_of_guessing_zero():
    images = torch.full((4, 1, 8, 8), -1.0)
    images[:, :, 2:6, 2:6] = 1.0
    torch.manual_seed(0)
    fit = train_prior(build_prior("compact_unet", 1, 8, **TINY), images, steps=80, batch_size=16, lr=1e-2)
    assert fit.losses.shape == (80,) and fit.prior.model.training is False
    assert fit.losses[:5].mean() > 0.8 and fit.losses[-20:].mean() < 0.5


def test_training_equals_the_equations_written_out(images):
    """The loop once more in plain steps: draws, forward process, clipped gradient, Adam with decay, warm cosine, average."""
    steps, batch_size, lr, ema_decay, seed = 30, 3, 0.02, 0.3, 5
    images = images * 20  # gradients above the limit, so that clipping matters
    model = DroppingDenoiser()
    model.layers[2].p = 0.0
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    first, second, averages = [
        [tensor(weight) for weight in weights] for tensor in (torch.zeros_like, torch.zeros_like, torch.clone)
    ]
    fit = train_prior(model, images, steps=steps, batch_size=batch_size, lr=lr, ema_decay=ema_decay, seed=seed)

    alphas, clipped = linear_alphas_cumprod(), 0
    for step in range(steps):
        generator = generator_for(seed, "prior", step)
        index = torch.randint(12, (batch_size,), generator=generator)
        t = torch.randint(1000, (batch_size,), generator=generator)
        eps = torch.randn(batch_size, 1, 8, 8, generator=generator)
        noisy = torch.stack(
            [alphas[t[b]] ** 0.5 * images[index[b]] + (1 - alphas[t[b]]) ** 0.5 * eps[b] for b in range(batch_size)]
        )
        hidden = nn.functional.silu(nn.functional.conv2d(noisy, weights[0], weights[1], padding=1))
        loss = (nn.functional.conv2d(hidden, weights[2], weights[3], padding=1) - eps).square().mean()
        torch.testing.assert_close(fit.losses[step], loss.detach(), rtol=1e-3, atol=1e-5)

        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        clipped += int(norm > 1)
        rate = lr * (
            (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 29))
        )  # 5 % of 30 steps: two of warm-up
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for weight, gradient, mean, square, average in zip(
                weights, gradients, first, second, averages, strict=True
            ):
                gradient = gradient / max(1.0, float(norm))
                mean += 0.1 * (gradient - mean)
                square += 0.01 * (gradient**2 - square)
                update = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
                weight -= rate * (0.01 * weight + update)
                average.copy_(decay * average + (1 - decay) * weight)

    assert 5 < clipped < steps
    for average, parameter in zip(averages, fit.prior.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.data, average.detach(), rtol=1e-3, atol=1e-5)


def _stop_before(stop):
    """A progress bar that kills the run."""

    def progress(items, *_):
        for step in items:
            if step == stop:
                raise KeyboardInterrupt
            yield step

    return progress


@pytest.mark.parametrize("stops", [[1], [5], [9], [2, 2, 7]])
def test_resumed_training_ends_with_the_same_bits(images, tmp_path, monkeypatch, stops):
    settings = {"steps": 10, "batch_size": 4, "lr": 0.01, "seed": 3}
    whole = train_prior(DroppingDenoiser(), images, **settings)

    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(prior, "progress", _stop_before(stop))
            train_prior(DroppingDenoiser(), images, folder=tmp_path, **settings)
        torch.manual_seed(99)  # another process would not have the old random state
    resumed = train_prior(DroppingDenoiser(), images, folder=tmp_path, **settings)

    assert torch.equal(whole.losses, resumed.losses)
    for one, other in zip(whole.prior.model.parameters(), resumed.prior.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_seed_decides_the_draws(images):
    losses = [train_prior(DroppingDenoiser(), images, steps=3, seed=seed).losses for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_checkpoints_of_another_recipe_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.training.resume.SAVE_EVERY", -1.0)
    train_prior(DroppingDenoiser(), images, steps=2, folder=tmp_path)
    with pytest.raises(InputError, match="other work"):
        train_prior(DroppingDenoiser(), images, steps=3, folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(images):
    images[:] = float("nan")
    with pytest.raises(FloatingPointError, match="at step 0"):
        train_prior(DroppingDenoiser(), images, steps=2)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 1, "lr": 0.0}, {"steps": 1, "ema_decay": 1.0}, {"steps": 1, "batch_size": 0}]
)
def test_numbers_out_of_range_are_refused(images, wrong):
    with pytest.raises(InputError, match="a prior needs"):
        train_prior(DroppingDenoiser(), images, **wrong)


# --- folders -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    prior = DiffusionPrior(
        build_prior("compact_unet", 1, 8, **TINY), linear_alphas_cumprod(200, 1e-3, 0.05), "v_prediction"
    )
    folder = tmp_path_factory.mktemp("priors") / "prior"
    prior.model.save_pretrained(folder)
    alphas = prior.alphas_cumprod.double()
    betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
    scheduler = DDPMScheduler(200, trained_betas=betas.tolist(), prediction_type=prior.prediction_type)
    scheduler.save_pretrained(folder / "scheduler")
    return prior, folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "prior")


def test_saved_prior_comes_back_with_equal_outputs(saved):
    prior, folder = saved
    loaded = load_prior(folder)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.epsilon(x, 150), prior.epsilon(x, 150))
    assert torch.equal(loaded.alphas_cumprod, prior.alphas_cumprod)
    assert loaded.prediction_type == "v_prediction" and loaded.num_train_timesteps == 200


def test_a_pipeline_of_diffusers_is_read_with_its_own_schedule(tmp_path):
    from diffusers import DDIMScheduler, DDPMPipeline

    model = build_prior("unet", 3, 8, widths=(8, 8), layers=1, norm_groups=4)
    scheduler = DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    prior = load_prior(tmp_path)
    assert prior.prediction_type == "sample"
    torch.testing.assert_close(prior.alphas_cumprod, scheduler.alphas_cumprod)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(prior.model(x, 3).sample, model.eval()(x, 3).sample)


def test_a_model_without_scheduler_gets_the_linear_schedule(copied):
    shutil.rmtree(copied / "scheduler")
    prior = load_prior(copied)
    assert prior.prediction_type == "epsilon" and torch.equal(prior.alphas_cumprod, linear_alphas_cumprod())


def test_pickled_weights_are_refused_unopened(copied):
    (copied / "diffusion_pytorch_model.safetensors").unlink()
    (copied / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin can run code"):
        load_prior(copied)


@pytest.mark.parametrize("name", ["os", "__version__", "DDIMScheduler", "DDPMPipeline", "NoSuchModel", None, 3])
def test_a_class_that_is_no_model_is_refused(copied, name):
    config = json.loads((copied / "config.json").read_text()) | {"_class_name": name}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json names the class"):
        load_prior(copied)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_configuration_is_refused(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json"):
        load_prior(copied)


def test_weights_that_do_not_fit_are_refused_instead_of_left_random(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["unet.conv_in.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="unet.conv_in.weight"):
        load_prior(copied)


def test_cut_off_weights_are_refused(copied):
    path = copied / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="can't be loaded"):
        load_prior(copied)


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="config.json"):
            load_prior(folder)


def test_a_scheduler_without_betas_is_refused(copied):
    (copied / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}'
    )
    with pytest.raises(InputError, match="flow matching"):
        load_prior(copied)


def test_a_model_that_needs_more_than_a_class_number_is_refused_at_loading(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        class_embed_type="timestep",
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="can't serve as an image prior"):
        load_prior(tmp_path)
