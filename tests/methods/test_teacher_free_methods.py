"""The methods give exactly the losses of `kdnb.losses`; what every method must do is tested in test_methods.py."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import teacher_free, tolerant
from kdnb.methods import build
from kdnb.models.base import Features

GENERATOR = torch.Generator().manual_seed(0)
Z, T = torch.randn(2, 6, 10, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 3, 9, 9])


def _features(logits):
    return Features(logits, [], None, None)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lsr", teacher_free.lsr(Z, Y)),
        ("lsr_released", teacher_free.lsr_released(Z, Y)),
        ("tfkd_self", teacher_free.tf_kd_self(Z, T, Y)),
        ("tfkd_self_released", teacher_free.tf_kd_self_released(Z, T, Y)),
        ("tfkd_reg", teacher_free.tf_kd_reg(Z, Y)),
        ("tfkd_reg_released", teacher_free.tf_kd_reg_released(Z, Y)),
        ("tolerant_patriarch", tolerant.patriarch_loss(Z, Y)),
        ("tolerant", tolerant.generation_loss(Z, T, Y)),
    ],
)
def test_terms_sum_to_the_published_loss_at_the_published_weights(name, expected):
    method = build(name)
    teacher = _features(T) if method.needs_teacher else None
    assert torch.allclose(sum(method(_features(Z), teacher, Y, 1).values()), expected)


@pytest.mark.parametrize(
    "name, hyper, expected",
    [
        ("lsr", {"smoothing": 0.3}, teacher_free.lsr(Z, Y, 0.3)),
        (
            "tfkd_self",
            {"temperature": 2.0, "ce_weight": 0.4, "kd_weight": 0.6},
            teacher_free.tf_kd_self(Z, T, Y, 2.0, 0.6),
        ),
        (
            "tfkd_reg_released",
            {"temperature": 2.0, "correct_prob": 0.8, "multiplier": 3.0},
            teacher_free.tf_kd_reg_released(Z, Y, 2.0, 0.1, 0.8, 3.0),
        ),
        ("tolerant_patriarch", {"ce_weight": 0.2, "num_top": 3}, tolerant.patriarch_loss(Z, Y, 0.2, 3)),
    ],
)
def test_hyper_parameters_reach_the_loss(name, hyper, expected):
    method = build(name, **hyper)
    assert torch.allclose(sum(method(_features(Z), _features(T), Y, 1).values()), expected)


def test_a_patriarch_that_counts_more_classes_than_there_are_is_refused_before_training():
    from kdnb.models import build as build_model

    with pytest.raises(InputError, match="num_top"):
        build("tolerant_patriarch", num_top=5).bind(build_model("resnet8w4", 3), None, (3, 16, 16), 3, 8)
