"""Datasets: numpy and images only, no torch.

Every reader yields class ids 0…C−1 and, for void and unlabelled pixels, :data:`IGNORE_INDEX`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import ClassTable
from segship.runtime.preprocess import Depth, Image

IGNORE_INDEX: Final = 255


@dataclass(frozen=True)
class Sample:
    """One picture with its truth.

    Attributes:
        name: of the picture, for messages and file names.
        image: (H, W, C) in the dataset's depth and channels, red, green, blue.
        labels: (H, W) uint8, class ids and ``IGNORE_INDEX``.
    """

    name: str
    image: Image
    labels: NDArray[Any]


class Dataset(Protocol):
    """A sequence of samples that agree in classes, channels and depth."""

    @property
    def classes(self) -> ClassTable:
        """Names and colours of the classes."""

    @property
    def channels(self) -> int:
        """Channels of the pictures, 1 or 3."""

    @property
    def depth(self) -> Depth:
        """Integer type of the pictures."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DatasetError: if the picture or its mask is missing, damaged, or does not fit the other.
        """


@dataclass(frozen=True)
class Split:
    """The training part and the held-out part of a dataset."""

    train: Dataset
    val: Dataset


def spread_evenly(count: int, at_most: int) -> list[int]:
    """Choose up to ``at_most`` of the indices 0…count−1, evenly spread, in order."""
    chosen = min(count, at_most)
    return [index * count // chosen for index in range(chosen)]


def open_dataset(spec: str) -> Split:
    """Open the dataset that ``--data`` names.

    Args:
        spec: ``camvid:DIR``, ``demo``, ``demo:grey8`` or ``demo:grey16``.

    Raises:
        DatasetError: if the kind is unknown, or the folder holds no such dataset.
    """
    kind, _, place = spec.partition(":")
    if kind not in _KINDS:
        raise DatasetError(f"no kind of dataset is called {kind!r}; known are {', '.join(_KINDS)} (KIND:DIR)")
    return _KINDS[kind](place)


def _open_camvid(place: str) -> Split:
    from segship.training.data.camvid import open_camvid

    return open_camvid(place)


def _open_demo(place: str) -> Split:
    from segship.training.data.demo import open_demo

    return open_demo(place)


_KINDS: Final[dict[str, Callable[[str], Split]]] = {"camvid": _open_camvid, "demo": _open_demo}
