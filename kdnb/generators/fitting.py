"""Bring a prior and a teacher together that disagree on channels or size: the images are adapted, the networks stay as they are.

The prior is sampled in its own shape. Whatever the teacher sees, and whatever a student is trained on, is fitted to the teacher's
shape by one stated rule, which guidance differentiates.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdnb.errors import InputError, check_name

# weights of red, green and blue in grey; luma as in ITU-R BT.601
GREY = {"luma": (0.299, 0.587, 0.114), "mean": (1 / 3, 1 / 3, 1 / 3)}


def fit_images(images: Tensor, shape: tuple[int, int, int], grey: str = "luma") -> Tensor:
    """Images in another number of channels and another size.

        3 -> 1 channels:   y = sum_c a_c x_c,  a from `GREY`;     1 -> 3 channels:   y_c = x
        H -> H' pixels:    bilinear, with the filter widened to the stride where the image shrinks

    Args:
        images: (N, C, H, W) in [-1, 1]; gradients flow.
        shape: (C', H', W').
        grey: a rule of `GREY`. The weights of each add to 1, so black stays black, white stays white, and [-1, 1] is kept.
    Returns:
        (N, C', H', W'); the images themselves where nothing is to be changed.
    Raises:
        InputError: an unknown rule, or channels other than equal, 3 to 1 and 1 to 3.
    """
    check_name("grey rule", grey, GREY)
    channels, *size = shape
    if images.shape[1] != channels:
        if {images.shape[1], channels} != {1, 3}:
            raise InputError(
                f"images of {images.shape[1]} channels can't be fitted to {channels}; only 3 to 1 and 1 to 3 can"
            )
        if channels == 1:
            weights = images.new_tensor(GREY[grey]).view(1, 3, 1, 1)
            images = (images * weights).sum(dim=1, keepdim=True)
        else:
            images = images.expand(-1, 3, -1, -1)
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return images


class FittedTeacher(nn.Module):
    """A teacher that takes images of any shape that `fit_images` can fit to its own; (B, C, H, W) to (B, K).

    Args:
        teacher: a classifier of images of `shape`.
        shape, grey: of `fit_images`.
    """

    def __init__(self, teacher: nn.Module, shape: tuple[int, int, int], grey: str = "luma"):
        super().__init__()
        channels, height, width = shape
        self.teacher, self.shape, self.grey = teacher, (channels, height, width), grey
        self.train(teacher.training)

    def forward(self, images: Tensor, **kwargs) -> Tensor:
        return self.teacher(fit_images(images, self.shape, self.grey), **kwargs)


def native_shape(prior, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that a prior makes; `shape` for a prior that names none."""
    return getattr(prior, "image_shape", None) or tuple(shape)
