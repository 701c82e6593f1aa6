"""ReviewKD and OFD: which pairs they take, what they compare, what they leave alone."""

import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses import hierarchical_context_loss, ofd_loss, ofd_margin
from kdnb.methods import build
from kdnb.methods.ofd import connector
from kdnb.models import build as build_model
from kdnb.models.foreign import FeatureTap

K, B, IMAGE = 10, 4, (3, 32, 32)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(B, *IMAGE, generator=GENERATOR) * 2 - 1, torch.randint(K, (B,), generator=GENERATOR)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pair(student="resnet8w4", teacher="resnet8w8"):
    torch.manual_seed(0)
    return build_model(student, K), build_model(teacher, K).eval()


def features(model):
    return model(IMAGES, return_features=True, preactivations=True)


@pytest.mark.parametrize(
    ("student", "teacher", "parameters"),
    [
        ("resnet8x4", "resnet32x4", 1_808_774),
        ("wrn_16_2", "wrn_40_2", 453_830),
        ("shufflenetv2", "resnet32x4", 4_195_718),
        ("vgg8", "vgg13", 9_847_560),
    ],
)
def test_reviewkd_has_the_parameters_measured_on_released_code(student, teacher, parameters):
    with torch.device("meta"):
        networks = build_model(student, 100), build_model(teacher, 100)
        assert build("reviewkd").bind(*networks, IMAGE, 100, 64).extra_parameters() == parameters


def test_reviewkd_step_by_step():
    student, teacher = pair()
    method = build("reviewkd", feature_weight=2.0, warmup=10).bind(student, teacher, IMAGE, K, B).eval()
    seen, known = features(student), features(teacher)
    review = method.review.fusions
    residue, losses = None, []
    maps = [seen.pooled[:, :, None, None], *reversed(seen.feats[1:])]
    targets = [known.pooled[:, :, None, None], *reversed(known.preactivations[1:])]
    for fusion, feat_s, target in zip(review, maps, targets, strict=True):
        x = fusion.conv1(feat_s)
        if residue is not None:
            up = residue.repeat_interleave(x.shape[2] // residue.shape[2], 2)
            up = up.repeat_interleave(x.shape[3] // residue.shape[3], 3)
            a = torch.sigmoid(F.conv2d(torch.cat([x, up], 1), fusion.att_conv[0].weight, fusion.att_conv[0].bias))
            x = a[:, 0, None] * x + a[:, 1, None] * up
        residue = x
        losses.append(hierarchical_context_loss(fusion.conv2(x), target))
    terms = method(seen, known, LABELS, 5)
    assert terms["feature"].item() == pytest.approx(2 * 0.5 * sum(losses).item(), rel=1e-5)
    assert method(seen, known, LABELS, 20)["feature"].item() == pytest.approx(2 * sum(losses).item(), rel=1e-5)


def test_reviewkd_takes_maps_of_other_sizes():
    student, teacher = pair("shufflenetv1", "resnet8w8")  # half as large at every stage
    method = build("reviewkd").bind(student, teacher, IMAGE, K, B)
    sum(method(features(student), features(teacher), LABELS, 1).values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_mobilenetv2_is_a_student_of_reviewkd_and_no_teacher():
    student, teacher = pair("mobilenetv2", "vgg8q")
    terms = build("reviewkd").bind(student, teacher, IMAGE, K, B)(features(student), features(teacher), LABELS, 1)
    assert terms["feature"].isfinite()
    for name in ("reviewkd", "ofd"):
        with pytest.raises(InputError, match="the teacher, MobileNetV2, has none"):
            build(name).bind(teacher, student, IMAGE, K, B)


@pytest.mark.parametrize("name", ["reviewkd", "ofd"])
def test_a_wrapped_network_is_no_teacher(name):
    student, teacher = pair()
    with pytest.raises(
        InputError, match="the teacher, ResNet, has none that are known; networks of kdnb.models.MODELS do"
    ):
        build(name).bind(student, FeatureTap(teacher, ["layer1", "layer2", "layer3"]), IMAGE, K, B)


def test_unequal_stages_are_named_by_both_numbers():
    for name in ("reviewkd", "ofd"):
        with pytest.raises(InputError, match="the student has 3 stages, the teacher 4"):
            build(name).bind(*pair("resnet8w4", "vgg8q"), IMAGE, K, B)


def test_ofd_refuses_a_teacher_whose_stages_do_not_end_in_a_batch_norm():
    with pytest.raises(InputError, match="ShuffleNetV2 has no batch norm right before the ReLU of every stage"):
        build("ofd").bind(*pair("resnet8w4", "shufflenetv2"), IMAGE, K, B)


def test_ofd_adds_stages_with_doubling_weights_on_maps_before_their_relu():
    student, teacher = pair()
    teacher.layer2[-1].bn2.bias.data.normal_()
    method = build("ofd", feature_weight=0.5).bind(student, teacher, IMAGE, K, B).eval()
    seen, known = features(student), features(teacher)
    expected = 0.0
    for index, share in enumerate((0.25, 0.5, 1.0)):
        bn = getattr(teacher, f"layer{index + 1}")[-1].bn2
        margin = ofd_margin(bn.bias, bn.weight)
        assert torch.equal(getattr(method, f"margin{index}"), margin)
        connected = method.connectors[index](seen.preactivations[index + 1])
        expected += share * ofd_loss(connected, known.preactivations[index + 1], margin).item()
    assert method(seen, known, LABELS, 1)["feature"].item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_ofd_pools_a_teacher_map_that_is_larger():
    student, teacher = pair("shufflenetv1", "wrn_10_1")
    terms = build("ofd").bind(student, teacher, IMAGE, K, B)(features(student), features(teacher), LABELS, 1)
    assert terms["feature"].isfinite()


def test_ofd_connectors_start_with_the_published_deviation_and_count():
    torch.manual_seed(0)
    assert connector(64, 256)[0].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    with torch.device("meta"):
        networks = build_model("resnet8x4", 100), build_model("resnet32x4", 100)
        method = build("ofd").bind(*networks, IMAGE, 100, 64)
    assert method.extra_parameters() == sum(channels**2 + 2 * channels for channels in (64, 128, 256))
