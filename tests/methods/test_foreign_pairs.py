"""Methods with networks that are not ours: raw modules are wrapped, and what can't work is refused with the reason at bind."""

import copy

import pytest
import torch
from torch import nn

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.methods import build
from kdnb.models import build as build_model
from kdnb.models.foreign import FeatureTap
from kdnb.training.loop import fit
from kdnb.training.recipe import Recipe
from tests.models import own_nets

torch.set_num_threads(1)
IMAGE, K, B = (3, 32, 32), 5, 4
RECIPE = Recipe(epochs=1, batch_size=B, lr=0.01)


def split(n=8):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.rand(n, *IMAGE, generator=generator) * 2 - 1, torch.arange(n) % K)


def bound(name, student, teacher, **hyper):
    return build(name, **hyper).bind(student, teacher, IMAGE, K, B)


@pytest.mark.parametrize("name", ["kd", "dkd", "sdd_kd", "simkd", "fitnet"])
def test_raw_modules_are_trained_as_the_wrapped_ones_are(name):
    torch.manual_seed(0)
    student, teacher = own_nets.plain(K, 3), build_model("resnet8x4", K)
    before = copy.deepcopy(student.state_dict())
    hyper = {"hint": 1} if name == "fitnet" else {}
    found = fit(
        student, split(), split(), RECIPE, method=bound(name, student, teacher, **hyper), teacher=teacher.eval()
    )
    assert 0 <= found.last["top1"] <= 1
    assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_a_raw_teacher_is_read_and_left_as_it_was():
    torch.manual_seed(0)
    student, teacher = build_model("resnet8x4", K), own_nets.Deep(K).eval()
    before = copy.deepcopy(teacher.state_dict())
    fit(student, split(), split(), RECIPE, method=bound("kd", student, teacher), teacher=teacher)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_sdd_refuses_a_head_with_a_hidden_layer_and_names_what_to_do():
    with pytest.raises(
        InputError, match="student's head.*Deep does not allow: its last map, backbone with 32 channels.*scales"
    ):
        bound("sdd_kd", own_nets.Deep(K), build_model("resnet8x4", K))
    bound("sdd_kd", own_nets.Deep(K), build_model("resnet8x4", K), scales=[1])


def test_sdd_refuses_a_named_map_that_does_not_suit_the_head():
    student = FeatureTap(own_nets.plain(K, 3), ["1", "3"], final="1")
    with pytest.raises(InputError, match=r"head \(16 inputs\).*Sequential has 8 channels; name the map"):
        bound("sdd_kd", student, build_model("resnet8x4", K))


def test_feature_methods_refuse_networks_without_maps():
    tokens = own_nets.tokens(K, 3, 32)
    with pytest.raises(InputError, match="hint must be below 0, the number of maps"):
        bound("fitnet", tokens, build_model("resnet8x4", K))
    with pytest.raises(InputError, match="at least 2 feature maps, the student has 0"):
        bound("vid", tokens, build_model("resnet8x4", K))


def test_methods_of_heads_refuse_networks_without_one():
    student = nn.Sequential(nn.Conv2d(3, K, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="student.head`, and Sequential has none"):
        bound("sdd_kd", student, build_model("resnet8x4", K))
    fit(
        student,
        split(),
        split(),
        RECIPE,
        method=bound("kd", student, build_model("resnet8x4", K)),
        teacher=build_model("resnet8x4", K),
    )


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(InputError, match="the student has 6 classes, the data 5"):
        bound("kd", own_nets.plain(6, 3), build_model("resnet8x4", K))
