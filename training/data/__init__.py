"""Datasets: numpy and images only, no torch.

Every reader yields class ids 0…C−1 and, for void and unlabelled pixels, :data:`IGNORE_INDEX`.
"""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class DataOptions:
    """What some datasets leave to the user.

    Attributes:
        images: folder that the pictures are in, where it is not beside the masks.
        val_fraction: share of the pictures that is held out where the dataset has no split of its own, in 0…1.
        split_seed: of that choice.
        ignore: class ids, as stored, that are void.
    """

    images: Path | None = None
    val_fraction: float | None = None
    split_seed: int = 0
    ignore: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a share that leaves one part empty, and a seed that is none.

        Raises:
            DatasetError: naming the value.
        """
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise DatasetError(f"--val-fraction is {self.val_fraction}; expected a number between 0 and 1")
        if self.split_seed < 0:
            raise DatasetError(f"--split-seed is {self.split_seed}; expected 0 or more")


def open_dataset(spec: str, options: DataOptions | None = None) -> Split:
    """Open the dataset that ``--data`` names.

    Args:
        spec: ``KIND:DIR``, such as ``camvid:DIR``, or ``coco:FILE.json``; ``demo``, ``demo:grey8`` and
            ``demo:grey16`` are built in.
        options: what that kind leaves to the user; None: nothing is asked for.

    Raises:
        DatasetError: if the kind is unknown, has no use for an option, or the folder holds no such dataset.
    """
    options = options or DataOptions()
    kind, _, place = spec.partition(":")
    if kind not in _KINDS:
        raise DatasetError(f"no kind of dataset is called {kind!r}; known are {', '.join(_KINDS)} (KIND:DIR)")
    module, opener, used = _KINDS[kind]
    for field in dataclasses.fields(options):
        if field.name != "split_seed" and field.name not in used and getattr(options, field.name) != field.default:
            flag = "--" + field.name.replace("_", "-")
            raise DatasetError(f"{flag} has no use for --data {kind}; leave it out")
    open_kind: Callable[[str, DataOptions], Split] = getattr(importlib.import_module(module), opener)
    return open_kind(place, options)


_KINDS: Final[dict[str, tuple[str, str, frozenset[str]]]] = {
    kind: (f"segship.training.data.{kind}", f"open_{kind}", frozenset(used))
    for kind, used in {
        "camvid": (),
        "voc": ("images", "val_fraction", "ignore"),
        "coco": ("images", "val_fraction", "ignore"),
        "nyuv2": ("ignore",),
        "bag": ("val_fraction",),
        "folder": ("val_fraction", "ignore"),
        "demo": (),
    }.items()
}
"""Module, function, and the options it has a use for; imported when asked for, since pycocotools may be missing."""
