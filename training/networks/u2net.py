"""U²-Net (Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", 2020).

A U of small Us: each stage is a residual U-block (RSU). The published code writes the blocks RSU7, RSU6, RSU5, RSU4
and RSU4F out one by one; they differ in height, and in whether they pool or dilate, so here they are one block. Module
names are those of the published weights ("stage1.rebnconvin.conv_s1.weight"), kept so that these load.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bring ``x`` to the height and width of ``reference``, bilinearly."""
    return F.interpolate(x, size=reference.shape[2:], mode="bilinear", align_corners=False)


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
            x = way_down[-1] if self.dilated else F.max_pool2d(way_down[-1], 2, stride=2, ceil_mode=True)
            way_down.append(self.get_submodule(f"rebnconv{level}")(x))
        x = self.get_submodule(f"rebnconv{self.height}")(way_down[-1])

        for level in range(self.height - 1, 0, -1):
            skip = way_down[level - 1]
            if not self.dilated and level < self.height - 1:  # the two deepest levels share one resolution
                x = resize_like(x, skip)
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat([x, skip], dim=1))
        return cast("Tensor", x + entry)


class U2NetP(nn.Module):
    """U²-NetP, the small U²-Net: every stage has 64 channels outside and 16 inside.

    Six decoder scales give a side output each, and one 1×1 convolution fuses them. For training all seven are
    returned, the fused one first, since deep supervision puts a loss on each; they are logits, without a sigmoid.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        mid, out = 16, 64
        self.stage1 = ResidualUBlock(7, in_channels, mid, out)
        self.stage2 = ResidualUBlock(6, out, mid, out)
        self.stage3 = ResidualUBlock(5, out, mid, out)
        self.stage4 = ResidualUBlock(4, out, mid, out)
        self.stage5 = ResidualUBlock(4, out, mid, out, dilated=True)
        self.stage6 = ResidualUBlock(4, out, mid, out, dilated=True)

        self.stage5d = ResidualUBlock(4, 2 * out, mid, out, dilated=True)
        self.stage4d = ResidualUBlock(4, 2 * out, mid, out)
        self.stage3d = ResidualUBlock(5, 2 * out, mid, out)
        self.stage2d = ResidualUBlock(6, 2 * out, mid, out)
        self.stage1d = ResidualUBlock(7, 2 * out, mid, out)

        for scale in range(1, 7):
            self.add_module(f"side{scale}", nn.Conv2d(out, num_classes, 3, padding=1))
        self.outconv = nn.Conv2d(6 * num_classes, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map pictures (N, C, H, W) to seven logits (N, num_classes, H, W): the fused one, then scales 1…6."""
        stage1 = self.stage1(x)  # 1/1
        stage2 = self.stage2(pool(stage1))  # 1/2
        stage3 = self.stage3(pool(stage2))  # 1/4
        stage4 = self.stage4(pool(stage3))  # 1/8
        stage5 = self.stage5(pool(stage4))  # 1/16
        stage6 = self.stage6(pool(stage5))  # 1/32

        stage5d = self.stage5d(torch.cat([resize_like(stage6, stage5), stage5], dim=1))  # 1/16
        stage4d = self.stage4d(torch.cat([resize_like(stage5d, stage4), stage4], dim=1))  # 1/8
        stage3d = self.stage3d(torch.cat([resize_like(stage4d, stage3), stage3], dim=1))  # 1/4
        stage2d = self.stage2d(torch.cat([resize_like(stage3d, stage2), stage2], dim=1))  # 1/2
        stage1d = self.stage1d(torch.cat([resize_like(stage2d, stage1), stage1], dim=1))  # 1/1

        side1 = self.get_submodule("side1")(stage1d)
        deeper = (stage2d, stage3d, stage4d, stage5d, stage6)
        sides = [resize_like(self.get_submodule(f"side{i}")(stage), side1) for i, stage in enumerate(deeper, 2)]
        return self.outconv(torch.cat([side1, *sides], dim=1)), side1, *sides


def pool(x: Tensor) -> Tensor:
    """Halve the resolution; odd sides round up."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)
