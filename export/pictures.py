"""The pictures that an exported file is compared with PyTorch on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from segship.runtime.card import ModelCard
from segship.runtime.images import Conversion, ImageSource, read_image
from segship.runtime.preprocess import FULL_SCALE, Preprocess

RANDOM_PICTURES: Final = 3
REAL_PICTURES: Final = 8
"""At least so many real pictures are compared on; the built-in dataset's fill up what is missing."""


@dataclass(frozen=True)
class Picture:
    """A picture, what to call it, and whether the user gave it."""

    name: str
    source: ImageSource
    is_given: bool = False


def parity_pictures(images: Sequence[Path], card: ModelCard, convert: Sequence[Conversion] = ()) -> list[Picture]:
    """Return what a file with this card is compared on: three of seeded noise first, then at least eight real ones.

    Args:
        images: real pictures; where there are fewer than eight, the built-in dataset's fill up.
        card: of the file. One for frames gets all pictures at the frame's size.
        convert: lossy conversions of them that are allowed.
    """
    form = card.preprocess
    real = [Picture(path.name, path, is_given=True) for path in images]
    if len(real) < REAL_PICTURES:
        real += [_fitting(picture, form) for picture in _demo_pictures(form, REAL_PICTURES - len(real))]
    if card.frame is not None:
        real = [_at_size(picture, form, card.frame, convert) for picture in real]
    return [*_random_pictures(form, card.frame or form.size), *real]


def _random_pictures(form: Preprocess, size: tuple[int, int]) -> list[Picture]:
    """Return noise at the network's size: no two neighbours alike, so that nothing is hidden by smoothness."""
    full = FULL_SCALE[form.depth]
    return [
        Picture(
            f"noise {seed}",
            np.random.default_rng(seed).integers(0, full, (*size, form.channels), form.depth, endpoint=True),
        )
        for seed in range(RANDOM_PICTURES)
    ]


def _demo_pictures(form: Preprocess, count: int) -> list[Picture]:
    from segship.training.data.demo import open_demo

    variant = "" if form.channels == 3 else f"grey{form.depth.removeprefix('uint')}"
    pictures = open_demo(variant).val
    widen = form.channels == 3 and form.depth == "uint16"
    found = []
    for index in range(count):
        image = pictures[index].image
        wide = image.astype(np.uint16) * np.uint16(257) if widen else image
        found.append(Picture(f"built-in picture {pictures[index].name}", wide))
    return found


def _fitting(picture: Picture, form: Preprocess) -> Picture:
    """Cut a built-in picture to the size that others are padded to."""
    if form.resize != "pad":
        return picture
    cut = np.asarray(picture.source)[: form.size[0], : form.size[1]]
    return Picture(picture.name, cut, picture.is_given)


def _at_size(picture: Picture, form: Preprocess, size: tuple[int, int], convert: Sequence[Conversion]) -> Picture:
    image = read_image(picture.source, channels=form.channels, depth=form.depth, convert=convert)
    if image.shape[:2] == size:
        return picture
    resized = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))
    return Picture(f"{picture.name}, resized to the frame", resized.reshape(*size, form.channels), picture.is_given)
