"""Every network against the numbers measured on the public implementations, and the promises all of them keep."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdnb.errors import InputError
from kdnb.models import MODELS, build
from kdnb.models.base import Classifier, feature_shapes
from kdnb.models.frozen import batch_statistics
from tests.parity_handlers.zoo import fill

torch.set_num_threads(1)
FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "zoo.json").read_text())
REFERENCE = FIXTURE["reference"]

NARROW = {"widths": (8, 8, 16, 16)}

# one small member of each family, with the smallest image it is tried on
FAMILIES = {
    "resnet8w8": (9, {}),
    "resnet18": (8, NARROW),
    "resnet50": (8, NARROW),
    "resnet18_imagenet": (33, NARROW),
    "wrn_10_1": (9, {}),
    "vgg8q": (16, {}),
    "lenet5": (32, {}),
    "mobilenetv1": (33, {}),
    "mobilenetv2": (17, {}),
    "mobilenetv2_cmi": (33, {}),
    "shufflenetv1": (16, {"widths": (48, 96, 192)}),
    "shufflenetv2": (16, {"widths": (24, 48, 96, 128)}),
}
family = pytest.mark.parametrize("name", FAMILIES)
normalized = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "lenet5"])  # with batch norms


def make(name, num_classes=5, in_channels=3, **kwargs):
    """A network whose weights and statistics are drawn so that signals neither die nor explode (fresh mobile nets fade to 1e-9)."""
    model = build(name, num_classes, in_channels, **FAMILIES[name][1] | kwargs)
    model.load_state_dict(fill(model.state_dict(), seed=0))
    return model


def images(name, batch=2, channels=3, dtype=torch.float32):
    size = FAMILIES[name][0]
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_what_the_references_measured(name):
    reference = REFERENCE.get(name)
    size, num_classes = (reference["size"], reference["classes"]) if reference else (32, 10)
    with torch.device("meta"):
        model = build(name, num_classes)
        shapes = feature_shapes(model, (3, size, size))
    assert shapes.logits == (num_classes,)
    assert shapes.pooled == (model.head.in_features,) == (shapes.final_map[0],)
    if reference is None:
        return
    assert sum(parameter.numel() for parameter in model.parameters()) == reference["params"]
    assert reference["entries"] in (None, len(model.state_dict()))
    assert reference["pooled"] in (None, *shapes.pooled)
    feats = reference["feats"] or []
    assert [list(shape) for shape in shapes.feats][len(shapes.feats) - len(feats) :] == feats


def test_the_class_count_changes_only_the_head():
    with torch.device("meta"):
        counts = {k: sum(p.numel() for p in build("resnet18", k).parameters()) for k in (10, 100, 200)}
    assert counts[10] == 11_173_962
    assert counts[100] - counts[10] == 90 * 513
    assert counts[200] - counts[100] == 100 * 513


@pytest.mark.parametrize(
    "name", ["resnet8x4", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2_1_5", "resnet50_imagenet"]
)
def test_multiply_accumulates_equal_those_measured_on_the_references(name):
    reference = REFERENCE[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        feature_shapes(build(name, reference["classes"]), (3, reference["size"], reference["size"]))
    assert counter.get_total_flops() == 2 * reference["macs"]


@pytest.mark.parametrize("name", FIXTURE["state_dicts"])
def test_state_dict_has_the_keys_shapes_and_order_of_published_checkpoints(name):
    with torch.device("meta"):
        state = build(name, 100).state_dict()
    assert [[key, *value.shape] for key, value in state.items()] == FIXTURE["state_dicts"][name]


@pytest.mark.parametrize("name", FIXTURE["forward"])
def test_logits_equal_recorded_ones_for_drawn_weights(name):
    model = build(name, 100).double().eval()
    model.load_state_dict(fill(model.state_dict(), seed=11))
    x = torch.from_numpy(np.random.RandomState(11 + 999).standard_normal((2, 3, 32, 32)))
    with torch.no_grad():
        logits = model(x)[:, :3].flatten()
    torch.testing.assert_close(
        logits, torch.tensor(FIXTURE["forward"][name], dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@family
def test_features_come_with_the_same_logits_and_the_head_explains_them(name):
    model, x = make(name).eval(), images(name)
    with torch.no_grad():
        features = model(x, return_features=True)
        assert torch.equal(model(x), features.logits)
        assert torch.equal(model.head(features.pooled), features.logits)
        torch.testing.assert_close(features.final_map.mean((2, 3)), features.pooled)


@family
@pytest.mark.parametrize(("num_classes", "channels", "extra"), [(10, 1, 0), (200, 3, 7), (2, 4, 1)])
def test_any_class_count_channel_count_and_image_size(name, num_classes, channels, extra):
    height, width = FAMILIES[name][0] + extra, FAMILIES[name][0] + extra + 3
    model = make(name, num_classes, channels).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, height, width)).shape == (2, num_classes)


@normalized
def test_batch_statistics_are_used_in_training_and_stored_ones_in_evaluation(name):
    model, x = make(name), images(name, batch=4)
    model.eval()
    with torch.no_grad():
        first, before = model(x), {key: value.clone() for key, value in model.state_dict().items()}
        assert torch.equal(first, model(x))
        assert (first[:2] - model(x[:2])).norm() < 1e-4 * first.norm()  # samples don't see each other
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        model.train()(x)
    counters = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters and all(counter == 1 for counter in counters)  # each layer once a step


@family
def test_gradient_reaches_every_parameter_and_the_image(name):
    model = make(name).double()
    x = images(name, batch=4, dtype=torch.float64).requires_grad_()
    torch.manual_seed(2)
    model(x).pow(2).sum().backward()
    assert x.grad.abs().sum() > 0
    assert [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ] == []


@family
def test_normalisation_inside_equals_normalisation_outside(name):
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    plain, inside = make(name).double().eval(), make(name, mean=mean, std=std).double().eval()
    assert list(inside.state_dict()) == list(plain.state_dict())
    x = images(name, dtype=torch.float64)
    outside = ((x + 1) / 2 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    with torch.no_grad():
        expected = plain(outside)
        assert (inside(x) - expected).norm() < 1e-4 * expected.norm()
        assert (plain(x) - expected).norm() > 0.1 * expected.norm()


@family
def test_channels_last_gives_the_same_logits_and_gradients(name):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = make(name).double().to(memory_format=layout)
        x = images(name, batch=4, dtype=torch.float64).contiguous(memory_format=layout)
        torch.manual_seed(2)  # dropout, where there is any
        logits = model(x)
        logits.square().sum().backward()
        results.append(
            (logits.detach(), model.get_submodule(model.head_name).weight.grad, next(model.parameters()).grad)
        )
    for contiguous, last in zip(*results, strict=True):
        torch.testing.assert_close(contiguous, last, rtol=1e-7, atol=1e-9)


@family
def test_preactivations_become_the_taps_after_a_relu(name):
    model, x = make(name).eval(), images(name)
    with torch.no_grad():
        feats, before = model(x, return_features=True).feats, model.preactivations(x)
    assert [tuple(a.shape) for a in feats] == [tuple(b.shape) for b in before]
    if name.startswith("wrn") or name.startswith("mobilenetv2"):
        return  # their taps carry no ReLU; see test_wrn
    for tap, value in zip(feats, before, strict=True):
        assert tap.min() >= 0
        torch.testing.assert_close(
            tap.sort(dim=1).values, value.relu().sort(dim=1).values
        )  # ShuffleNetV2 shuffles channels after it


@family
@pytest.mark.parametrize("training", [False, True])
def test_one_pass_gives_taps_and_preactivations_and_changes_neither(name, training):
    model, asked, x = make(name).train(training), make(name).train(training), images(name)
    torch.manual_seed(2)  # dropout, where there is any
    plain = model(x, return_features=True)
    torch.manual_seed(2)
    both = asked(x, return_features=True, preactivations=True)
    assert plain.preactivations is None and torch.equal(plain.logits, both.logits)
    assert all(map(torch.equal, plain.feats, both.feats))
    assert all(torch.equal(value, asked.state_dict()[key]) for key, value in model.state_dict().items())
    if not training:
        assert all(map(torch.equal, both.preactivations, model.preactivations(x)))
    same = map(torch.equal, both.feats[1:], both.preactivations[1:])
    assert not any(same) if model.has_preactivations else all(same)


@family
def test_norms_before_the_taps_have_their_channels_and_give_them(name):
    model, x = make(name).eval(), images(name)
    if name.startswith(("mobilenetv2", "shufflenet", "lenet")):
        with pytest.raises(InputError, match="has no batch norm right before the ReLU of every stage"):
            model.tap_norms()
        return
    shapes = feature_shapes(model, x.shape[1:]).feats
    norms = model.tap_norms()
    assert [norm.num_features for norm in norms] == [channels for channels, _, _ in shapes[1:]]
    before = model.preactivations(x)
    norms[-1].bias.data += 1  # nothing but the last pre-activation moves, by as much
    after = model.preactivations(x)
    assert all(map(torch.equal, before[:-1], after[:-1]))
    torch.testing.assert_close(after[-1], before[-1] + 1)


@normalized
def test_statistics_of_the_batch_leave_no_trace(name):
    model, x = make(name).eval(), images(name, batch=4)
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model(x)
    with batch_statistics(model):
        lent = model(x)
    assert not torch.equal(plain, lent) and torch.equal(plain, model(x))
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


@family
def test_half_precision_runs_and_stays_finite(name):
    model, x = make(name).bfloat16().eval(), images(name, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(x)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@family
def test_every_network_is_a_classifier_with_a_linear_head(name):
    model = make(name, num_classes=7)
    assert isinstance(model, Classifier)
    assert model.head.out_features == 7
    assert model.head is model.get_submodule(model.head_name)
