"""A UNet of diffusers that works at half the resolution or less: fast enough to train as a prior on one CPU core.

Importing this module imports diffusers (seconds); `kdnb.generators.diffusion` does so only when a prior is built or loaded.
"""

from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor
from torch.nn import functional as F


class CompactUNet(ModelMixin, ConfigMixin):
    """`diffusers.UNet2DModel` between a pixel-unshuffle and a pixel-shuffle.

        y = shuffle_r(UNet(unshuffle_r(x), t)),   unshuffle_r: (B, C, H, W) -> (B, r^2 C, H/r, W/r)

    No pixel is lost, and every convolution runs on r^2 times fewer positions. With widths (32, 32) and r = 2 a 16x16 prior has 269k
    parameters and a training step costs half of what the same UNet costs at full resolution. Normalisation is GroupNorm: nothing
    depends on the batch or on the mix of time steps in it.

    Args:
        sample_size: H = W, pixels; divisible by shuffle * 2^(len(widths) - 1).
        in_channels: C.
        shuffle: r, the side of the pixel blocks that become channels.
        widths: channels of each resolution of the UNet, fine to coarse.
        layers: residual blocks per resolution.
        norm_groups: groups of every GroupNorm; divides all widths.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 1,
        shuffle: int = 2,
        widths: tuple[int, ...] = (32, 32),
        layers: int = 1,
        norm_groups: int = 8,
    ):
        super().__init__()
        channels, depth = in_channels * shuffle**2, len(widths)
        self.unet = UNet2DModel(
            sample_size=sample_size // shuffle,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            norm_num_groups=norm_groups,
            add_attention=False,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
        )

    def forward(self, sample: Tensor, timestep: Tensor | int, return_dict: bool = True) -> UNet2DOutput | tuple[Tensor]:
        """(B, C, H, W) noisy images and (B,) or scalar time steps to `.sample` of the images' shape, as all models of diffusers do."""
        blocks = F.pixel_unshuffle(sample, self.config.shuffle)
        output = F.pixel_shuffle(self.unet(blocks, timestep).sample, self.config.shuffle)
        return UNet2DOutput(sample=output) if return_dict else (output,)
