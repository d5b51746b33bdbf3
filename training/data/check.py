"""Reading a dataset from end to end before training on it: what is in it, and what is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.training.data import IGNORE_INDEX, Dataset, Split
from segship.training.data.parallel import in_parallel
from segship.training.data.report import ClassCount, DataReport, Duplicate, PartReport, SizeCount

COMMONEST_SIZES: Final = 10

Part = Literal["train", "val"]


def check_dataset(split: Split, advance: Callable[[], None]) -> DataReport:
    """Read every picture and mask of a dataset.

    They are read side by side, a few at a time, and only counts and hashes of their pixels are kept. As pixels are
    what is compared, the same picture stored as PNG and as BMP counts as a duplicate.

    Args:
        split: the dataset.
        advance: called after each picture.
    """
    census = _Census()
    train = _check_part(split.train, "train", census, advance)
    val = _check_part(split.val, "val", census, advance)
    sizes = sorted(census.sizes["train"] + census.sizes["val"], key=census.rank)
    return DataReport(
        channels=split.train.channels,
        depth=split.train.depth,
        sizes=tuple(
            SizeCount(*size, census.sizes["train"][size], census.sizes["val"][size]) for size in sizes[:COMMONEST_SIZES]
        ),
        other_sizes=len(sizes[COMMONEST_SIZES:]),
        train=train,
        val=val,
        duplicates=census.duplicates(),
    )


@dataclass(frozen=True)
class _Reading:
    """What is kept of one picture.

    Attributes:
        name: of the picture.
        size: (height, width).
        counts: of the pixels of each id, (256,).
        image: hash of the picture.
        labels: hash of its labels.
    """

    name: str
    size: tuple[int, int]
    counts: NDArray[np.intp]
    image: bytes
    labels: bytes


class _Census:
    """What concerns both parts: sizes of pictures, and where each picture was seen."""

    def __init__(self) -> None:
        self.sizes: dict[Part, Counter[tuple[int, int]]] = {"train": Counter(), "val": Counter()}
        self._seen: dict[bytes, list[tuple[Part, str, bytes]]] = {}

    def add(self, part: Part, reading: _Reading) -> None:
        self.sizes[part][reading.size] += 1
        self._seen.setdefault(reading.image, []).append((part, reading.name, reading.labels))

    def rank(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Commonest first; among equals the larger one."""
        return -self.sizes["train"][size] - self.sizes["val"][size], (-size[0], -size[1])

    def duplicates(self) -> tuple[Duplicate, ...]:
        found = [
            Duplicate(
                tuple(name for part, name, _ in places if part == "train"),
                tuple(name for part, name, _ in places if part == "val"),
                len({labels for _, _, labels in places}) == 1,
            )
            for places in self._seen.values()
            if len(places) > 1
        ]
        return tuple(sorted(found, key=lambda duplicate: not (duplicate.train and duplicate.val)))


def _check_part(dataset: Dataset, part: Part, census: _Census, advance: Callable[[], None]) -> PartReport:
    faults, all_void = [], []
    pixels, pictures = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for reading in in_parallel(lambda index: _read(dataset, index), range(len(dataset))):
        if isinstance(reading, DatasetError):
            faults.append(str(reading))
        else:
            census.add(part, reading)
            pixels += reading.counts
            pictures += reading.counts > 0
            if np.flatnonzero(reading.counts).tolist() == [IGNORE_INDEX]:
                all_void.append(reading.name)
        advance()

    def count(name: str, class_id: int, among: int) -> ClassCount:
        found = int(pixels[class_id])
        return ClassCount(name, found, found / among if among else 0.0, int(pictures[class_id]))

    with_a_class = int(pixels[:IGNORE_INDEX].sum())
    return PartReport(
        pictures=len(dataset),
        classes=tuple(count(name, class_id, with_a_class) for class_id, name in enumerate(dataset.classes.names)),
        void=count("void", IGNORE_INDEX, int(pixels.sum())),
        all_void=tuple(all_void),
        faults=tuple(faults),
    )


def _read(dataset: Dataset, index: int) -> _Reading | DatasetError:
    try:
        sample = dataset[index]
    except DatasetError as fault:
        return fault  # one of perhaps many, which are reported together
    counts = np.bincount(sample.labels.ravel(), minlength=256)
    height, width = sample.labels.shape
    return _Reading(sample.name, (height, width), counts, _hash(sample.image), _hash(sample.labels))


def _hash(pixels: NDArray[Any]) -> bytes:
    form = f"{pixels.shape} {pixels.dtype}".encode()
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, key=form).digest()
