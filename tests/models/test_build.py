"""Names, aliases and refusals of the table."""

import subprocess
import sys

import pytest
import torch

from kdnb.errors import InputError
from kdnb.models import ALIASES, MODELS, build, find


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("ResNet18", "resnet18"),
        ("ResNet50", "resnet50"),
        ("MobileNetV2", "mobilenetv2"),
        ("MobileNetV2_1_0", "mobilenetv2_1_0"),
        ("MobileNetV2_Imagenet", "mobilenetv2_cmi"),
        ("ShuffleV1", "shufflenetv1"),
        ("ShuffleV2", "shufflenetv2"),
        ("ShuffleV2_1_5", "shufflenetv2_1_5"),
        ("wrn40_2", "wrn_40_2"),
        ("WRN-40-2", "wrn_40_2"),
        ("wrn_50_2", "wrn_50_2_imagenet"),
    ],
)
def test_spellings_of_the_repositories_name_our_networks(given, canonical):
    assert find(given) == MODELS[canonical]


def test_any_valid_wide_resnet_can_be_named():
    assert find("wrn_22_4").kwargs == {"depth": 22, "width": 4}
    with torch.device("meta"):
        assert build("wrn_22_4", 10).head.in_features == 256


def test_small_quick_networks_have_the_widths_of_their_names():
    widths = lambda name: [p.shape[0] for key, p in build(name, 10, 1).named_parameters() if "conv1.weight" in key]  # noqa: E731
    assert widths("resnet8w8") == [8, 8, 16, 32]
    assert widths("resnet8w4") == [4, 4, 8, 16]
    assert sum(p.numel() for p in build("resnet8", 10, 1).parameters()) == 77_754
    assert sum(p.numel() for p in build("vgg8q", 10, 1).parameters()) == 246_762


def test_aliases_lead_to_the_table_and_hide_nothing():
    assert set(ALIASES.values()) <= set(MODELS)
    assert not set(ALIASES) & set(MODELS)


def test_the_plain_name_is_the_small_image_stem_and_the_original_one_has_its_own():
    assert build("resnet18", 10).conv1.kernel_size == (3, 3)
    assert build("resnet18_imagenet", 10).conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet8x5", "num_classes": 10}, "did you mean 'resnet8x"),
        ({"name": "wrn_15_2", "num_classes": 10}, r"6n \+ 4.*got 15"),
        ({"name": "wrn_16_0", "num_classes": 10}, "width factor.*got 0"),
        ({"name": "resnet8", "num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"name": "resnet8", "num_classes": 10, "in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"name": "resnet8", "num_classes": 10, "mean": (0.5, 0.5, 0.5)}, "both mean and std"),
        ({"name": "resnet8", "num_classes": 10, "mean": (0.5,), "std": (0.5,)}, "each of the 3 channels, got 1"),
        ({"name": "resnet8", "num_classes": 10, "in_channels": 1, "mean": (0.5,), "std": (0.0,)}, "std must be > 0"),
        (
            {"name": "resnet8", "num_classes": 10, "in_channels": 1, "mean": (0.5,), "std": (0.5, 0.5)},
            "mean has 1 channels but std has 2",
        ),
        ({"name": "resnet8", "num_classes": 10, "depth": 10}, r"6n \+ 2.*got 10"),
        ({"name": "resnet18", "num_classes": 10, "depth": 20}, "unknown ResNet depth '20'"),
        ({"name": "resnet18", "num_classes": 10, "stem": "cifr"}, "did you mean 'cifar'"),
        ({"name": "vgg8", "num_classes": 10, "depth": 9}, "unknown VGG depth '9'"),
    ],
)
def test_bad_requests_are_refused_with_what_is_allowed(arguments, message):
    with pytest.raises(InputError, match=message):
        build(**arguments)


def test_importing_the_table_does_not_import_torch():
    code = "import sys, kdnb.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
