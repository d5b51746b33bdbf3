"""Parts of pictures at their own resolution, laid so that rare classes are seen often enough."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from segship.runtime.preprocess import Image
from segship.runtime.tiling import pad_to
from segship.training.data import IGNORE_INDEX, Sample


class Cropper:
    """Cuts one part out of a sample.

    A share of the parts is laid around a random pixel of a class of the picture, drawn by ``rarity``; the others lie
    anywhere.

    Args:
        size: (height, width) of the parts, in pixels. A smaller picture is continued by its edge, its labels by void.
        rare_share: share of the parts that favour rare classes, 0…1.
        rarity: weight of each class in that draw, 0 or more, such as its median-frequency weight.
    """

    def __init__(self, size: tuple[int, int], rare_share: float, rarity: Sequence[float]) -> None:
        self.size = size
        self.rare_share = rare_share
        self.rarity = np.asarray(rarity, np.float64)

    def __call__(self, sample: Sample, rng: Generator) -> tuple[Image, NDArray[Any]]:
        """Return picture (h, w, C) and labels (h, w) of a part, drawn by ``rng``."""
        image = pad_to(sample.image, self.size)
        labels = pad_to(sample.labels, self.size, IGNORE_INDEX)
        around = self._rare_pixel(labels, rng) if rng.random() < self.rare_share else None
        corner = [
            _start(whole, part, None if around is None else around[axis], rng)
            for axis, (whole, part) in enumerate(zip(labels.shape, self.size, strict=True))
        ]
        window = tuple(slice(start, start + part) for start, part in zip(corner, self.size, strict=True))
        return image[window], labels[window]

    def _rare_pixel(self, labels: NDArray[Any], rng: Generator) -> tuple[int, int] | None:
        """Choose a class of the picture by its rarity, then a pixel of that class."""
        present = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(self.rarity)] > 0
        weights = self.rarity * present
        if not weights.any():
            return None
        chosen = labels == rng.choice(len(weights), p=weights / weights.sum())
        in_row = np.count_nonzero(chosen, axis=1)  # the places of all pixels would be eight times the picture's memory
        row = int(rng.choice(len(in_row), p=in_row / in_row.sum()))
        return row, int(rng.choice(np.flatnonzero(chosen[row])))


def _start(whole: int, part: int, around: int | None, rng: Generator) -> int:
    """Choose where a part of a side begins; with ``around``, so that this pixel lies anywhere inside."""
    if around is None:
        return int(rng.integers(0, whole - part, endpoint=True))
    first, last = max(0, around - part + 1), min(around, whole - part)
    return int(rng.integers(first, last, endpoint=True))
