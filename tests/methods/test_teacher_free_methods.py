"""Smoothed labels, and what is refused; what every method must do is tested in test_methods.py."""

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import lsr, lsr_released
from kdnb.methods import build
from tests.material import method_loss

GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(6, 10, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 3, 9, 9])


@pytest.mark.parametrize("name, loss", [("lsr", lsr), ("lsr_released", lsr_released)])
def test_smoothed_labels_are_the_whole_loss(name, loss):
    assert torch.allclose(method_loss(name, Z, None, Y), loss(Z, Y))
    assert torch.allclose(method_loss(name, Z, None, Y, smoothing=0.3), loss(Z, Y, 0.3))


def test_a_patriarch_that_counts_more_classes_than_there_are_is_refused_before_training():
    from kdnb.models import build as build_model

    with pytest.raises(InputError, match="num_top"):
        build("tolerant_patriarch", num_top=5).bind(build_model("resnet8w4", 3), None, (3, 16, 16), 3, 8)
