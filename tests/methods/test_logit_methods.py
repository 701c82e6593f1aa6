"""Methods that compare logits: the loop's terms are the losses with their weights and warm-ups."""

import math
from types import SimpleNamespace

import pytest
import torch

from kdnb.data.splits import Split
from kdnb.errors import InputError
from kdnb.losses import (
    ab_per_sample,
    ce_loss,
    class_cka_cost,
    dist_parts,
    dkd_per_sample,
    head_cosine_cost,
    kd_loss,
    lsr,
    mlld_loss,
    mlld_loss_released,
    nkd_parts,
    normkd_dkd_per_sample,
    normkd_per_sample,
    region_logits,
    rld_per_sample,
    sdd_dkd_loss,
    sdd_dkd_lskd_loss_averaged_weights_released,
    sdd_kd_loss,
    sdd_rld_loss,
    self_target_cross_entropy,
    sharpen,
    standardize,
    target_cross_entropy,
    transport_per_sample,
    ttm_loss,
    uskd_non_target,
    uskd_soft_labels,
    uskd_soft_labels_released,
    wttm_loss,
)
from kdnb.methods import build
from kdnb.methods.base import warm_up
from kdnb.models import build as build_model
from kdnb.models.base import Features

GENERATOR = torch.Generator().manual_seed(0)
LOGITS_S, LOGITS_T, STRONG_S, STRONG_T = torch.randn(4, 6, 5, generator=GENERATOR).unbind()
MAP_S, MAP_T = torch.randn(6, 3, 8, 8, generator=GENERATOR), torch.randn(6, 4, 4, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
STUDENT, TEACHER = (Features(z, [], m.mean((2, 3)), m) for z, m in ((LOGITS_S, MAP_S), (LOGITS_T, MAP_T)))


def numbers(terms):
    return {name: term.item() for name, term in terms.items()}


def close(expected):
    return pytest.approx({name: torch.as_tensor(value).item() for name, value in expected.items()}, rel=1e-5)


def test_ce_needs_no_teacher():
    assert numbers(build("ce")(STUDENT, None, LABELS, 1)) == close({"ce": ce_loss(LOGITS_S, LABELS)})


def test_kd_and_lskd_weigh_labels_and_soft_targets():
    ce = ce_loss(LOGITS_S, LABELS)
    assert numbers(build("kd")(STUDENT, TEACHER, LABELS, 1)) == close(
        {"ce": 0.1 * ce, "kd": 0.9 * kd_loss(LOGITS_S, LOGITS_T, 4.0)}
    )
    z = kd_loss(standardize(LOGITS_S), standardize(LOGITS_T), 2.0)
    assert numbers(build("lskd")(STUDENT, TEACHER, LABELS, 1)) == close({"ce": 0.1 * ce, "kd": 9 * z})


@pytest.mark.parametrize(("epoch", "ramp"), [(1, 0.05), (7, 0.35), (20, 1.0), (33, 1.0)])
def test_dkd_warms_up_its_terms_and_not_cross_entropy(epoch, ramp):
    assert warm_up(epoch, 20) == ramp
    tckd, nckd = (part.mean() for part in dkd_per_sample(LOGITS_S, LOGITS_T, LABELS, 4.0))
    expected = {"ce": ce_loss(LOGITS_S, LABELS), "tckd": ramp * tckd, "nckd": 8 * ramp * nckd}
    assert numbers(build("dkd")(STUDENT, TEACHER, LABELS, epoch)) == close(expected)


def test_dkd_lskd_multiplies_both_parts_by_its_weight():
    tckd, nckd = (part.mean() for part in dkd_per_sample(standardize(LOGITS_S), standardize(LOGITS_T), LABELS, 2.0))
    terms = build("dkd_lskd", warmup=0)(STUDENT, TEACHER, LABELS, 1)
    assert numbers(terms) == close({"ce": ce_loss(LOGITS_S, LABELS), "tckd": 9 * tckd, "nckd": 72 * nckd})


def sdd(name, **hyper):
    """An SDD method on two heads of its own."""
    torch.manual_seed(0)
    method = build(name, **hyper)
    student, teacher = (SimpleNamespace(head=torch.nn.Linear(width, 5)) for width in (3, 4))
    method.attach(student, teacher, None, None, 6)
    logits = [
        region_logits(m, net.head.weight, net.head.bias, method.scales)
        for m, net in ((MAP_S, student), (MAP_T, teacher))
    ]
    return method, student, teacher, logits


def test_sdd_applies_both_heads_to_all_regions_of_both_maps():
    method, _, _, logits = sdd("sdd_kd", scales=[1, 2, 4], complementary_weight=3.0)
    expected = {"ce": 0.1 * ce_loss(LOGITS_S, LABELS), "sdd": 0.9 * sdd_kd_loss(*logits, LABELS, 4.0, 3.0)}
    assert numbers(method(STUDENT, TEACHER, LABELS, 1)) == close(expected)


def test_sdd_dkd_and_its_fusion_warm_up():
    method, _, _, logits = sdd("sdd_dkd")
    assert method(STUDENT, TEACHER, LABELS, 5)["sdd"].item() == pytest.approx(
        0.25 * sdd_dkd_loss(*logits, LABELS).item(), rel=1e-5
    )
    method, _, _, logits = sdd("sdd_dkd_lskd")
    fused = sdd_dkd_loss(*logits, LABELS, 9.0, 72.0, 2.0, standardize_logits=True)
    assert method(STUDENT, TEACHER, LABELS, 20)["sdd"].item() == pytest.approx(fused.item(), rel=1e-5)


def test_released_fusions_are_other_numbers_than_the_sound_ones():
    terms = {
        name: sdd(name)[0](STUDENT, TEACHER, LABELS, 20)["sdd"].item()
        for name in ("sdd_dkd_lskd", "sdd_dkd_lskd_released")
    }
    assert terms["sdd_dkd_lskd_released"] == pytest.approx(30 * terms["sdd_dkd_lskd"], rel=1e-5)  # 6 images, 5 regions
    terms = [
        sdd(name)[0](STUDENT, TEACHER, LABELS, 1)["sdd"].item() for name in ("sdd_kd_lskd", "sdd_kd_lskd_released")
    ]
    assert terms[0] != pytest.approx(terms[1], rel=1e-2)


def test_sdd_at_scale_one_is_plain_kd_on_the_ordinary_logits():
    method, *_ = sdd("sdd_kd", scales=[1])
    assert not method.needs_features
    assert method(STUDENT, TEACHER, LABELS, 1)["sdd"].item() == pytest.approx(
        0.9 * kd_loss(LOGITS_S, LOGITS_T).item(), rel=1e-6
    )


def test_sdd_trains_the_students_head_and_not_the_teachers():
    method, student, teacher, _ = sdd("sdd_kd")
    method(STUDENT, TEACHER, LABELS, 1)["sdd"].backward()
    assert student.head.weight.grad.abs().sum() > 0 and teacher.head.weight.grad is None
    assert not list(method.parameters()) and not method.state_dict()


def test_sdd_follows_a_head_that_has_been_trained_since():
    method, student, _, _ = sdd("sdd_kd")
    before = method(STUDENT, TEACHER, LABELS, 1)["sdd"].item()
    student.head.weight.data.add_(1.0)
    assert method(STUDENT, TEACHER, LABELS, 1)["sdd"].item() != before


def test_sdd_must_see_the_whole_image_first():
    with pytest.raises(InputError, match="scales must begin with 1"):
        build("sdd_kd", scales=[2, 4])


def test_a_network_without_a_linear_head_is_refused():
    network = build_model("resnet8w4", 5)
    foreign = torch.nn.Module()
    with pytest.raises(InputError, match="teacher's final linear layer"):
        build("sdd_kd").attach(network, foreign, None, None, 4)


@pytest.mark.parametrize(
    ("name", "loss", "standardized", "base", "kd_weight"),
    [
        ("mlld", mlld_loss, False, 4.0, 0.9),
        ("mlld_released", mlld_loss_released, False, 4.0, 0.9),
        ("mlld_lskd", mlld_loss, True, 2.0, 9.0),
        ("mlld_lskd_released", mlld_loss_released, True, 2.0, 9.0),
    ],
)
def test_mlld_weighs_all_three_levels_alike_and_both_views_in_cross_entropy(name, loss, standardized, base, kd_weight):
    strong_s, strong_t = STUDENT._replace(logits=STRONG_S), TEACHER._replace(logits=STRONG_T)
    kd, of_classes, of_batch = loss(LOGITS_S, STRONG_S, LOGITS_T, STRONG_T, (base, 3, 5, 2, 6), standardized)
    expected = {"ce": 0.1 * (ce_loss(LOGITS_S, LABELS) + ce_loss(STRONG_S, LABELS)), "kd": kd_weight * kd}
    expected |= {"class": kd_weight * of_classes, "batch": kd_weight * of_batch}
    assert numbers(build(name)((STUDENT, strong_s), (TEACHER, strong_t), LABELS, 1)) == close(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rld", lambda: rld_terms(LOGITS_S, LOGITS_T, 4.0, 1.0)),
        ("rld_lskd", lambda: rld_terms(standardize(LOGITS_S), standardize(LOGITS_T), 2.0, 2.0, 9.0)),
        (
            "dist",
            lambda: dict(zip(("inter", "intra"), (2 * part for part in dist_parts(LOGITS_S, LOGITS_T)), strict=True)),
        ),
        ("ttm", lambda: {"kd": 45 * ttm_loss(LOGITS_S, LOGITS_T, 0.1)}),
        ("wttm", lambda: {"kd": 4 * wttm_loss(LOGITS_S, LOGITS_T, 0.2)}),
        ("nkd", lambda: nkd_terms()),
        ("tf_nkd", lambda: {"target": self_target_cross_entropy(LOGITS_S, LABELS)}),
        ("abkd", lambda: {"kd": 32 * ab_per_sample(LOGITS_S, LOGITS_T).mean()}),
        ("normkd_dkd", lambda: normkd_dkd_terms()),
    ],
)
def test_terms_are_the_losses_at_their_published_weights(name, expected):
    terms = build(name)(STUDENT, TEACHER, LABELS, 5)
    assert numbers(terms) == close({"ce": ce_loss(LOGITS_S, LABELS)} | expected())


def rld_terms(logits_s, logits_t, temperature, top_temperature, weight=1.0):
    scd, mcd = rld_per_sample(logits_s, logits_t, LABELS, temperature, top_temperature)
    return {"scd": 0.25 * weight * scd.mean(), "mcd": 0.25 * 8 * weight * mcd.mean()}


def nkd_terms():
    target, others = nkd_parts(LOGITS_S, LOGITS_T, LABELS, 3.0)
    return {"target": target, "non_target": 3.5 * others}


def normkd_dkd_terms():
    tckd, nckd = (part.mean() for part in normkd_dkd_per_sample(LOGITS_S, LOGITS_T, LABELS, 2.0))
    return {"tckd": 0.25 * 4 * tckd, "nckd": 0.25 * 5 * nckd}


def test_normkd_weighs_labels_as_hinton_does():
    loss = 0.9 * normkd_per_sample(LOGITS_S, LOGITS_T, 2.0).mean()
    assert numbers(build("normkd")(STUDENT, TEACHER, LABELS, 1)) == close(
        {"ce": 0.1 * ce_loss(LOGITS_S, LABELS), "kd": loss}
    )


def test_sdd_rld_warms_up_and_its_fusion_standardises_regions():
    method, _, _, logits = sdd("sdd_rld", complementary_weight=3.0)
    plain = sdd_rld_loss(*logits, LABELS, complementary_weight=3.0)
    assert method(STUDENT, TEACHER, LABELS, 5)["sdd"].item() == pytest.approx(0.25 * plain.item(), rel=1e-5)
    method, _, _, logits = sdd("sdd_rld_lskd")
    fused = sdd_rld_loss(*logits, LABELS, 9.0, 72.0, 2.0, 2.0, standardize_logits=True)
    assert method(STUDENT, TEACHER, LABELS, 20)["sdd"].item() == pytest.approx(fused.item(), rel=1e-5)


def test_dskds_dkd_averages_its_weights():
    method, _, _, logits = sdd("sdd_dkd_lskd_dskd_released")
    expected = sdd_dkd_lskd_loss_averaged_weights_released(*logits, LABELS)
    assert method(STUDENT, TEACHER, LABELS, 20)["sdd"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_abkd_released_differs_where_a_power_is_zero():
    sound, released = (
        build(name, beta=0.0)(STUDENT, TEACHER, LABELS, 1)["kd"].item() for name in ("abkd", "abkd_released")
    )
    assert released == pytest.approx(0.8 * sound, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "labels_of"), [("uskd", uskd_soft_labels), ("uskd_released", uskd_soft_labels_released)]
)
def test_uskd_learns_from_a_head_on_the_last_stage_but_one(name, labels_of):
    torch.manual_seed(0)
    method, stages = build(name, alpha=2.0, beta=3.0, mu=4.0), [torch.randn(6, c, 4, 4) for c in (2, 3, 7)]
    method.attach(None, None, Features((5,), [tuple(stage.shape[1:]) for stage in stages], (7,), (7, 4, 4)), None, 6)
    middle = stages[1].requires_grad_()
    weak = middle.mean((2, 3)) @ method.weak_head.weight.T + method.weak_head.bias
    expected = {
        "ce": ce_loss(LOGITS_S, LABELS),
        "target": 2 * self_target_cross_entropy(LOGITS_S, LABELS, power=2),
        "non_target": 3 * uskd_non_target(LOGITS_S, labels_of(LOGITS_S, weak, LABELS), LABELS),
        "weak": 4 * lsr(weak, LABELS, 0.1),
    }
    terms = method(STUDENT._replace(feats=stages), None, LABELS, 1)
    assert numbers(terms) == close(expected) and method.extra_parameters() == (3 + 1) * 5
    terms["weak"].backward()
    assert middle.grad.abs().sum() > 0


def test_ctkd_starts_at_its_temperature_and_pulls_it_ever_harder_against_the_student():
    method = build("ctkd")
    temperature = 1 + 20 / (1 + math.exp(-1))
    expected = {"ce": 0.1 * ce_loss(LOGITS_S, LABELS), "kd": 0.9 * kd_loss(LOGITS_S, LOGITS_T, temperature)}
    assert numbers(method(STUDENT, TEACHER, LABELS, 1)) == close(expected)
    pulls = []
    for epoch in (1, 5, 10, 40):
        method.zero_grad()
        method(STUDENT, TEACHER, LABELS, epoch)["kd"].backward()
        pulls.append(method.theta.grad.item())
    assert pulls[1] / pulls[3] == pytest.approx(0.5) and pulls[2] == pulls[3] and abs(pulls[0]) < abs(pulls[1])
    # a step against this gradient raises the loss
    before = method(STUDENT, TEACHER, LABELS, 40)["kd"].item()
    method.theta.data -= 0.1 * math.copysign(1, pulls[3])
    assert method(STUDENT, TEACHER, LABELS, 40)["kd"].item() > before
    z = kd_loss(standardize(LOGITS_S), standardize(LOGITS_T), temperature)
    assert build("ctkd_lskd")(STUDENT, TEACHER, LABELS, 1)["kd"].item() == pytest.approx(9 * z.item(), rel=1e-5)


def wkd(name="wkd_l", epochs=None, **hyper):
    """A WKD-L method on the digits' shapes of the module's logits: five classes, a teacher that shows its images' first channels."""
    head = torch.nn.Linear(4, 5)
    teacher = torch.nn.Module()
    teacher.head = head
    teacher.forward = lambda x, return_features: Features(None, [x[:, :1], x], None, None)
    method = build(name, **hyper)
    method.epochs = epochs
    method.attach(None, teacher, Features((5,), [], (), ()), None, 6)
    return method, teacher


@pytest.mark.parametrize(
    ("epochs", "epoch", "decay"), [(None, 200, 1.0), (240, 150, 1.0), (240, 195, 0.5), (240, 240, 0.0)]
)
def test_wkd_l_decays_its_transport_and_never_its_target(epochs, epoch, decay):
    method, _ = wkd(epochs=epochs, kd_weight=7.0)
    cost = (1 - torch.eye(5)) * (1 - math.exp(-1))  # before a pass over the data all classes are equally far
    carried = transport_per_sample(LOGITS_S, LOGITS_T, LABELS, cost).mean()
    terms = numbers(method(STUDENT, TEACHER, LABELS, epoch))
    assert terms["transport"] == pytest.approx(7 * decay * carried.item(), rel=1e-5)
    assert terms["target"] == pytest.approx(target_cross_entropy(LOGITS_S, LOGITS_T, LABELS).item(), rel=1e-5)


def test_wkd_l_compares_classes_at_all_places_of_the_last_map():
    method, teacher = wkd(sharpness=2.0, images_per_class=2)
    images = torch.randn(15, 4, 2, 3, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])  # class 4 has no images
    method.prepare(None, teacher, Split(images, labels))
    rows = [images[labels == k][:2].permute(0, 2, 3, 1).reshape(12, 4) for k in range(4)]
    expected = sharpen(class_cka_cost(torch.stack([*rows, torch.zeros(12, 4)])), 2.0)
    assert torch.allclose(method.cost, expected) and (method.cost[4, :4] == sharpen(torch.ones(4), 2.0)).all()
    assert method.state_dict().keys() == {"cost"}
    few, _ = wkd(images_per_class=500)
    few.prepare(None, teacher, Split(images[:10], labels[:10]))  # classes 2 and 3 have two images
    assert torch.allclose(few.cost, sharpen(class_cka_cost(torch.stack([*rows, torch.zeros(12, 4)]))))


def test_wkd_l_refuses_images_without_labels():
    method, teacher = wkd()
    with pytest.raises(InputError, match="have no labels"):
        method.prepare(None, teacher, Split(torch.zeros(2, 4, 2, 2)))


def test_wkd_l_head_asks_the_classifier_and_no_image():
    method, teacher = wkd("wkd_l_head")
    method.prepare(None, teacher, None)
    assert torch.allclose(method.cost, sharpen(head_cosine_cost(teacher.head.weight)))
    assert not method.cost.requires_grad
