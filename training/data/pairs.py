"""Datasets that lie as files: each picture beside a mask of its name, and how such files are found and held out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError, ImageError, LossyConversionError
from segship.runtime.images import IMAGE_SUFFIXES, read_image
from segship.runtime.palettes import ClassTable
from segship.runtime.preprocess import Depth, Image
from segship.training.data import Sample

DEFAULT_VAL_FRACTION: Final = 0.2

Item = TypeVar("Item")
Pair = tuple[Path, Path]
"""The files of a picture and of its mask."""
Decode = Callable[[Path], NDArray[np.uint8]]
"""Reads the file of a mask as class ids and the ignore index, (H, W)."""


class Pairs:
    """One part of a dataset: pictures with their masks.

    Args:
        pairs: (picture, mask) files.
        classes: names and colours.
        decode: reads a mask. Loaders hand it to other processes, so it is no lambda.
        channels: of the pictures, 1 or 3.
        depth: of the pictures.
        like: the picture whose form that is, where it is no matter of course; for messages.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassTable,
        decode: Decode,
        *,
        channels: int = 3,
        depth: Depth = "uint8",
        like: Path | None = None,
    ) -> None:
        self.pairs = pairs
        self.classes = classes
        self.channels = channels
        self.depth: Depth = depth
        self._decode = decode
        self._like = like

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        picture, mask = self.pairs[index]
        image = read_picture(picture, channels=self.channels, depth=self.depth, like=self._like)
        labels = self._decode(mask)
        if labels.shape != image.shape[:2]:
            raise DatasetError(
                f"{mask}: the mask is {labels.shape[1]}×{labels.shape[0]} pixels, "
                f"its picture {picture.name} {image.shape[1]}×{image.shape[0]}; expected the same size"
            )
        return Sample(picture.stem, image, labels)


def read_picture(path: Path, *, channels: int, depth: Depth, like: Path | None = None) -> Image:
    """Read a picture of a dataset.

    Raises:
        DatasetError: if it cannot be read, or would lose something in this form.
    """
    try:
        return read_image(path, channels=channels, depth=depth)
    except LossyConversionError as error:
        form = f"{depth.removeprefix('uint')}-bit {'RGB' if channels == 3 else 'grey'}"
        raise DatasetError(
            f"{error.finding}; save it as {form} without transparency{f', like {like}' if like else ''}"
        ) from error
    except ImageError as error:
        raise DatasetError(str(error)) from error


def pictures_by_name(folder: Path) -> dict[str, Path]:
    """Find the pictures in a folder and below, sorted; their names are their places in it, without suffix ("a/x").

    Raises:
        DatasetError: if two pictures have one name, or the folder cannot be read.
    """
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders.sort()
        for path in (Path(place) / file for file in sorted(files)):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DatasetError(f"{path} and {found[name].name} have one name; keep one of them, or rename it")
            found[name] = path
    return found


def pair_by_name(images: Path, masks: Path, *, endings: Sequence[str] = ("",)) -> list[Pair]:
    """Pair each picture in a folder with the mask of its name in another.

    Args:
        images: folder of the pictures.
        masks: folder of the masks.
        endings: what may follow the picture's name in its mask's; the first that is there counts.

    Raises:
        DatasetError: if a folder is missing or empty, a picture has no mask, or a mask no picture.
    """
    if not images.is_dir():
        raise DatasetError(f"{images} is missing; expected the pictures whose masks are in {masks}")
    pictures = pictures_by_name(images)
    if not pictures:
        raise DatasetError(f"{images} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not masks.is_dir():
        raise DatasetError(f"{masks} is missing; expected the masks of the pictures in {images}")
    candidates = pictures_by_name(masks)
    found = {
        name: next((candidates[name + ending] for ending in endings if name + ending in candidates), None)
        for name in pictures
    }
    missing = [name for name, mask in found.items() if mask is None]
    if missing:
        raise DatasetError(
            f"{pictures[missing[0]]} has no mask in {masks} (expected {missing[0]}{endings[0]}.png); "
            f"{len(missing)} of {len(pictures)} pictures have none"
        )
    orphans = sorted(set(candidates.values()) - set(found.values()))
    if orphans:
        raise DatasetError(
            f"{orphans[0]} has no picture of its name in {images}; {len(orphans)} of {len(candidates)} masks have none"
        )
    return [(pictures[name], mask) for name, mask in found.items() if mask is not None]


def pair_listed(names: Sequence[str], images: Path, masks: Path, origin: Path) -> list[Pair]:
    """Pair pictures and masks that a list names.

    Args:
        names: places in both folders, without suffix.
        images: folder of the pictures.
        masks: folder of the masks.
        origin: the file that lists them, for messages.

    Raises:
        DatasetError: if a folder is missing, or the picture or the mask of an entry.
    """
    for what, folder in (("pictures", images), ("masks", masks)):
        if not folder.is_dir():
            raise DatasetError(f"{folder} is missing; expected the {what} that {origin} lists")
    pictures, candidates = pictures_by_name(images), pictures_by_name(masks)
    for what, folder, found in (("picture", images, pictures), ("mask", masks, candidates)):
        missing = [name for name in names if name not in found]
        if missing:
            has_suffix = missing[0].rpartition(".")[0] in found
            advice = "leave the suffix away" if has_suffix else "add what is missing, or take the entries out"
            raise DatasetError(
                f"{origin}: {missing[0]!r} has no {what} in {folder}; {len(missing)} of {len(names)} entries have "
                f"none; {advice}"
            )
    return [(pictures[name], candidates[name]) for name in names]


def read_names(path: Path) -> list[str]:
    """Read a list of names, one a line.

    Raises:
        DatasetError: if the file cannot be read, is no text, or lists nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of names, one a line ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{path} lists nothing; expected names, one a line")
    return names


def keep_own_split(fraction: float | None, origin: str) -> None:
    """Refuse ``--val-fraction`` for a dataset that says itself what is held out.

    Raises:
        DatasetError: if a share was asked for; ``origin`` is what says it.
    """
    if fraction is not None:
        raise DatasetError(f"--val-fraction has no use where {origin} says what is held out; leave it out")


def count_held_out(number: int, fraction: float | None) -> int:
    """Return how many of ``number`` pictures are held out: the share ``fraction`` (None: 0.2), but not 0 and not all.

    Raises:
        DatasetError: if there are fewer than two.
    """
    if number < 2:
        raise DatasetError(f"{number} pictures cannot be split into training and validation; expected at least 2")
    return min(max(round(number * (DEFAULT_VAL_FRACTION if fraction is None else fraction)), 1), number - 1)


def hold_out(items: Iterable[tuple[str, Item]], fraction: float | None, seed: int) -> tuple[list[Item], list[Item]]:
    """Split named items into a training part and a held-out part, both in the order of their names.

    The hash of seed and name decides, so that the parts depend neither on the order of files nor on the machine, and
    few items change sides when some are added.

    Args:
        items: (name, item); no name stands twice.
        fraction: share that is held out; at least one item is, and one stays. None: 0.2.
        seed: of the choice.

    Raises:
        DatasetError: if there are fewer than two items.
    """
    named = dict(items)
    count = count_held_out(len(named), fraction)
    held = set(sorted(named, key=lambda name: _hash(f"{seed}/{name}"))[:count])
    train = [named[name] for name in sorted(named) if name not in held]
    return train, [named[name] for name in sorted(held)]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()  # names of files may be no UTF-8


def _raise_unreadable(error: OSError) -> NoReturn:
    raise DatasetError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error
