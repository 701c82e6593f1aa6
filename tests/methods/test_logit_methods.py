"""Methods that compare logits: the loop's terms are the losses with their weights and warm-ups."""

from types import SimpleNamespace

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import (
    ce_loss,
    dkd_per_sample,
    kd_loss,
    mlld_loss,
    mlld_loss_released,
    region_logits,
    sdd_dkd_loss,
    sdd_kd_loss,
    standardize,
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
