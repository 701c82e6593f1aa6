import math

import pytest
import torch
from torch.nn import functional as F

from kdnb.errors import InputError
from kdnb.losses.soft_labels import (
    CONTEXT,
    DISCARD_EASY,
    DISCARD_HARD,
    POSITIVE,
    CompressedLabels,
    compress_labels,
    ferkd_partition,
    ferkd_targets,
    parse_mode,
    restore_labels,
    self_mix,
    soft_cross_entropy,
)

P = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
MODES = ["ori", "hard", "smoothing", "marginal_smoothing_k2", "marginal_renorm_k2"]


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("ori", [0.1, 0.5, 0.05, 0.3, 0.05]),
        ("hard", [0.0, 1, 0, 0, 0]),
        ("smoothing", [0.125, 0.5, 0.125, 0.125, 0.125]),
        ("marginal_smoothing_k2", [0.2 / 3, 0.5, 0.2 / 3, 0.3, 0.2 / 3]),
        ("marginal_renorm_k2", [0, 0.625, 0, 0.375, 0]),
    ],
)
def test_what_comes_back_by_hand(mode, expected):
    assert torch.allclose(restore_labels(compress_labels(P, mode), mode, 5), torch.tensor(expected))


def test_the_best_class_is_stored_first():
    indices, probs = compress_labels(P, "marginal_smoothing_k3")
    assert indices.tolist() == [1, 3, 0] and torch.equal(probs, torch.tensor([0.5, 0.3, 0.1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64])
def test_restored_rows_sum_to_one_for_any_leading_dimensions_and_storage_type(mode, stored):
    probs = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    indices, values = compress_labels(probs, mode)
    restored = restore_labels(CompressedLabels(indices, None if values is None else values.to(stored)), mode, 4000)
    assert restored.shape == (2, 3, 4000) and restored.dtype in (torch.float32, torch.float64)
    assert torch.allclose(
        restored.sum(-1),
        torch.ones(2, 3, dtype=restored.dtype),
        atol=2e-2 if stored == torch.float16 and mode == "ori" else 1e-4,
    )
    assert torch.equal(restored.argmax(-1), probs.argmax(-1))


def test_a_class_beyond_2048_survives_half_precision_storage():
    indices, values = compress_labels(F.one_hot(torch.tensor([3001]), 4000).float(), "smoothing")
    assert restore_labels(CompressedLabels(indices, values.half()), "smoothing", 4000).argmax(-1).item() == 3001


def test_restoring_what_was_restored_changes_nothing():
    for mode in MODES:
        once = restore_labels(compress_labels(P, mode), mode, 5)
        assert torch.allclose(restore_labels(compress_labels(once, mode), mode, 5), once, atol=1e-6)


@pytest.mark.parametrize("mode", ["marginal_renorm", "marginal_smoothing_k0", "smooth", "", "marginal_smoothing_k5 "])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(InputError, match="marginal_smoothing_k5"):
        parse_mode(mode)


def test_a_mode_that_keeps_every_class_is_refused():
    with pytest.raises(InputError, match="keeps 5"):
        compress_labels(P, "marginal_renorm_k5")


def test_labels_of_another_mode_are_refused():
    with pytest.raises(InputError, match="not made with mode"):
        restore_labels(compress_labels(P, "marginal_smoothing_k2"), "marginal_smoothing_k3", 5)
    with pytest.raises(InputError, match="not made with mode"):
        restore_labels(compress_labels(P, "hard"), "smoothing", 5)


def test_soft_cross_entropy_by_hand():
    z = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    targets = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert soft_cross_entropy(z, targets).item() == pytest.approx(-0.5 * math.log(3 / 16), rel=1e-12)
    assert soft_cross_entropy(2 * z, targets, temperature=2.0).item() == pytest.approx(
        -0.5 * math.log(3 / 16), rel=1e-12
    )


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy():
    z, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])
    assert torch.allclose(soft_cross_entropy(z, F.one_hot(y, 3).float()), F.cross_entropy(z, y))


def test_left_out_samples_do_not_count():
    z, q = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.full((4, 3), 1 / 3)
    keep = torch.tensor([True, False, False, True])
    assert torch.allclose(soft_cross_entropy(z, q, keep=keep), soft_cross_entropy(z[keep], q[keep]))


def test_a_batch_left_out_whole_gives_zero_and_zero_gradient():
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = soft_cross_entropy(z, torch.full((2, 3), 1 / 3), keep=torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros(2, 3))


def test_soft_cross_entropy_gradient_reaches_only_the_student():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    q = torch.full((3, 4), 0.25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: soft_cross_entropy(logits, q, 2.0), z)
    soft_cross_entropy(z, q).backward()
    assert q.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_stay_finite(dtype):
    z = (torch.eye(3) * 1e4).to(dtype).requires_grad_()
    loss = soft_cross_entropy(z, torch.eye(3).flip(0))
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_partition_covers_all_confidences_in_order():
    confidence = torch.tensor([0.0, 0.19, 0.2, 0.49, 0.5, 0.9, 0.91, 1.0], dtype=torch.float64)
    expected = [DISCARD_HARD, DISCARD_HARD, CONTEXT, CONTEXT, POSITIVE, POSITIVE, DISCARD_EASY, DISCARD_EASY]
    assert ferkd_partition(confidence, 0.2, 0.5, 0.9).tolist() == expected


@pytest.mark.parametrize(
    "thresholds", [(0.5, 0.2, 0.9), (0.2, 0.2, 0.9), (0.2, 0.5, 1.1), (-0.1, 0.5, 0.9), (float("nan"), 0.5, 0.9)]
)
def test_thresholds_out_of_order_are_refused(thresholds):
    with pytest.raises(InputError, match="low < middle < top"):
        ferkd_partition(torch.tensor([0.5]), *thresholds)


def test_context_crops_get_the_smoothed_truth_and_positives_keep_their_soft_label():
    soft = torch.tensor([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.34, 0.33, 0.33], [0.0, 0.01, 0.99]])
    targets, keep = ferkd_targets(soft, torch.tensor([0, 0, 0, 0]), 0.35, 0.5, 0.9, smoothing=0.2)
    assert keep.tolist() == [True, True, False, False]
    assert torch.allclose(targets[0], torch.tensor([0.8, 0.1, 0.1]))
    assert torch.equal(targets[1], soft[1])


def test_confidence_can_be_that_of_the_true_class():
    soft = torch.tensor([[0.1, 0.9]])
    _, by_maximum = ferkd_targets(soft, torch.tensor([0]), 0.2, 0.5, 0.95)
    _, by_label = ferkd_targets(soft, torch.tensor([0]), 0.2, 0.5, 0.95, by_label=True)
    assert by_maximum.tolist() == [True] and by_label.tolist() == [False]


def _crops():
    crops = (
        torch.arange(3.0).view(1, 3, 1, 1, 1).expand(2, 3, 1, 4, 4).clone()
    )  # crop j of every image is filled with j
    crops[1] += 10
    return crops, F.one_hot(torch.arange(3), 3).float().expand(2, 3, 3)


def test_self_mixup_by_hand_and_never_across_images():
    crops, targets = _crops()
    mixed, mixed_targets = self_mix(crops, targets, torch.tensor([0.75, 0.5]))
    assert torch.allclose(mixed[0, :, 0, 0, 0], torch.tensor([0.25, 1.25, 1.5]))
    assert torch.allclose(mixed[1, :, 0, 0, 0], torch.tensor([10.5, 11.5, 11.0]))
    assert torch.allclose(mixed_targets[0, 0], torch.tensor([0.75, 0.25, 0.0]))


def test_self_cutmix_shares_the_label_by_area():
    crops, targets = _crops()
    mixed, mixed_targets = self_mix(crops, targets, torch.tensor(1.0), box=(1, 0, 2, 2))
    assert (mixed[0, 0] == 1).sum() == 4 and (mixed[0, 0, 0, 1:3, :2] == 1).all()
    assert torch.allclose(mixed_targets[0, 0], torch.tensor([0.75, 0.25, 0.0]))
    assert torch.equal(crops[0, 0], torch.zeros(1, 4, 4))  # the input is left alone


def test_self_mix_refuses_a_crop_as_its_own_partner_and_a_box_outside():
    crops, targets = _crops()
    with pytest.raises(InputError, match="itself"):
        self_mix(crops, targets, torch.tensor(0.5), shift=3)
    with pytest.raises(InputError, match="leaves"):
        self_mix(crops, targets, torch.tensor(0.5), box=(3, 0, 2, 2))
