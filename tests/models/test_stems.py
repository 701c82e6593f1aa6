"""The stem of CUB-200: shapes at 224 pixels, names of the state dict, and networks that are refused."""

import pytest
import torch

from kdnb import methods
from kdnb.errors import InputError
from kdnb.models import MODELS, build, find
from kdnb.models.base import feature_shapes
from kdnb.models.resnet_imagenet import ResNetImageNet
from kdnb.models.stems import replace_stem

torch.set_num_threads(1)

# heights of the taps and of the final map at 224 pixels
HEIGHTS = {
    "resnet8x4_cub": ([112, 112, 56, 28], 28),
    "resnet32x4_cub": ([112, 112, 56, 28], 28),
    "resnet50_cub": ([112, 112, 56, 28, 14], 14),
    "vgg8_cub": ([112, 56, 28, 14, 14], 14),
    "vgg13_cub": ([112, 56, 28, 14, 14], 14),
    "shufflenetv1_cub": ([112, 56, 28, 14], 14),
    "mobilenetv2_cub": ([56, 56, 28, 14, 7], 7),
}
cub = pytest.mark.parametrize("name", HEIGHTS)


def first_convolution(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))


def test_the_table_holds_the_networks_of_the_published_pairs():
    assert {name for name, spec in MODELS.items() if spec.cub} == set(HEIGHTS)


@cub
def test_maps_at_224_pixels(name):
    with torch.device("meta"):
        shapes = feature_shapes(build(name, 200), (3, 224, 224))
    assert [shape[1] for shape in shapes.feats] == HEIGHTS[name][0]
    assert shapes.final_map[1:] == (HEIGHTS[name][1],) * 2


@cub
def test_only_the_first_convolution_differs_from_the_network_for_small_images(name):
    with torch.device("meta"):
        plain, model = build(name.removesuffix("_cub"), 200), build(name, 200)
    new = first_convolution(model)
    assert (new.kernel_size, new.stride, new.padding, new.bias) == ((7, 7), (2, 2), (3, 3), None)
    stem = next(key for key, module in model.named_modules() if module is new)
    assert new.out_channels == first_convolution(plain).out_channels
    shapes = {key: value.shape for key, value in plain.state_dict().items() if not key.startswith(f"{stem}.")}
    assert {key: value.shape for key, value in model.state_dict().items() if key != f"{stem}.weight"} == shapes


def test_mobilenet_pools_maxima_right_after_the_stem_without_new_names():
    model = build("mobilenetv2_cub", 10)
    assert model.state_dict().keys() == build("mobilenetv2", 10).state_dict().keys()
    image = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    stem = model.conv1[0]
    convolved = torch.nn.functional.conv2d(image, stem.weight, stride=2, padding=3)
    assert convolved.shape[2:] == (10, 10)
    assert torch.equal(stem(image), torch.nn.functional.max_pool2d(convolved, 3, 2, 1))


@pytest.mark.parametrize("name", ["resnet8x4_cub", "vgg8_cub", "shufflenetv1_cub", "mobilenetv2_cub"])
def test_gradients_reach_the_new_stem_and_the_image(name):
    torch.manual_seed(0)
    model, images = build(name, 5), torch.randn(2, 3, 64, 64, requires_grad=True)
    model(images).pow(2).sum().backward()
    assert images.grad.abs().sum() > 0
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_pair_of_the_published_table_is_distilled_region_by_region():
    torch.manual_seed(0)
    teacher, student = build("resnet8x4_cub", 5).eval(), build("shufflenetv1_cub", 5)
    method = methods.build("sdd_kd", scales=[1, 2, 4])
    method.bind(student, teacher, (3, 224, 224), 5, batch_size=2, epochs=1, num_images=2)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = build("resnet8x4_cub", 10).conv1.weight
    torch.manual_seed(3)
    assert torch.equal(first, build("resnet8x4_cub", 10).conv1.weight)
    assert first.std().item() == pytest.approx((2 / (49 * 32)) ** 0.5, rel=0.05)


def test_any_network_for_small_images_can_have_the_suffix():
    assert find("WRN-40-2_cub") == find("wrn_40_2")._replace(description="wide ResNet 40-2, CUB-200 stem", cub=True)
    assert find("ShuffleV1_cub") == MODELS["shufflenetv1_cub"]
    with torch.device("meta"):
        assert feature_shapes(build("wrn_16_1_cub", 10), (3, 224, 224)).final_map == (64, 28, 28)


@pytest.mark.parametrize("name", ["resnet50_imagenet", "mobilenetv1", "mobilenetv2_cmi", "wrn_50_2"])
def test_networks_with_a_stem_for_large_images_are_refused(name):
    with pytest.raises(InputError, match="stem for large images already"):
        find(f"{name}_cub")


def test_an_unknown_name_with_the_suffix_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet8x"):
        find("resnet8x5_cub")


def test_a_stem_of_seven_pixels_is_not_replaced():
    with torch.device("meta"), pytest.raises(InputError, match="ResNetImageNet is for large images already: 7x7"):
        replace_stem(ResNetImageNet(10, stem="imagenet"))
