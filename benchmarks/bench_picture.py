"""The picture that single runs are of: the file that was asked for, else the first one of the data, else noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from segship.benchmarks.record import BenchError, digest
from segship.runtime.card import ModelCard
from segship.runtime.png import encode_png
from segship.runtime.preprocess import FULL_SCALE, Image
from segship.training.data import Dataset

NOISE: Final = "noise"


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        name: what records call it.
        encoded: the file's bytes.
    """

    name: str
    encoded: bytes

    @property
    def digest(self) -> str:
        """Of the bytes."""
        return digest(self.encoded)


def chosen_picture(path: Path | None, data: tuple[Dataset, str] | None) -> Picture | None:
    """Return what single runs are of; None: :func:`noise`, since there is nothing real.

    Args:
        path: the file that was asked for.
        data: pictures of which the first one is taken otherwise, and what they are called.

    Raises:
        BenchError: if the file cannot be read.
        DatasetError: if the first picture of the data cannot be.
    """
    if path is not None:
        return Picture(path.name, read_picture(path))
    if data is None:
        return None
    first = data[0][0]
    return Picture(f"{first.name}, the first of {data[1]}", _encoded(first.image))


def read_picture(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        BenchError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error


def noise(card: ModelCard) -> bytes:
    """Return a picture of noise of the network's size: the bytes of a JPEG, of 16 bits of a PNG."""
    form = card.preprocess
    size = card.frame or form.size
    return _encoded(np.random.default_rng(0).integers(0, FULL_SCALE[form.depth], (*size, form.channels), form.depth))


def _encoded(image: Image) -> bytes:
    if image.dtype == np.uint16:
        return encode_png(image)
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]))[1])
