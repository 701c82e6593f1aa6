"""Every method of the table on one pair of small networks."""

import copy
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.methods import METHODS, build, parse_method
from kdnb.models import build as build_model
from kdnb.models.base import Features

K, B, IMAGE = 10, 8, (3, 16, 16)
ALL = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def networks(dtype=torch.float32):
    torch.manual_seed(0)
    student, teacher = build_model("resnet8w4", K), build_model("resnet8w8", K)
    return student.to(dtype).train(), teacher.to(dtype).eval()


def views(method, model, images):
    outputs = [model(images + 0.1 * view, return_features=True, preactivations=True) for view in range(method.views)]
    return outputs[0] if method.views == 1 else tuple(outputs)


def setup(name, dtype=torch.float32, **hyper):
    student, teacher = networks(dtype)
    method = build(name, **hyper).bind(student, teacher, IMAGE, K, B, epochs=40, num_images=B)
    method.prepare(student, teacher, Split(*batch(dtype=dtype)))
    return method.train(), student, teacher


def batch(size=B, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, *IMAGE, generator=generator).mul(2).sub(1).to(dtype), torch.randint(
        K, (size,), generator=generator
    )


def ask(method, features_s, features_t, labels, epoch=1):
    first = features_s if method.views == 1 else features_s[0]
    places = {"indices": torch.arange(len(first.logits)), "generator": torch.Generator().manual_seed(2)}
    return method(features_s, features_t, labels, epoch, **places if method.needs_indices else {})


def terms_of(method, student, teacher, images, labels, epoch=1):
    with torch.no_grad():
        features_t = views(method, teacher, images) if method.needs_teacher else None
    return ask(method, views(method, student, images), features_t, labels, epoch)


@ALL
def test_terms_are_finite_scalars_that_train_student_and_adapters_only(name):
    method, student, teacher = setup(name)
    images, labels = batch()
    features_t = views(method, teacher, images)  # with a graph on purpose: the loss must cut it
    terms = ask(method, views(method, student, images), features_t, labels)
    assert terms and all(term.shape == () and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.conv1.parameters())
    for parameter in method.parameters():
        assert parameter.grad is not None or not parameter.requires_grad


@ALL
def test_the_last_incomplete_batch_works(name):
    method, student, teacher = setup(name)
    terms = terms_of(method, student, teacher, *batch(3))
    assert terms and all(term.isfinite() for term in terms.values())


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_with_gradients(name, dtype):
    method, student, teacher = setup(name, dtype)
    images, labels = batch(dtype=dtype)
    loss = sum(terms_of(method, student, teacher, images, labels, epoch=20).values())
    # a sum over images and regions has float16 gradients of its own size; its training clips them
    (loss / 40 if name == "sdd_dkd_lskd_released" else loss).backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in student.conv1.parameters())


@ALL
def test_autocast_changes_the_loss_by_little(name):
    exact = sum(terms_of(*setup(name), *batch()).values())
    fresh = setup(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(terms_of(*fresh, *batch()).values())
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_of_ten_thousand_stay_finite(name, dtype):
    method, student, teacher = setup(name)
    images, labels = batch()

    def extreme(features, sign):
        logits = torch.full_like(features.logits, -1e4)
        logits[torch.arange(B), (labels + (sign < 0)) % K] = 1e4
        return features._replace(logits=logits.to(dtype).requires_grad_(sign > 0), final_map=features.final_map * 1e4)

    def both(model, sign):
        features = views(method, model, images)
        return tuple(extreme(view, sign) for view in features) if method.views == 2 else extreme(features, sign)

    features_s = both(student, 1)
    loss = sum(ask(method, features_s, both(teacher, -1), labels, 20).values())
    loss.backward()
    assert loss.isfinite()
    for view in features_s if method.views == 2 else [features_s]:
        assert view.logits.grad is None or view.logits.grad.isfinite().all()


@ALL
def test_needs_features_tells_the_truth(name):
    method, student, teacher = setup(name)
    images, labels = batch()
    features = views(method, teacher, images)
    bare = [
        view._replace(feats=[], final_map=None, preactivations=None)
        for view in ([features] if isinstance(features, Features) else features)
    ]
    # any error will do: what matters is that the maps are missed
    with pytest.raises(Exception) if method.needs_features else nullcontext():  # noqa: B017
        assert ask(method, views(method, student, images), bare[0] if method.views == 1 else tuple(bare), labels)


@ALL
def test_needs_labels_tells_the_truth(name):
    hyper = {"ce_weight": 0.0} if "ce_weight" in build(name).hyper and build(name).needs_teacher else {}
    method, student, teacher = setup(name, **hyper)
    with pytest.raises(Exception) if method.needs_labels else nullcontext():  # noqa: B017
        assert all(term.isfinite() for term in terms_of(method, student, teacher, batch()[0], None).values())


@ALL
def test_binding_leaves_networks_and_their_modes_alone(name):
    student, teacher = networks()
    student.layer1.eval()
    before = copy.deepcopy(student.state_dict())
    method = build(name).bind(student, teacher, IMAGE, K, B, num_images=B)
    assert student.training and not student.layer1.training and not teacher.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    owned = {id(tensor) for model in (student, teacher) for tensor in [*model.parameters(), *model.buffers()]}
    assert not owned & {id(tensor) for tensor in [*method.parameters(), *method.buffers()]}


@ALL
def test_a_method_saved_and_loaded_gives_the_same_terms(name):
    method, student, teacher = setup(name)
    images, labels = batch()
    terms_of(method, student, teacher, images, labels)  # moves running statistics
    torch.manual_seed(9)
    other = build(name, **method.hyper).bind(student, teacher, IMAGE, K, B, epochs=40, num_images=B)
    other.load_state_dict(method.state_dict())
    student.eval()
    first, second = (terms_of(each.eval(), student, teacher, images, labels) for each in (method, other))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@ALL
def test_the_table_agrees_with_the_class(name):
    method = build(name)
    assert (method.views, method.needs_teacher) == (METHODS[name].views, METHODS[name].needs_teacher)
    assert build(name, **method.hyper).hyper == method.hyper
    assert type(method).__doc__


@ALL
def test_every_number_is_validated(name):
    for key, value in build(name).hyper.items():
        wrong = [] if isinstance(value, list) else -1.0
        if key == "extra_temperatures":
            wrong = [3.0, 0.0]
        with pytest.raises(InputError):
            build(name, **{key: wrong})


def test_an_unknown_method_or_hyper_parameter_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'sdd_kd'"):
        build("sddkd")
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        build("kd", temprature=2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kd", ("kd", {})),
        ("dkd beta:2 warmup:0", ("dkd", {"beta": 2, "warmup": 0})),
        ("sdd_kd scales:1", ("sdd_kd", {"scales": [1]})),
        (" mlld  extra_temperatures:3,5.5 ", ("mlld", {"extra_temperatures": [3, 5.5]})),
    ],
)
def test_a_line_of_a_parameter_file_is_a_method_with_hyper_parameters(text, expected):
    assert parse_method(text) == expected
    build(parse_method(text)[0], **parse_method(text)[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kdd",
        "kd 2",
        "kd temperature",
        "kd temperature=2",
        "kd temperature:",
        "kd temperature:True",
        "kd temperature:print(1)",
        "kd temperature:1,2",
        "kd temperature:1 temperature:2",
        "kd :2",
        "kd temperature:'4'",
        "kd temperature:" + "(" * 500,
    ],
)
def test_a_line_of_another_form_is_refused(text):
    with pytest.raises(InputError):
        build(parse_method(text)[0], **parse_method(text)[1])


def test_a_network_with_other_classes_is_refused_with_both_numbers():
    student, _ = networks()
    with pytest.raises(InputError, match="teacher has 7 classes, the data 10"):
        build("kd").bind(student, build_model("resnet8w8", 7), IMAGE, K, B)


def test_a_missing_teacher_is_refused_only_where_one_is_needed():
    student, _ = networks()
    with pytest.raises(InputError, match="distils from a teacher"):
        build("kd").bind(student, None, IMAGE, K, B)
    assert build("ce").bind(student, None, IMAGE, K, B).extra_parameters() == 0


def test_the_table_is_read_without_importing_torch():
    code = "import sys, kdnb.methods; assert kdnb.methods.METHODS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
