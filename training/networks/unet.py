"""U-Net (Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015).

With batch normalisation, padded 3×3 convolutions and learned upsampling. Channels double at each of the four scales,
64…1024 as in the paper; ``base_channels`` scales them all.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.training.networks.sizes import crop, pad_to_multiple, size_of


class DoubleConvolution(nn.Sequential):
    """Two 3×3 convolutions, each followed by batch normalisation and ReLU, the last ReLU only if ``activate_last``."""

    def __init__(self, in_channels: int, out_channels: int, *, activate_last: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activate_last else []))


class UpBlock(nn.Module):
    """Double the resolution, put the encoder's features of that scale beside it, convolve twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.convolve = DoubleConvolution(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Combine ``x`` (N, C, h, w) with ``skip`` (N, C/2, 2h, 2w) to (N, C/2, 2h, 2w)."""
        return cast("Tensor", self.convolve(torch.cat([skip, self.up(x)], dim=1)))


class UNet(nn.Module):
    """U-Net for pictures of any size.

    The input is padded with zeros, at its right and bottom, to a multiple of 16, so that every scale halves exactly and
    every skip fits without cropping; the logits are cropped back to the input's size.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
        base_channels: channels at full resolution; 64 in the paper.

    Raises:
        ValueError: if ``base_channels`` is no whole number, or below 1.
    """

    STRIDE: ClassVar[int] = 16

    def __init__(self, num_classes: int, in_channels: int = 3, base_channels: int = 64) -> None:
        super().__init__()
        if not isinstance(base_channels, int) or base_channels < 1:  # cards and configurations may hold anything
            raise ValueError(f"base_channels is {base_channels!r}; expected a whole number from 1")
        c = base_channels
        self.down1 = DoubleConvolution(in_channels, c)
        self.down2 = DoubleConvolution(c, 2 * c)
        self.down3 = DoubleConvolution(2 * c, 4 * c)
        self.down4 = DoubleConvolution(4 * c, 8 * c)
        self.bottleneck = DoubleConvolution(8 * c, 16 * c)
        self.up4 = UpBlock(16 * c, 8 * c)
        self.up3 = UpBlock(8 * c, 4 * c)
        self.up2 = UpBlock(4 * c, 2 * c)
        self.up1 = UpBlock(2 * c, c)
        self.head = DoubleConvolution(c, num_classes, activate_last=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Map pictures (N, C, H, W) to logits (N, num_classes, H, W)."""
        size = size_of(x)
        x = pad_to_multiple(x, self.STRIDE)

        skip1 = self.down1(x)  # c, 1/1
        skip2 = self.down2(F.max_pool2d(skip1, 2))  # 2c, 1/2
        skip3 = self.down3(F.max_pool2d(skip2, 2))  # 4c, 1/4
        skip4 = self.down4(F.max_pool2d(skip3, 2))  # 8c, 1/8
        x = self.bottleneck(F.max_pool2d(skip4, 2))  # 16c, 1/16
        x = self.up4(x, skip4)  # 8c, 1/8
        x = self.up3(x, skip3)  # 4c, 1/4
        x = self.up2(x, skip2)  # 2c, 1/2
        x = self.up1(x, skip1)  # c, 1/1

        return (crop(self.head(x), size),)
