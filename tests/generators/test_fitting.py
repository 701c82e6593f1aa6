"""Priors of another shape: the grey rules by hand, and pipelines of diffusers from their folder to a guided grey image."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.generators.diffusion import load_prior
from kdnb.generators.fitting import FittedTeacher, fit_images
from kdnb.models import build
from kdnb.samplers.cadr import GuidanceConfig
from kdnb.samplers.diffusion import sample
from kdnb.studies.fast_ad import diffusion_source
from kdnb.studies.synthesis import draw

SHAPE = (1, 8, 8)  # the teacher's
SEPARATE = GuidanceConfig(rule="separate", gate="surprise", lambda_max=1.0, eta=1.0, bn_weight=0.75, ce_weight=1.5)


def test_grey_by_hand():
    pixel = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    assert fit_images(pixel, (1, 1, 1)).item() == pytest.approx(0.299 - 0.114)
    assert fit_images(pixel, (1, 1, 1), grey="mean").item() == pytest.approx(0.0)


@pytest.mark.parametrize("grey", ["luma", "mean"])
@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_a_flat_grey_image_keeps_its_level_in_any_shape(grey, level):
    for shape in ((1, 4, 4), (1, 16, 16), (3, 8, 8)):
        assert torch.allclose(fit_images(torch.full((2, 3, 8, 8), level), shape, grey), torch.tensor(level))


def test_images_of_the_right_shape_are_returned_as_they_are():
    images = torch.randn(2, 3, 8, 8)
    assert fit_images(images, (3, 8, 8)) is images
    assert torch.equal(fit_images(images[:, :1], (3, 8, 8)), images[:, :1].repeat(1, 3, 1, 1))


def test_other_channel_counts_and_rules_are_refused():
    with pytest.raises(InputError, match="4 channels"):
        fit_images(torch.zeros(1, 4, 8, 8), SHAPE)
    with pytest.raises(InputError, match="grey rule"):
        fit_images(torch.zeros(1, 3, 8, 8), SHAPE, grey="red")


def test_gradients_reach_the_colour_image_in_the_shares_of_the_rule():
    images = torch.zeros(1, 3, 1, 1, requires_grad=True)
    FittedTeacher(torch.nn.Flatten(), (1, 1, 1))(images).sum().backward()
    assert images.grad.flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


# --- pipelines -----------------------------------------------------------------------------------------------------------------


def saved_pipeline(folder, kind, classes=None):
    """A colour pipeline of 16x16 pixels with random weights, written by diffusers itself."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=classes,
    )
    pipeline, scheduler = {"ddpm": (DDPMPipeline, DDPMScheduler), "ddim": (DDIMPipeline, DDIMScheduler)}[kind]
    pipeline(unet=unet, scheduler=scheduler(num_train_timesteps=200)).save_pretrained(folder)
    return unet.eval()


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("classes", [None, 5])
def test_a_saved_pipeline_guides_towards_a_grey_teacher(kind, classes, tmp_path):
    saved_pipeline(tmp_path / "pipeline", kind, classes)
    prior = load_prior(tmp_path / "pipeline")
    assert prior.num_classes == classes and prior.image_shape == (3, 16, 16) and prior.num_train_timesteps == 200
    teacher = build("resnet8w4", num_classes=5, in_channels=1).eval()
    labels = torch.arange(10) % 5

    def cross_entropy(guidance):
        images = draw(prior, labels, SHAPE, teacher=teacher, guidance=guidance, num_steps=4).images
        assert images.shape == (10, *SHAPE) and images.abs().max() <= 1
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(teacher(images), labels).item()

    assert cross_entropy(SEPARATE) < cross_entropy(None)


def test_an_online_source_hands_out_images_of_the_teachers_shape(tmp_path):
    saved_pipeline(tmp_path / "pipeline", "ddim")
    teacher = build("resnet8w4", num_classes=5, in_channels=1).eval()
    with diffusion_source(
        load_prior(tmp_path / "pipeline"), SHAPE, teacher=teacher, guidance=SEPARATE, num_steps=2
    ) as source:
        assert source(torch.arange(4), torch.Generator().manual_seed(0)).shape == (4, *SHAPE)


def test_a_class_conditional_prior_is_asked_for_the_labels(tmp_path):
    unet = saved_pipeline(tmp_path / "pipeline", "ddpm", classes=5)
    prior = load_prior(tmp_path / "pipeline")
    x, labels = torch.randn(3, 3, 16, 16), torch.tensor([4, 0, 2])
    with torch.no_grad():
        expected = unet(x, torch.full((3,), 7), class_labels=labels).sample
        other = unet(x, torch.full((3,), 7), class_labels=torch.zeros(3, dtype=torch.int64)).sample
        found = prior.for_labels(labels)(x, 7)
    assert torch.allclose(found, expected, atol=1e-6) and not torch.allclose(found, other, atol=1e-6)
    noise = torch.randn(3, 3, 16, 16)
    images = [
        sample(prior, asked, (3, 16, 16), num_steps=3, initial_noise=noise).images for asked in (labels, 0 * labels)
    ]
    assert not torch.equal(*images)


def test_classes_that_the_prior_does_not_have_need_a_map(tmp_path):
    saved_pipeline(tmp_path / "pipeline", "ddpm", classes=2)
    prior = load_prior(tmp_path / "pipeline")
    labels = torch.tensor([0, 2])
    with pytest.raises(InputError, match="class_map"):
        prior.for_labels(labels)
    prior.class_map = torch.tensor([1, 0, 1])
    assert prior.for_labels(labels).keywords["class_labels"].tolist() == [1, 1]
    with pytest.raises(InputError, match="3 entries"):
        prior.for_labels(torch.tensor([3]))


def test_a_pipeline_with_pickled_weights_is_refused(tmp_path):
    saved_pipeline(tmp_path / "pipeline", "ddpm", classes=2)
    weights = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="can run code"):
        load_prior(tmp_path / "pipeline")
