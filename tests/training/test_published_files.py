"""Teachers and priors as others publish them, through the path that every notebook takes: `teacher_checkpoint` and `prior_folder`."""

import pytest
import torch

import kdnb
from kdnb.data import load
from kdnb.errors import InputError
from kdnb.generators.diffusion import build_prior
from kdnb.models import build
from kdnb.runner.plan import plan
from kdnb.studies.prior import DiffusionPrior, trained_prior
from kdnb.training.evaluation import predict_logits
from kdnb.training.teachers import teacher_for


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 3, 32, 32, generator=generator)
    return kdnb.load((images, torch.arange(24) % 7), test=(images[:14], torch.arange(14) % 7))


def _torchvision(entry):
    import torchvision

    return getattr(torchvision.models, entry)(num_classes=7)


def _timm(entry):
    return pytest.importorskip("timm", reason="the extra timm is not installed").create_model(entry, num_classes=7)


FILES = {
    # teacher in a parameter file, the network whose weights were saved, and what the file holds beside them
    "Fast-AD": ("resnet34", lambda: build("resnet34", 7), lambda w: {"epoch": 200, "model_state_dict": w}),
    "CMI, AEAHL-RG": ("wrn40_2", lambda: build("wrn_40_2", 7), lambda w: {"state_dict": w, "best_acc1": 94.8}),
    "AEAHL-RG's mobilenetv2": ("mobilenetv2_cmi", lambda: _torchvision("mobilenet_v2"), lambda w: {"state_dict": w}),
    "lenet5": ("lenet5", lambda: build("lenet5", 7), lambda w: w),
    "torchvision": ("torchvision:vgg11_bn", lambda: _torchvision("vgg11_bn"), lambda w: w),
    "timm": ("timm:mobilenetv2_100", lambda: _timm("mobilenetv2_100"), lambda w: w),
}


@pytest.mark.parametrize("form", FILES)
def test_a_published_teacher_answers_as_where_it_was_saved(form, pictures, tmp_path):
    name, make, wrap = FILES[form]
    torch.manual_seed(3)
    saved = make().eval()
    torch.save(wrap(saved.state_dict()), tmp_path / "teacher.pth")
    teacher = teacher_for(name, pictures, str(tmp_path / "teacher.pth"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pictures.spec.mean, pictures.spec.std))
    with torch.no_grad():
        expected = saved(((pictures.test.images + 1) / 2 - mean) / std)
    assert torch.allclose(predict_logits(teacher.model, pictures.test.images), expected, atol=1e-4, rtol=1e-4)
    assert teacher.top1 == pytest.approx((expected.argmax(1) == pictures.test.labels).float().mean().item())


def test_lenet5_refuses_images_that_are_too_small():
    with pytest.raises(InputError, match="lenet5 needs images of 32x32 or more, got 28x28"):
        build("lenet5", 10, 1)(torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict"])
def test_a_prior_is_read_from_a_file_of_weights(wrapper, tmp_path):
    data = load("digits", 8)
    torch.manual_seed(1)
    model = build_prior("compact_unet", 1, 8).eval()
    weights = model.state_dict()
    torch.save({wrapper: weights, "epoch": 5} if wrapper else weights, tmp_path / "prior.pth")
    prior, losses = trained_prior(
        data, steps=1, batch_size=2, lr=1e-3, architecture="compact_unet", folder=str(tmp_path / "prior.pth")
    )
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert losses == [] and torch.equal(prior.epsilon(x, 400), DiffusionPrior(model).epsilon(x, 400))
    with pytest.raises(InputError, match="file prior.pth is not of unet of 1x8x8"):
        trained_prior(data, steps=1, batch_size=2, lr=1e-3, architecture="unet", folder=str(tmp_path / "prior.pth"))


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def test_code_in_a_prior_is_never_run(tmp_path):
    torch.save({"model": {"a": Payload(tmp_path / "ran")}}, tmp_path / "prior.pth")
    with pytest.raises(InputError, match="could run code; it is not loaded"):
        trained_prior(load("digits", 8), steps=1, batch_size=2, lr=1e-3, folder=str(tmp_path / "prior.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("notebook", ["02_synthesis", "03_fast_ad", "06_bfa_attack"])
def test_a_prior_that_can_not_serve_is_refused_before_a_kernel_starts(notebook, tmp_path):
    folder = tmp_path / "prior"
    build_prior("compact_unet", 2, 8).save_pretrained(folder)
    with pytest.raises(InputError, match="makes images of 2 channels, which can't be fitted to 1"):
        plan(notebook, "quick", {"prior_folder": str(folder)})
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin can run code when opened and is not read"):
        plan(notebook, "quick", {"prior_folder": str(folder)})
    with pytest.raises(InputError, match="prior_folder nowhere is not a folder, and no file of weights either"):
        plan(notebook, "quick", {"prior_folder": str(tmp_path / "nowhere")})
    (tmp_path / "prior.pth").write_bytes(b"")
    assert plan(notebook, "quick", {"prior_folder": str(tmp_path / "prior.pth")})
