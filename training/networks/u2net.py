"""U²-Net (Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", 2020).

A U of small Us: each stage is a residual U-block (RSU). The published code writes the blocks RSU7, RSU6, RSU5, RSU4
and RSU4F out one by one; they differ in height, and in whether they pool or dilate, so here they are one block. Module
names are those of the published weights ("stage1.rebnconvin.conv_s1.weight"), kept so that these load.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.training.networks.sizes import resize_like

Width = tuple[int, int]
"""Channels inside a stage, and those of its output."""

SMALL: Width = (16, 64)


class U2Net(nn.Module):
    """U²-Net at its full width.

    Every decoder scale gives a side output, the deepest encoder stage too, and one 1×1 convolution fuses them. All are
    returned, the fused one first, since deep supervision puts a loss on each, with equal weights in the paper; they are
    logits, without a sigmoid.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
    """

    STRIDE: ClassVar[int] = 32

    ENCODER: ClassVar[tuple[Width, ...]] = ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512))
    """Of stage1 (1/1), stage2 (1/2), …"""

    DECODER: ClassVar[tuple[Width, ...]] = ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512))
    """Of stage1d (1/1), stage2d (1/2), …; one stage fewer than the encoder has."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.depth = len(self.ENCODER)
        channels = in_channels
        for number, (mid, out) in enumerate(self.ENCODER, 1):
            self.add_module(f"stage{number}", stage(number, channels, mid, out))
            channels = out
        sides = [channels]
        for number in range(self.depth - 1, 0, -1):
            mid, out = self.DECODER[number - 1]
            skip = self.ENCODER[number - 1][1]
            self.add_module(f"stage{number}d", stage(number, channels + skip, mid, out))
            channels = out
            sides.insert(0, channels)
        for number, channels in enumerate(sides, 1):
            self.add_module(f"side{number}", nn.Conv2d(channels, num_classes, 3, padding=1))
        self.outconv = nn.Conv2d(self.depth * num_classes, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map pictures (N, C, H, W) to logits (N, num_classes, H, W): the fused ones, then scales 1, 2, … each."""
        way_down = [self.get_submodule("stage1")(x)]  # 1/1
        for number in range(2, self.depth + 1):  # 1/2, 1/4, …
            way_down.append(self.get_submodule(f"stage{number}")(pool(way_down[-1])))

        way_up = [way_down[-1]]
        for number in range(self.depth - 1, 0, -1):  # …, 1/2, 1/1
            skip = way_down[number - 1]
            below = resize_like(way_up[0], skip)
            way_up.insert(0, self.get_submodule(f"stage{number}d")(torch.cat([below, skip], dim=1)))

        sides = [self.get_submodule(f"side{number}")(features) for number, features in enumerate(way_up, 1)]
        sides = [resize_like(side, x) for side in sides]  # 1/1
        return self.outconv(torch.cat(sides, dim=1)), *sides


class U2NetP(U2Net):
    """U²-NetP, the small U²-Net: every stage has 64 channels outside and 16 inside."""

    ENCODER = (SMALL,) * 6
    DECODER = (SMALL,) * 5


class U2Net5P(U2Net):
    """U²-NetP with five stages: the smallest of the family.

    This definition is ours, not the paper's: U²-NetP without its sixth stage, so that the dilated fifth, at 1/16, is
    the bottom. Its five sides and the fused output have equal weights in training, like those of the larger ones.
    """

    ENCODER = (SMALL,) * 5
    DECODER = (SMALL,) * 4


class ReBnConv(nn.Module):
    """3×3 convolution, batch normalisation, ReLU; module names of the published weights."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        return cast("Tensor", self.relu_s1(self.bn_s1(self.conv_s1(x))))


class ResidualUBlock(nn.Module):
    """RSU-L: a U-Net of height L on ``mid_channels``, added to its own first convolution.

    With ``dilated`` (RSU-LF) it keeps its resolution and dilates by 1, 2, 4, … in place of pooling.

    Args:
        height: L, the number of convolutions on the way down, the deepest one included.
        in_channels: channels of the input.
        mid_channels: channels inside.
        out_channels: channels of the output.
        dilated: dilate in place of pooling.
    """

    def __init__(
        self, height: int, in_channels: int, mid_channels: int, out_channels: int, *, dilated: bool = False
    ) -> None:
        super().__init__()
        self.height = height
        self.dilated = dilated
        self.rebnconvin = ReBnConv(in_channels, out_channels)
        for level in range(1, height + 1):
            if dilated:
                dilation = 2 ** (level - 1)
            else:
                dilation = 2 if level == height else 1
            channels = out_channels if level == 1 else mid_channels
            self.add_module(f"rebnconv{level}", ReBnConv(channels, mid_channels, dilation))
        for level in range(height - 1, 0, -1):
            dilation = 2 ** (level - 1) if dilated else 1
            channels = out_channels if level == 1 else mid_channels
            self.add_module(f"rebnconv{level}d", ReBnConv(2 * mid_channels, channels, dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        entry = self.rebnconvin(x)

        way_down = [self.get_submodule("rebnconv1")(entry)]
        for level in range(2, self.height):
            x = way_down[-1] if self.dilated else pool(way_down[-1])
            way_down.append(self.get_submodule(f"rebnconv{level}")(x))
        x = self.get_submodule(f"rebnconv{self.height}")(way_down[-1])

        for level in range(self.height - 1, 0, -1):
            skip = way_down[level - 1]
            if not self.dilated and level < self.height - 1:  # the two deepest levels share one resolution
                x = resize_like(x, skip)
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat([x, skip], dim=1))
        return cast("Tensor", x + entry)


def stage(number: int, in_channels: int, mid_channels: int, out_channels: int) -> ResidualUBlock:
    """Return RSU7, RSU6, RSU5 or RSU4 for stages 1…4, and RSU4F below, where there is little left to pool."""
    return ResidualUBlock(max(8 - number, 4), in_channels, mid_channels, out_channels, dilated=number > 4)


def pool(x: Tensor) -> Tensor:
    """Halve the resolution; odd sides round up."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)
