"""BiSeNet V2 (Yu et al., "Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation", 2021).

Two branches see the picture: a wide, shallow one keeps the detail at 1/8, a narrow, deep one finds the meaning at 1/32.
Each then guides the other. Booster heads along the deep branch help it to learn, and are left out afterwards.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.training.networks.convolution import Convolution
from segship.training.networks.sizes import resize, resize_like, size_of


class BiSeNetV2(nn.Module):
    """BiSeNet V2 for pictures of any size.

    In training, four booster heads classify the semantic branch's features too; the paper adds their losses with
    weight 1. They have 0.3 M parameters, and 3.4 M remain afterwards, of which the head's 1024 channels make 1.2 M. The
    context is one mean over the whole map, which batch normalisation cannot train on alone: a batch has at least two
    pictures.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
    """

    STRIDE: ClassVar[int] = 32

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            Convolution(in_channels, 64, stride=2),  # 1/2
            Convolution(64, 64),
            Convolution(64, 64, stride=2),  # 1/4
            Convolution(64, 64),
            Convolution(64, 64),
            Convolution(64, 128, stride=2),  # 1/8
            Convolution(128, 128),
            Convolution(128, 128),
        )
        self.stem = Stem(in_channels, 16)
        self.stage3 = nn.Sequential(GatherExpand(16, 32, stride=2), GatherExpand(32, 32))
        self.stage4 = nn.Sequential(GatherExpand(32, 64, stride=2), GatherExpand(64, 64))
        self.stage5 = nn.Sequential(GatherExpand(64, 128, stride=2), *(GatherExpand(128, 128) for _ in range(3)))
        self.context = ContextEmbedding(128)
        self.aggregate = GuidedAggregation(128)
        self.head = segmentation_head(128, 1024, num_classes)
        self.boosters = nn.ModuleList(segmentation_head(channels, 128, num_classes) for channels in (16, 32, 64, 128))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map pictures (N, C, H, W) to logits (N, num_classes, H, W).

        In training, those of the boosters follow, at 1/4, 1/8, 1/16 and 1/32: enlarging them would take longer than the
        network itself, and tell it nothing new.
        """
        size = size_of(x)
        detail = self.detail(x)  # 128, 1/8
        stage2 = self.stem(x)  # 16, 1/4
        stage3 = self.stage3(stage2)  # 32, 1/8
        stage4 = self.stage4(stage3)  # 64, 1/16
        stage5 = self.stage5(stage4)  # 128, 1/32
        semantic = self.context(stage5)  # 128, 1/32
        logits = resize(self.head(self.aggregate(detail, semantic)), size)  # 1/8, then 1/1
        if not self.training:
            return (logits,)
        stages = (stage2, stage3, stage4, stage5)
        return logits, *(booster(stage) for booster, stage in zip(self.boosters, stages, strict=True))


class Stem(nn.Module):
    """Quarter the resolution in two ways at once, by convolution and by pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.entry = Convolution(in_channels, out_channels, stride=2)
        self.convolve = nn.Sequential(
            Convolution(out_channels, out_channels // 2, 1), Convolution(out_channels // 2, out_channels, stride=2)
        )
        self.fuse = Convolution(2 * out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/4, W/4)."""
        x = self.entry(x)  # 1/2
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)  # 1/4
        return cast("Tensor", self.fuse(torch.cat([self.convolve(x), pooled], dim=1)))


class GatherExpand(nn.Module):
    """Gather with a 3×3 convolution, expand six times depthwise, project; added to a shortcut.

    With a stride, a second depthwise convolution widens the view, and the shortcut is a separable convolution. The last
    depthwise convolution has a ReLU, which the paper's figure does not show.
    """

    EXPANSION = 6

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        wide = self.EXPANSION * in_channels
        expand = [Convolution(in_channels, wide, groups=in_channels)]
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            expand = [
                Convolution(in_channels, wide, stride=stride, groups=in_channels, activate=False),
                Convolution(wide, wide, groups=wide),
            ]
            self.shortcut = nn.Sequential(
                Convolution(in_channels, in_channels, stride=stride, groups=in_channels, activate=False),
                Convolution(in_channels, out_channels, 1, activate=False),
            )
        self.convolve = nn.Sequential(
            Convolution(in_channels, in_channels), *expand, Convolution(wide, out_channels, 1, activate=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        return F.relu(self.convolve(x) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """Add to every pixel what the whole map means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.BatchNorm2d(channels), Convolution(channels, channels, 1))
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return cast("Tensor", self.fuse(x + self.embed(F.adaptive_avg_pool2d(x, 1))))


class GuidedAggregation(nn.Module):
    """Bilateral guided aggregation: at both scales, the one branch gates the other; the two results are added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail_keep = depthwise_then_pointwise(channels)
        self.detail_down = nn.Sequential(
            Convolution(channels, channels, stride=2, activate=False),
            nn.ZeroPad2d(1),  # not in the pool: some engines compute that wrongly
            nn.AvgPool2d(3, stride=2),
        )
        self.semantic_up = Convolution(channels, channels, activate=False)
        self.semantic_keep = depthwise_then_pointwise(channels)
        self.fuse = Convolution(channels, channels, activate=False)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        """Combine ``detail`` (N, C, H, W) and ``semantic`` (N, C, H/4, W/4) to (N, C, H, W)."""
        fine = self.detail_keep(detail) * torch.sigmoid(resize_like(self.semantic_up(semantic), detail))  # 1/8
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic_keep(semantic))  # 1/32
        return cast("Tensor", self.fuse(fine + resize_like(coarse, fine)))


def depthwise_then_pointwise(channels: int) -> nn.Sequential:
    """Return a depthwise 3×3 convolution with batch normalisation, then a plain 1×1 convolution."""
    return nn.Sequential(
        Convolution(channels, channels, groups=channels, activate=False), nn.Conv2d(channels, channels, 1)
    )


def segmentation_head(in_channels: int, mid_channels: int, num_classes: int) -> nn.Sequential:
    """Return a 3×3 convolution to ``mid_channels``, then the 1×1 classifier."""
    return nn.Sequential(Convolution(in_channels, mid_channels), nn.Conv2d(mid_channels, num_classes, 1))
