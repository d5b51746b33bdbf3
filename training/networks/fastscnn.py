"""Fast-SCNN (Poudel, Liwicki, Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", 2019).

Made for large pictures in real time: three strided convolutions, shared by both branches, bring the picture to 1/8 at
once; one branch stays there, the other goes on to 1/32 and looks at the whole, and their sum is classified.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.training.networks.convolution import Convolution
from segship.training.networks.sizes import resize, resize_like, size_of


class FastSCNN(nn.Module):
    """Fast-SCNN for pictures of any size.

    In training, the features of both branches are classified too, as in the paper, which weighs those losses 0.4; 1.1 M
    parameters remain afterwards. The pyramid has one mean over the whole map, which batch normalisation cannot train
    on alone: a batch has at least two pictures.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
    """

    STRIDE: ClassVar[int | None] = None  # the pyramid's windows follow from the picture's size; a graph holds them

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.learning_to_downsample = nn.Sequential(
            Convolution(in_channels, 32, stride=2),
            SeparableConvolution(32, 48, stride=2),
            SeparableConvolution(48, 64, stride=2),
        )
        self.global_features = nn.Sequential(
            *bottlenecks(64, 64, stride=2),
            *bottlenecks(64, 96, stride=2),
            *bottlenecks(96, 128, stride=1),
            PyramidPooling(128),
        )
        self.fusion = FeatureFusion(64, 128, 128)
        self.classifier = nn.Sequential(
            SeparableConvolution(128, 128), SeparableConvolution(128, 128), *pixel_classifier(128, num_classes)
        )
        self.auxiliary_downsample = nn.Sequential(Convolution(64, 32), *pixel_classifier(32, num_classes))
        self.auxiliary_global = nn.Sequential(Convolution(128, 32), *pixel_classifier(32, num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map pictures (N, C, H, W) to logits (N, num_classes, H, W); in training, those at 1/8 and 1/32 follow."""
        size = size_of(x)
        detail = self.learning_to_downsample(x)  # 64, 1/8
        context = self.global_features(detail)  # 128, 1/32
        fused = self.fusion(detail, context)  # 128, 1/8
        logits = resize(self.classifier(fused), size)  # 1/8, then 1/1
        if not self.training:
            return (logits,)
        return logits, self.auxiliary_downsample(detail), self.auxiliary_global(context)


class SeparableConvolution(nn.Sequential):
    """Depthwise 3×3 convolution, then a pointwise one, without a non-linearity between them."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(
            Convolution(in_channels, in_channels, stride=stride, groups=in_channels, activate=False),
            Convolution(in_channels, out_channels, 1),
        )


class Bottleneck(nn.Module):
    """MobileNetV2's inverted residual: expand six times, convolve depthwise, project linearly."""

    EXPANSION = 6

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        wide = self.EXPANSION * in_channels
        self.is_residual = stride == 1 and in_channels == out_channels
        self.convolve = nn.Sequential(
            Convolution(in_channels, wide, 1),
            Convolution(wide, wide, stride=stride, groups=wide),
            Convolution(wide, out_channels, 1, activate=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        y = self.convolve(x)
        return cast("Tensor", x + y if self.is_residual else y)


def bottlenecks(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    """Return three bottlenecks, the first of which takes the stride."""
    first = Bottleneck(in_channels, out_channels, stride=stride)
    return [first, Bottleneck(out_channels, out_channels), Bottleneck(out_channels, out_channels)]


class PyramidPooling(nn.Module):
    """PSPNet's pyramid: beside the features, their means over 1, 2², 3² and 6² bins; then one 1×1 convolution."""

    BINS = (1, 2, 3, 6)

    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels // len(self.BINS)
        self.branches = nn.ModuleList(Convolution(channels, branch, 1) for _ in self.BINS)
        self.project = Convolution(channels + len(self.BINS) * branch, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        means = [branch(pool_to_bins(x, bins)) for bins, branch in zip(self.BINS, self.branches, strict=True)]
        return cast("Tensor", self.project(torch.cat([x, *(resize_like(mean, x) for mean in means)], dim=1)))


def pool_to_bins(x: Tensor, bins: int) -> Tensor:
    """Average ``x`` (N, C, H, W) over a grid of ``bins`` × ``bins`` windows, fewer where a side is shorter than that.

    Where the bins do not divide a side, adaptive pooling has windows of several sizes, for which ONNX has no operator.
    Here all have one size: the largest stride that fits, and the kernel that then reaches the last pixel. Where the
    bins divide the sides, these are adaptive pooling's own windows; elsewhere they overlap more than those do.
    """
    sides = size_of(x)
    counts = [min(bins, side) for side in sides]
    strides = [side // count for side, count in zip(sides, counts, strict=True)]
    kernels = [side - (n - 1) * stride for side, n, stride in zip(sides, counts, strides, strict=True)]
    return F.avg_pool2d(x, kernels, strides)


class FeatureFusion(nn.Module):
    """Add the upsampled context to the detail, each after a 1×1 convolution."""

    def __init__(self, detail_channels: int, context_channels: int, out_channels: int) -> None:
        super().__init__()
        self.detail = Convolution(detail_channels, out_channels, 1, activate=False)
        self.context = nn.Sequential(
            Convolution(context_channels, context_channels, dilation=4, groups=context_channels),
            Convolution(context_channels, out_channels, 1, activate=False),
        )

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """Combine ``detail`` (N, D, H, W) and ``context`` (N, C, h, w) to (N, out, H, W)."""
        return F.relu(self.detail(detail) + self.context(resize_like(context, detail)))


def pixel_classifier(channels: int, num_classes: int) -> list[nn.Module]:
    """Return dropout and a 1×1 convolution."""
    return [nn.Dropout(0.1), nn.Conv2d(channels, num_classes, 1)]
