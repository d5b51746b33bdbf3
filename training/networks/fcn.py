"""FCN (Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015) on VGG's features.

The encoder is that of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
2015, without batch normalisation. The FCN paper keeps its fully connected layers too, as convolutions, classifies the
coarse maps, and upsamples class scores in a few large steps. Here those layers are left out: they are nine tenths of
VGG-16's weights, and of little use without the weights of a classifier. Five learned doublings bring features, not
scores, back to full resolution, each batch-normalised, so that the network trains from scratch as well. What remains
the paper's is the sum: the encoder's pooled map is added where a doubling has reached its scale.
"""

from typing import ClassVar, Final, cast

from torch import Tensor, nn
from torch.nn import functional as F

from segship.training.networks.sizes import crop, pad_to_multiple, size_of

VGG_WIDTHS: Final = (64, 128, 256, 512, 512)

VGG_DEPTHS: Final[dict[str, tuple[int, ...]]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions before each of the five poolings."""


class FCN(nn.Module):
    """FCN for pictures of any size; its subclasses say which of the encoder's maps are added on the way up.

    The input is padded with zeros, at its right and bottom, to a multiple of 32, and the logits are cropped back.

    Args:
        num_classes: number of logits per pixel.
        in_channels: channels of the picture.
        backbone: the encoder, ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``. Its weights are named as torchvision names
            them ("features.0.weight"), so that those load.

    Raises:
        ValueError: if there is no such backbone.
    """

    STRIDE: ClassVar[int] = 32

    SUMS: ClassVar[int]
    """How many of pool4, pool3, pool2 and pool1 are added."""

    def __init__(self, num_classes: int, in_channels: int = 3, backbone: str = "vgg16") -> None:
        super().__init__()
        self.features = vgg_features(backbone, in_channels)
        self.up1 = UpBlock(512, 512)
        self.up2 = UpBlock(512, 256)
        self.up3 = UpBlock(256, 128)
        self.up4 = UpBlock(128, 64)
        self.up5 = UpBlock(64, 32)
        self.classifier = nn.Conv2d(32, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Map pictures (N, C, H, W) to logits (N, num_classes, H, W)."""
        size = size_of(x)
        pool1, pool2, pool3, pool4, pool5 = self.pooled(pad_to_multiple(x, self.STRIDE))  # 1/2, 1/4, 1/8, 1/16, 1/32

        x = self.up1(pool5, pool4 if self.SUMS >= 1 else None)  # 512, 1/16
        x = self.up2(x, pool3 if self.SUMS >= 2 else None)  # 256, 1/8
        x = self.up3(x, pool2 if self.SUMS >= 3 else None)  # 128, 1/4
        x = self.up4(x, pool1 if self.SUMS >= 4 else None)  # 64, 1/2
        x = self.up5(x)  # 32, 1/1

        return (crop(self.classifier(x), size),)

    def pooled(self, x: Tensor) -> list[Tensor]:
        """Return the five maps that VGG's poolings give, 64, 128, 256, 512 and 512 channels."""
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps


class FCN32s(FCN):
    """FCN-32s: nothing is added on the way up."""

    SUMS = 0


class FCN16s(FCN):
    """FCN-16s: pool4 is added on the way up."""

    SUMS = 1


class FCN8s(FCN):
    """FCN-8s: pool4 and pool3 are added on the way up."""

    SUMS = 2


class FCNs(FCN):
    """FCN with every sum there is, pool4, pool3, pool2 and pool1; the paper stops at pool3."""

    SUMS = 4


class UpBlock(nn.Module):
    """Double the resolution with a transposed convolution and ReLU, add a map of that scale if given, normalise."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (N, in, h, w), and a ``skip`` (N, out, 2h, 2w), to (N, out, 2h, 2w)."""
        x = F.relu(self.up(x))
        return cast("Tensor", self.norm(x if skip is None else x + skip))


def vgg_features(backbone: str, in_channels: int) -> nn.Sequential:
    """Return VGG's convolutions, ReLUs and poolings, in torchvision's order and with its initialisation.

    With PyTorch's own, the signal would fade on its way through sixteen convolutions without normalisation.
    """
    if backbone not in VGG_DEPTHS:
        raise ValueError(f"no backbone is called {backbone!r}; known are {', '.join(VGG_DEPTHS)}")
    layers: list[nn.Module] = []
    channels = in_channels
    for width, depth in zip(VGG_WIDTHS, VGG_DEPTHS[backbone], strict=True):
        for _ in range(depth):
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", convolution.bias))
            layers += [convolution, nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
