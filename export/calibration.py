"""Real pictures for a graph in 8 bits: those its ranges are taken from, and those its damage is measured on."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.runtime.card import ModelCard
from segship.runtime.errors import DatasetError
from segship.runtime.images import Conversion, read_image
from segship.runtime.labels import Labels
from segship.runtime.preprocess import Image
from segship.runtime.source_files import find_images
from segship.training.data import DataOptions, Dataset, open_dataset, spread_evenly
from segship.training.setup import check_kind

MEASURED: Final = 128
"""How many pictures damage is measured on where there are so many; each candidate graph runs on all of them."""

Read = Callable[[int], tuple[Image, Labels | None]]


@dataclass(frozen=True)
class Pictures:
    """Pictures with their labels where they have some; read when they are asked for, and every time they are.

    Attributes:
        read: returns the picture of an index, (H, W, C) in the card's form, with its labels (H, W) or None.
        indices: of these pictures.
    """

    read: Read
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Image, Labels | None]]:
        return map(self.read, self.indices)

    def some(self, at_most: int) -> "Pictures":
        """Return up to ``at_most`` of them, evenly spread."""
        return Pictures(self.read, [self.indices[index] for index in spread_evenly(len(self.indices), at_most)])


@dataclass(frozen=True)
class Calibration:
    """What a graph in 8 bits is made with.

    Attributes:
        ranges: pictures that the ranges of the values are taken from.
        measured: pictures that damage is measured on; others, as far as there are some.
        labelled: whether these have labels.
    """

    ranges: Pictures
    measured: Pictures
    labelled: bool


def open_calibration(
    data: str,
    card: ModelCard,
    *,
    images: int,
    options: DataOptions | None = None,
    convert: Collection[Conversion] = (),
) -> Calibration:
    """Open what ``--calibrate`` names.

    Args:
        data: a folder of pictures, or a dataset as ``seg-train --data`` takes it: KIND:DIR. Of a dataset, ranges come
            from its training part and damage is measured on its validation part.
        card: of the model.
        images: how many pictures the ranges are taken from, evenly spread.
        options: of the dataset.
        convert: lossy conversions that are allowed for the pictures of a folder.

    Raises:
        ImageError: if the folder holds no pictures; later, if one cannot be read.
        DatasetError: if there is no such folder or dataset, or it has other classes or pictures than the
            card speaks of.
    """
    if Path(data).is_dir():
        return _of_folder(Path(data), card, images, convert)
    if ":" not in data and data != "demo":
        raise DatasetError(
            f"--calibrate {data}: no such folder; expected one that holds pictures, or KIND:DIR, or demo"
        )
    split = open_dataset(data, options)
    check_kind(split.val, data, card, "the model")
    ranges = Pictures(_reader(split.train), spread_evenly(len(split.train), images))
    measured = Pictures(_reader(split.val), spread_evenly(len(split.val), MEASURED))
    return Calibration(ranges, measured, labelled=True)


def _of_folder(folder: Path, card: ModelCard, images: int, convert: Collection[Conversion]) -> Calibration:
    paths = [file.path for file in find_images([folder])]
    form = card.preprocess

    def read(index: int) -> tuple[Image, None]:
        return read_image(paths[index], channels=form.channels, depth=form.depth, convert=convert), None

    chosen = spread_evenly(len(paths), images)
    others = sorted(set(range(len(paths))) - set(chosen)) or chosen
    return Calibration(Pictures(read, chosen), Pictures(read, others).some(MEASURED), labelled=False)


def _reader(dataset: Dataset) -> Read:
    def read(index: int) -> tuple[Image, Labels]:
        sample = dataset[index]
        return sample.image, sample.labels

    return read
