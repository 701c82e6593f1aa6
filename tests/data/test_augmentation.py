import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from kdnb.data.augmentation import BLACK, STRONG_OPERATIONS, _cutout, apply_operations, augment, strong_augment
from kdnb.errors import InputError

NAMES = list(STRONG_OPERATIONS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(B=5, C=3, H=20, W=26, seed=0):
    """Whole grey levels with some structure: ramps and noise, one image of a single level."""
    noise = torch.rand(B, C, H, W, generator=generator(seed)) * 120
    levels = (noise + torch.linspace(20, 110, W)).round()
    levels[0] = 77.0
    return levels


# --- crop and flip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (3, True), (0, False)])
def test_augment_equals_a_loop_that_pads_cuts_and_mirrors_one_image_at_a_time(padding, flip):
    images = torch.rand(8, 3, 6, 7, generator=generator()) * 2 - 1
    draws = generator(4)
    mirrored = torch.rand(8, 1, generator=draws) < 0.5 if flip else torch.zeros(8, 1, dtype=torch.bool)
    offsets = (
        torch.randint(0, 2 * padding + 1, (2, 8, 1), generator=draws)
        if padding
        else torch.zeros(2, 8, 1, dtype=torch.int64)
    )
    expected = []
    for image, mirror, top, left in zip(images, mirrored.flatten(), *offsets.flatten(1), strict=True):
        canvas = torch.full((3, 6 + 2 * padding, 7 + 2 * padding), BLACK)
        canvas[:, padding : padding + 6, padding : padding + 7] = image
        crop = canvas[:, top : top + 6, left : left + 7]
        expected.append(crop.flip(2) if mirror else crop)
    assert torch.equal(augment(images, padding, flip, generator(4)), torch.stack(expected))


def test_augment_without_padding_and_flip_returns_the_images_as_they_are():
    images = torch.rand(3, 1, 4, 4)
    assert augment(images, 0, False) is images


def test_augment_never_mirrors_where_flips_are_not_allowed():
    ramp = torch.arange(5.0).expand(64, 1, 5, 5)
    found = augment(ramp, 1, False, generator())
    inner = found[:, 0, 2, 1:4]
    assert (inner.diff(dim=1) > 0).all()


# --- strong operations ---------------------------------------------------------------------------------------------------------


def pillow(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """The same operation by Pillow on one image (C, H, W) of levels."""
    array = image.permute(1, 2, 0).byte().numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    W, H = picture.size
    affine = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, magnitude * W, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, magnitude * H),
    }
    if name in affine:
        result = picture.transform(picture.size, Image.Transform.AFFINE, affine[name], Image.Resampling.NEAREST)
    elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
        result = getattr(ImageEnhance, name)(picture).enhance(magnitude)
    else:
        result = {
            "AutoContrast": lambda: ImageOps.autocontrast(picture),
            "Equalize": lambda: ImageOps.equalize(picture),
            "Identity": lambda: picture,
            "Posterize": lambda: ImageOps.posterize(picture, int(magnitude)),
            "Rotate": lambda: picture.rotate(magnitude),
            "Solarize": lambda: ImageOps.solarize(picture, magnitude),
        }[name]()
    array = np.array(result)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).float()


# largest difference in grey levels; the geometric ones instead may differ in 2 % of the pixels, whose source lies on a pixel border
LEVELS = {
    "Equalize": 0,
    "Identity": 0,
    "Posterize": 0,
    "Solarize": 0,
    "AutoContrast": 1,
    "Brightness": 1,
    "Color": 1,
    "Contrast": 1,
    "Sharpness": 1,
}


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_gives_what_pillow_gives_on_single_images(name, C):
    levels = pictures(C=C)
    low, high = STRONG_OPERATIONS[name]
    for share in (0.0, 0.2, 0.5, 0.77, 0.999):
        magnitude = low + share * (high - low)
        found = apply_operations(levels, torch.full((5,), NAMES.index(name)), torch.full((5,), magnitude))
        expected = torch.stack([pillow(image, name, magnitude) for image in levels])
        if name in LEVELS:
            assert (found - expected).abs().max() <= LEVELS[name]
        else:
            assert ((found - expected).abs() > 0).float().mean() <= 0.02


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Identity"])
def test_each_operation_changes_an_image_and_leaves_its_neighbour_alone(name):
    levels = pictures(B=2, seed=3).roll(1, 0)  # the first image has structure
    low, high = STRONG_OPERATIONS[name]
    operation = torch.tensor([NAMES.index(name), NAMES.index("Identity")])
    found = apply_operations(levels, operation, torch.full((2,), low + 0.2 * (high - low)))
    assert not torch.equal(found[0], levels[0])
    assert torch.equal(found[1], levels[1])


def test_operations_work_on_a_mixed_batch_as_on_each_image_alone():
    levels = pictures(B=14, seed=5)
    operation = torch.arange(14)
    low, high = torch.tensor(list(STRONG_OPERATIONS.values())).unbind(1)
    magnitude = low + 0.3 * (high - low)
    alone = [apply_operations(levels[i : i + 1], operation[i : i + 1], magnitude[i : i + 1]) for i in range(14)]
    assert torch.equal(apply_operations(levels, operation, magnitude), torch.cat(alone))


def test_posterize_and_solarize_by_hand():
    levels = torch.tensor([0.0, 17.0, 128.0, 255.0]).view(1, 1, 1, 4).expand(2, 1, 3, 4)
    operation = torch.tensor([NAMES.index("Posterize"), NAMES.index("Solarize")])
    found = apply_operations(levels, operation, torch.tensor([4.9, 128.0]))
    assert found[0, 0, 0].tolist() == [0, 16, 128, 240]  # four bits stay
    assert found[1, 0, 0].tolist() == [0, 17, 127, 0]


def test_cutout_fills_a_square_with_the_published_colour_and_cuts_it_at_the_border():
    levels = torch.zeros(2, 3, 8, 8)
    uniform = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.5, 0.0]])[..., None]  # side 4; at the centre, at the corner
    found = _cutout(levels, uniform)
    assert found[0, :, 2:6, 2:6].flatten(1).unique(dim=1).flatten().tolist() == [125, 123, 114]
    assert (found[0, 0] > 0).sum() == 16
    assert (found[1, 0] > 0).sum() == 4 and found[1, 0, 1, 1] == 125
    grey = _cutout(torch.zeros(1, 1, 8, 8), uniform[:, :1])
    assert grey.unique().tolist() == [0, 123]


def test_cutout_of_no_size_changes_nothing():
    levels = pictures()
    assert torch.equal(_cutout(levels, torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1).expand(3, 5, 1)), levels)


# --- the whole -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [1, 3])
def test_strong_augment_is_a_function_of_the_generator_and_stays_in_range(C):
    images = pictures(B=40, C=C) / 127.5 - 1
    first, again, other = (strong_augment(images, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= -1 and first.max() <= 1
    levels = (first + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4  # every value is one of 256


def test_strong_augment_leaves_its_input_alone_and_keeps_half_precision():
    images = (pictures() / 127.5 - 1).half()
    copy = images.clone()
    assert strong_augment(images, generator()).dtype == torch.half
    assert torch.equal(images, copy)


def test_strong_augment_draws_every_operation_with_replacement(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "kdnb.data.augmentation.apply_operations", lambda levels, operation, magnitude: seen.append(operation) or levels
    )
    strong_augment(torch.zeros(2000, 1, 4, 4), generator())
    first, second = seen
    assert first.unique().tolist() == second.unique().tolist() == list(range(14))
    assert 0.04 < (first == second).float().mean() < 0.11  # 1 / 14 = 0.071 where both draws are free


def test_strong_augment_refuses_images_that_are_neither_grey_nor_rgb():
    with pytest.raises(InputError, match="1 or 3 channels, got 2"):
        strong_augment(torch.zeros(1, 2, 8, 8))


def test_one_channel_images_keep_plain_strides():
    """Ambiguous strides send narrow convolutions down the channels_last path, which crashes torch 2.15 on a CPU."""
    assert augment(torch.zeros(2, 1, 4, 6), 1, True).stride() == (24, 24, 6, 1)
