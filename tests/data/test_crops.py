import pytest
import torch
from PIL import Image

from kdnb.data.crops import random_boxes, replay_crops
from kdnb.errors import InputError


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def _pillow(image, box, flip, size):
    """Crop, resize and mirror one (C, H, W) uint8 image with Pillow."""
    H, W = image.shape[1:]
    top, left, height, width = (box.double() * torch.tensor([H, W, H, W])).tolist()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)


@pytest.mark.parametrize("H, W, size", [(40, 52, 24), (52, 40, 24), (17, 9, 32), (64, 64, 16), (60, 12, 16), (5, 7, 5)])
def test_byte_images_give_the_crops_of_pillow_to_the_bit(H, W, size):
    images = torch.randint(256, (3, 3, H, W), generator=_draw(), dtype=torch.uint8)
    boxes = random_boxes(3 * 8, H, W, generator=_draw(1)).view(3, 8, 4)
    flips = torch.rand(3, 8, generator=_draw(2)) < 0.5
    crops = replay_crops(images, boxes, flips, size)
    for b in range(3):
        for m in range(8):
            assert torch.equal(crops[b, m], _pillow(images[b], boxes[b, m], flips[b, m], size))


def test_float_images_give_the_same_crops_without_rounding():
    images = torch.randint(256, (2, 3, 20, 30), generator=_draw(), dtype=torch.uint8)
    boxes = random_boxes(8, 20, 30, generator=_draw(1)).view(2, 4, 4)
    flips = torch.rand(2, 4, generator=_draw(2)) < 0.5
    exact = replay_crops(images, boxes, flips, 12).float()
    assert (replay_crops(images.float(), boxes, flips, 12) - exact).abs().max() < 1.01


def test_the_whole_image_at_its_own_size_comes_back_unchanged_and_mirrored():
    images = torch.randn(1, 2, 6, 6, generator=_draw())
    boxes, flips = torch.tensor([[[0.0, 0, 1, 1], [0.0, 0, 1, 1]]]), torch.tensor([[False, True]])
    crops = replay_crops(images, boxes, flips, 6)
    assert torch.equal(crops[0, 0], images[0]) and torch.equal(crops[0, 1], images[0].flip(-1))


def test_a_crop_sees_nothing_outside_its_box():
    images = torch.full((1, 1, 8, 8), 1e6)
    images[..., 2:5, 3:7] = 1.0
    crops = replay_crops(images, torch.tensor([[[2 / 8, 3 / 8, 3 / 8, 4 / 8]]]), torch.tensor([[False]]), 6)
    assert torch.allclose(crops, torch.ones(1, 1, 1, 6, 6))


def test_halving_averages_with_the_widened_triangle():
    # centre of output 0 is pixel edge 1; distances .5, .5, 1.5 over support 2: weights .75, .75, .25
    row = torch.tensor([0.0, 7.0, 14.0, 0.0]).expand(1, 1, 4, 4)
    crops = replay_crops(row, torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[False]]), 2)
    assert crops[0, 0, 0, 0, 0].item() == pytest.approx((0.75 * 7 + 0.25 * 14) / 1.75)


def test_boxes_lie_inside_the_image_on_whole_pixels_within_the_asked_areas():
    H, W = 40, 52
    boxes = random_boxes(2000, H, W, scale=(0.2, 0.6), generator=_draw()).double()
    pixels = boxes * torch.tensor([H, W, H, W])
    assert (pixels - pixels.round()).abs().max() < 1e-4
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    area, aspect = boxes[:, 2] * boxes[:, 3], pixels[:, 3] / pixels[:, 2]
    assert 0.15 < area.min() < 0.25 and 0.55 < area.max() < 0.65 and area.mean().item() == pytest.approx(0.4, abs=0.01)
    assert 0.7 < aspect.min() and aspect.max() < 1.45
    assert torch.corrcoef(torch.stack([area, aspect.log()]))[0, 1].abs() < 0.1  # drawn independently


def test_positions_reach_every_border():
    boxes = random_boxes(2000, 8, 8, scale=(0.3, 0.5), generator=_draw())
    assert (boxes[:, 0] == 0).any() and (boxes[:, 1] == 0).any()
    assert (boxes[:, 0] + boxes[:, 2] == 1).any() and (boxes[:, 1] + boxes[:, 3] == 1).any()


def test_where_no_box_fits_the_central_one_is_taken():
    boxes = random_boxes(
        4, 2, 40, scale=(1.0, 1.0), generator=_draw()
    )  # a full-area box of ratio 3/4 to 4/3 is higher than the image
    assert torch.allclose(boxes, torch.tensor([0.0, 18 / 40, 1.0, 3 / 40]).expand(4, 4))


def test_the_same_generator_gives_the_same_boxes():
    assert torch.equal(random_boxes(5, 9, 9, generator=_draw(3)), random_boxes(5, 9, 9, generator=_draw(3)))


def test_ranges_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="scale"):
        random_boxes(1, 8, 8, scale=(0.5, 0.2))
    with pytest.raises(InputError, match="boxes"):
        replay_crops(torch.zeros(2, 1, 4, 4), torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool), 4)
