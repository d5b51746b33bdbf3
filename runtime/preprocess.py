"""From a decoded picture to the network's input: one definition for training, parity and runtime.

Two halves. *Geometry* (resize, letterbox, pad) is OpenCV on the picture's own integer type; the trainer calls it
before augmentation and the runtime calls it before the network. *Gain and bias* (scale, mean, standard deviation) come
after; here in numpy, and as a torch module for the training device in ``segship.training.gain_bias``, which a test
proves equal to this one.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import CardError, ImageError
from segship.runtime.labels import resize_labels

Depth = Literal["uint8", "uint16"]
ColorOrder = Literal["RGB", "BGR", "grey"]
Scale = Literal["full_scale", "image_max"]
Resize = Literal["stretch", "letterbox", "pad"]
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
        resize: ``stretch``: both sides are scaled to ``size``, whatever the aspect ratio. ``letterbox``: both are
            scaled alike, so that the picture just fits into ``size``, and lies in its middle. ``pad``: it is not
            scaled, and lies at the top left. :meth:`content` says where, to the pixel.
        fill: value, in the picture's own depth, of the pixels that ``letterbox`` and ``pad`` add, in all channels.
        interpolation: ``linear_exact``: OpenCV's ``INTER_LINEAR_EXACT`` on the picture's own integers, bit-exact on
            every machine; ``linear_float``: linear in float32, without antialiasing and without rounding, which is
            what a graph that resizes frames itself computes.
        color_order: order of the network's channels.
        scale: ``full_scale`` divides by the largest value the depth holds; ``image_max`` by the largest value in the
            picture (the convention of U²-Net's published weights). A black picture is scaled to 0. What is filled in
            must then be black, so that the largest value is always the picture's own.
        mean: subtracted after scaling, per channel, in the network's channel order.
        std: divided by after that, per channel.
    """

    size: tuple[int, int]
    channels: int = 3
    depth: Depth = "uint8"
    resize: Resize = "stretch"
    fill: int = 0
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
        self._check_fill()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise CardError(f"preprocess.{name} is {values}; expected {self.channels} finite numbers")
        if min(self.std) <= 0:
            raise CardError(f"preprocess.std is {self.std}; every value must be above 0")

    def _check_fill(self) -> None:
        full = FULL_SCALE[self.depth]
        if not 0 <= self.fill <= full:
            raise CardError(f"preprocess.fill is {self.fill}; expected 0…{full}, the values of {self.depth} pictures")
        if self.fill and self.resize == "stretch":
            raise CardError(
                f"preprocess.fill is {self.fill} and resize is stretch, which adds nothing to fill; "
                "leave fill out, or take letterbox or pad"
            )
        if self.fill and self.scale == "image_max":
            raise CardError(
                f"preprocess.fill is {self.fill} and scale is image_max, which would count the filling as a part of "
                "the picture; expected fill 0"
            )

    def content(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return where in ``size`` a picture lies: its rows and its columns.

        ``letterbox`` scales both sides by s = min(h / H, w / W), in float64, to round(s · H) and round(s · W) pixels, a
        half to the even number and at least 1. Of the rows and columns that are added, half lie before the picture,
        and the odd one after it.

        Args:
            shape: of the picture, (H, W) or (H, W, C).

        Raises:
            ImageError: if it is larger than the size that it is to be padded to.
        """
        height, width = self.size
        if self.resize == "stretch":
            return slice(0, height), slice(0, width)
        if self.resize == "pad":
            if shape[0] > height or shape[1] > width:
                raise ImageError(
                    f"a picture of {shape[0]}×{shape[1]} pixels (height × width) does not fit into the "
                    f"{height}×{width} that it is to be padded to; make it smaller, or run it tile by tile"
                )
            return slice(0, shape[0]), slice(0, shape[1])
        scale = min(height / shape[0], width / shape[1])
        rows, columns = (max(1, round(scale * side)) for side in shape[:2])
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    def content_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many rows and columns of ``size`` a picture of this shape takes up; see :meth:`content`."""
        rows, columns = self.content(shape)
        return rows.stop - rows.start, columns.stop - columns.start

    def geometry(self, image: Image) -> Image:
        """Bring a picture (H, W, C) of the card's depth and channels to ``size``.

        The type stays; ``linear_float`` turns it into float32 where it resizes.

        Raises:
            ImageError: if it is larger than the size that it is to be padded to.
        """
        rows, columns = self.content(image.shape)
        resized = self._resized(image, self.content_size(image.shape))
        if resized.shape[:2] == self.size:
            return resized
        height, width = self.size
        around = (rows.start, height - rows.stop, columns.start, width - columns.stop)
        filled = cv2.copyMakeBorder(resized, *around, cv2.BORDER_CONSTANT, value=(self.fill,) * self.channels)
        return np.asarray(filled).reshape(height, width, self.channels)

    def _resized(self, image: Image, size: tuple[int, int]) -> Image:
        height, width = size
        if image.shape[:2] == size:
            return image
        if self.interpolation == "linear_float":
            resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        return np.asarray(resized).reshape(height, width, self.channels)

    def geometry_of_labels(self, labels: NDArray[Any], ignore_index: int) -> NDArray[Any]:
        """Bring label ids (H, W) to ``size`` by the nearest pixel, so that no new ids appear but ``ignore_index``.

        Args:
            labels: of a picture.
            ignore_index: what the pixels get that ``letterbox`` and ``pad`` add.

        Raises:
            ImageError: if it is larger than the size that it is to be padded to.
        """
        rows, columns = self.content(labels.shape)
        resized = resize_labels(labels, self.content_size(labels.shape))
        if resized.shape == self.size:
            return resized
        filled = np.full(self.size, ignore_index, labels.dtype)
        filled[rows, columns] = resized
        return filled

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
        gain, bias = self.gain_and_bias(image.max() if self.scale == "image_max" else 0)
        planes = cv2.split(image)  # numpy takes twice as long where the values of a plane lie apart
        batch = np.empty((1, self.channels, *image.shape[:2]), np.float32)
        order = reversed(planes) if self.color_order == "BGR" else planes
        for channel, plane in enumerate(order):
            values = batch[0, channel]
            np.copyto(values, plane)
            values *= gain[channel]
            values += bias[channel]
        return batch

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Bring a decoded picture of the card's depth and channels to the network's input (1, C, H, W)."""
        return self.normalise(self.geometry(image))
