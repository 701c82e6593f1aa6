import math

import pytest
import torch

from kdnb.errors import InputError
from kdnb.losses import pkt_loss, relative_distances, rkd_losses, similarity_rows, sp_loss

GENERATOR = torch.Generator().manual_seed(0)
POOLED_S = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
POOLED_T = torch.randn(4, 5, generator=GENERATOR, dtype=torch.float64)
LOSSES = {
    "rkd": lambda s, t: sum(rkd_losses(s, t)),
    "pkt": pkt_loss,
    "sp": sp_loss,
}
every = pytest.mark.parametrize("name", LOSSES)


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def distances(rows):
    d = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for y in rows] for x in rows]
    positive = [value for row in d for value in row if value > 0]
    return [[value * len(positive) / sum(positive) for value in row] for row in d]


def cosine(a, b):
    norm = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def angles(rows):
    def towards(i, j):
        return [b - a for a, b in zip(rows[i], rows[j], strict=True)]

    n = range(len(rows))
    return [cosine(towards(i, j), towards(i, k)) for i in n for j in n for k in n]


def test_rkd_from_its_equations():
    distance, angle = rkd_losses(3 * POOLED_S, POOLED_T)
    s, t = POOLED_S.tolist(), POOLED_T.tolist()
    pairs = zip(sum(distances(s), []), sum(distances(t), []), strict=True)
    assert distance.item() == pytest.approx(sum(huber(a - b) for a, b in pairs) / 16)
    triples = zip(angles(s), angles(t), strict=True)
    assert angle.item() == pytest.approx(sum(huber(a - b) for a, b in triples) / 64)


def test_rkd_distances_by_hand():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    differences = rows[None] - rows[:, None]
    assert relative_distances(differences).tolist() == [[0, 1], [1, 0]]
    three = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2, mean 2; squares 1, 9, 4, mean 14 / 3
    differences = three[None] - three[:, None]
    assert relative_distances(differences)[0].tolist() == pytest.approx([0, 0.5, 1.5])
    assert relative_distances(differences, squared=True)[0].tolist() == pytest.approx([0, 3 / 14, 27 / 14])


def test_rkd_sees_neither_scale_nor_shift_nor_rotation():
    turned = torch.linalg.qr(torch.randn(5, 5, generator=GENERATOR, dtype=torch.float64)).Q
    assert sum(rkd_losses(2 * POOLED_T @ turned + 1, POOLED_T)).item() == pytest.approx(0, abs=1e-12)


def test_rkd_keeps_close_images_of_large_features_apart_in_float32():
    rows = torch.tensor(
        [[1000.0, 0.0], [1000.25, 0.0], [1000.0, 0.5]]
    )  # ||a||^2 - 2 ab + ||b||^2 loses a quarter in a million
    assert rkd_losses(rows, rows.double())[0].item() == pytest.approx(0, abs=1e-10)


def test_rkd_of_one_image_is_zero():
    one = torch.ones(1, 3, requires_grad=True)
    loss = sum(rkd_losses(one, torch.ones(1, 4)))
    loss.backward()
    assert loss.item() == 0 and one.grad.abs().sum() == 0


@every
@pytest.mark.parametrize(
    "rows", [torch.ones(4, 3), torch.zeros(4, 3), torch.tensor([[1.0, 0, 0]] * 2 + [[0, 0, 0]] * 2)]
)
def test_twins_and_zeros_give_finite_losses_and_moderate_gradients(name, rows):
    rows = rows.clone().requires_grad_()
    loss = LOSSES[name](rows, POOLED_T.float())
    loss.backward()
    assert loss.isfinite() and rows.grad.isfinite().all() and rows.grad.abs().max() < 1e3
    assert LOSSES[name](POOLED_S.float(), rows).isfinite()


def test_pkt_from_its_equation():
    rows = []
    for pooled in (POOLED_S.tolist(), POOLED_T.tolist()):
        similar = [[(cosine(a, b) + 1) / 2 for b in pooled] for a in pooled]
        rows.append([value / sum(row) for row in similar for value in row])
    expected = sum(q * math.log(q / p) for p, q in zip(*rows, strict=True)) / 16
    assert pkt_loss(POOLED_S, POOLED_T, eps=1e-15).item() == pytest.approx(expected)


def test_pkt_by_hand():
    # cosines 1 and 0: similarities 1 and 1/2, rows 2/3 and 1/3; the student's are 1/2 and 1/2
    loss = pkt_loss(torch.ones(2, 3), torch.eye(2))
    expected = 2 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_vector_of_zeros_is_as_like_to_all_as_a_right_angle():
    assert similarity_rows(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist()[0] == pytest.approx([0.5, 0.5])


def test_sp_by_hand():
    # Gram matrices [[1, 0], [0, 4]] and all ones: rows (1, 0), (0, 1) against (1, 1) / sqrt 2
    loss = sp_loss(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]]), torch.ones(2, 1, 1, 1))
    half = math.sqrt(0.5)
    assert loss.shape == () and loss.item() == pytest.approx(2 * ((1 - half) ** 2 + half**2) / 4)


def test_sp_takes_maps_of_any_two_shapes_and_no_rotation_of_a_feature_space_matters():
    maps = torch.randn(4, 2, 3, 3, generator=GENERATOR, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(18, 18, generator=GENERATOR, dtype=torch.float64)).Q
    assert sp_loss(maps.flatten(1) @ turned, maps).item() == pytest.approx(0, abs=1e-15)


@every
def test_a_perfect_student_costs_nothing_and_another_something(name):
    assert (
        LOSSES[name](POOLED_T, POOLED_T).item() == pytest.approx(0, abs=1e-12)
        and LOSSES[name](POOLED_S, POOLED_T) > 1e-4
    )


@every
def test_gradients_are_right_and_reach_the_student_only(name):
    pooled_s, pooled_t = POOLED_S.clone().requires_grad_(), POOLED_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, POOLED_T), pooled_s)
    LOSSES[name](pooled_s, pooled_t).backward()
    assert pooled_t.grad is None and pooled_s.grad.abs().sum() > 0


@every
def test_half_precision_is_widened_and_autocast_kept_out(name):
    exact = LOSSES[name](POOLED_S, POOLED_T).item()
    large = (POOLED_S.half() * 1000).requires_grad_()
    loss = LOSSES[name](large, POOLED_T.half())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.02) and large.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert LOSSES[name](POOLED_S.float(), POOLED_T.float()).item() == pytest.approx(exact, rel=1e-4)


@every
def test_batches_of_two_sizes_are_refused(name):
    with pytest.raises(InputError, match="must see one batch, got 3 and 4"):
        LOSSES[name](POOLED_S[:3], POOLED_T)
