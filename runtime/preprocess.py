"""From a decoded picture to the network's input: one definition for training, parity and runtime.

Two halves. *Geometry* (resize) is OpenCV on the picture's own integer type; the trainer calls it before
augmentation and the runtime calls it before the network. *Gain and bias* (scale, mean, standard deviation) come
after; here in numpy, and as a torch module for the training device in ``segship.training.gain_bias``, which a test
proves equal to this one.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import CardError
from segship.runtime.labels import resize_labels

Depth = Literal["uint8", "uint16"]
ColorOrder = Literal["RGB", "BGR", "grey"]
Scale = Literal["full_scale", "image_max"]
Interpolation = Literal["linear_exact", "linear_float"]

Image = NDArray[Any]
"""A decoded picture, (H, W, C), C = 1 (grey) or 3 (red, green, blue), uint8 or uint16."""

FULL_SCALE: Final[dict[str, int]] = {"uint8": 255, "uint16": 65535}
MAX_SIDE_PX: Final = 16384


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input.

    Attributes:
        size: (height, width) in pixels that the network gets.
        channels: 1 or 3.
        depth: the integer type that pictures are kept in up to the normalisation. A 16-bit picture stays 16-bit.
        resize: ``stretch``: both sides are scaled to ``size``, whatever the aspect ratio.
        interpolation: ``linear_exact``: OpenCV's ``INTER_LINEAR_EXACT`` on the picture's own integers, bit-exact on
            every machine; ``linear_float``: linear in float32, without antialiasing and without rounding, which is
            what a graph that resizes frames itself computes.
        color_order: order of the network's channels.
        scale: ``full_scale`` divides by the largest value the depth holds; ``image_max`` by the largest value in the
            picture (the convention of U²-Net's published weights). A black picture is scaled to 0.
        mean: subtracted after scaling, per channel, in the network's channel order.
        std: divided by after that, per channel.
    """

    size: tuple[int, int]
    channels: int = 3
    depth: Depth = "uint8"
    resize: Literal["stretch"] = "stretch"
    interpolation: Interpolation = "linear_exact"
    color_order: ColorOrder = "RGB"
    scale: Scale = "full_scale"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            CardError: naming the field, its value and what was expected.
        """
        if not all(1 <= side <= MAX_SIDE_PX for side in self.size):
            raise CardError(f"preprocess.size is {self.size}; each side must lie in 1…{MAX_SIDE_PX} pixels")
        if self.channels != (1 if self.color_order == "grey" else 3):
            raise CardError(
                f"preprocess.channels is {self.channels} and color_order {self.color_order!r}; "
                "expected 3 with RGB or BGR, 1 with grey"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise CardError(f"preprocess.{name} is {values}; expected {self.channels} finite numbers")
        if min(self.std) <= 0:
            raise CardError(f"preprocess.std is {self.std}; every value must be above 0")

    def geometry(self, image: Image) -> Image:
        """Resize a picture (H, W, C) of the card's depth and channels to ``size``.

        The type stays; ``linear_float`` turns it into float32 where it resizes.
        """
        height, width = self.size
        if image.shape[:2] == self.size:
            return image
        if self.interpolation == "linear_float":
            resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        return np.asarray(resized).reshape(height, width, self.channels)

    def geometry_of_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Bring label ids (H, W) to ``size`` by the nearest pixel, so that no new ids appear."""
        return resize_labels(labels, self.size)

    def gain_and_bias(self, largest: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per-channel gain and bias, so that ``value * gain + bias`` is the normalised value.

        Args:
            largest: the largest value in the picture; only ``image_max`` looks at it.
        """
        divisor = float(FULL_SCALE[self.depth]) if self.scale == "full_scale" else (float(largest) or 1.0)
        std = np.asarray(self.std, np.float64)
        gain = 1 / (np.float32(divisor) * std.astype(np.float32))  # in float32, as graphs that take pixels have it
        return gain.astype(np.float32), (-np.asarray(self.mean) / std).astype(np.float32)

    def normalise(self, image: Image) -> NDArray[np.float32]:
        """Turn a picture (H, W, C) of the network's size into its input (1, C, H, W), float32."""
        gain, bias = self.gain_and_bias(image.max())
        planes = image.transpose(2, 0, 1)
        if self.color_order == "BGR":
            planes = planes[::-1]
        batch = np.empty((1, self.channels, *image.shape[:2]), np.float32)
        for channel, plane in enumerate(planes):
            np.multiply(plane, gain[channel], out=batch[0, channel], dtype=np.float32)
            batch[0, channel] += bias[channel]
        return batch

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Bring a decoded picture of the card's depth and channels to the network's input (1, C, H, W)."""
        return self.normalise(self.geometry(image))
