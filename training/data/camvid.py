"""CamVid (Brostow et al., "Semantic Object Classes in Video", 2009) in the two forms it is passed around in.

* index masks: ``train/`` beside ``trainannot/``; grey PNGs of ids 0…10, 11 is void
* colour masks: ``train/`` beside ``train_labels/``; RGB PNGs, named like the picture or with ``_L`` after its name;
  colours from ``class_dict.csv`` (name,r,g,b; the original has 32 rows) or else the table of 11 classes and Unlabelled

Void and Unlabelled become the ignore index in all of them.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError, ImageError, LossyConversionError
from segship.runtime.images import IMAGE_SUFFIXES, read_image
from segship.runtime.palettes import (
    CAMVID,
    CAMVID_PAVEMENT_IN_32_CLASSES,
    VOID_COLOR,
    VOID_NAMES,
    ClassTable,
    Color,
)
from segship.runtime.preprocess import Depth
from segship.training.data import IGNORE_INDEX, Sample, Split
from segship.training.data.masks import ColorTable, check_ids, read_mask

VOID_ID: Final = len(CAMVID)

Decode = Callable[[NDArray[Any], Path], NDArray[Any]]


class CamVid:
    """One part of CamVid: pictures with their masks.

    Args:
        pairs: (picture, mask) files.
        classes: names and colours.
        decode: turns a mask as stored into ids.
    """

    channels = 3
    depth: Depth = "uint8"

    def __init__(self, pairs: list[tuple[Path, Path]], classes: ClassTable, decode: Decode) -> None:
        self.pairs = pairs
        self.classes = classes
        self._decode = decode

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_path, mask_path = self.pairs[index]
        try:
            image = read_image(image_path, channels=self.channels, depth=self.depth)
        except LossyConversionError as error:
            raise DatasetError(f"{error.finding}; save it as 8-bit RGB without transparency") from error
        except ImageError as error:
            raise DatasetError(str(error)) from error
        labels = self._decode(read_mask(mask_path), mask_path)
        if labels.shape != image.shape[:2]:
            raise DatasetError(
                f"{mask_path}: the mask is {labels.shape[1]}×{labels.shape[0]} pixels, "
                f"its picture {image_path.name} {image.shape[1]}×{image.shape[0]}; expected the same size"
            )
        return Sample(image_path.stem, image, labels)


def open_camvid(place: str) -> Split:
    """Open CamVid, in whichever of its forms the folder holds.

    Args:
        place: the folder that holds ``train/`` and ``val/``, each with its masks beside it.

    Raises:
        DatasetError: if folders are missing or empty, a picture lacks its mask, or the class table is unusable.
    """
    root = Path(place)
    if not place or not root.is_dir():
        raise DatasetError(f"--data camvid:DIR: {place!r} is no folder; expected one that holds train/ and val/")
    classes, colors = _read_classes(root)
    train, val = _open_part(root, "train", classes, colors), _open_part(root, "val", classes, colors)
    if train.classes != val.classes:
        raise DatasetError(
            f"{root}: one part has index masks of {len(CAMVID)} classes, the other colour masks of the {len(classes)} "
            "of class_dict.csv; expected the same classes in both"
        )
    return Split(train, val)


def _open_part(root: Path, part: str, classes: ClassTable, colors: ColorTable) -> CamVid:
    index_masks, color_masks = root / f"{part}annot", root / f"{part}_labels"
    if index_masks.is_dir():
        return CamVid(_pairs(root / part, index_masks), CAMVID, _decode_ids)
    if color_masks.is_dir():
        return CamVid(_pairs(root / part, color_masks), classes, lambda mask, path: _decode_colors(colors, mask, path))
    raise DatasetError(f"{root}: found neither {index_masks.name}/ nor {color_masks.name}/; CamVid keeps masks in one")


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    if not images.is_dir():
        raise DatasetError(f"{images} is missing; expected the pictures whose masks are in {masks}")
    pictures = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise DatasetError(f"{images} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    candidates = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    found = {path: candidates.get(path.stem) or candidates.get(f"{path.stem}_L") for path in pictures}
    missing = [path for path, mask in found.items() if mask is None]
    if missing:
        raise DatasetError(
            f"{missing[0]} has no mask in {masks} (expected {missing[0].stem}.png); "
            f"{len(missing)} of {len(pictures)} pictures have none"
        )
    orphans = sorted(set(candidates.values()) - set(found.values()))
    if orphans:
        raise DatasetError(
            f"{orphans[0]} has no picture of its name in {images}; {len(orphans)} of {len(candidates)} masks have none"
        )
    return [(path, mask) for path, mask in found.items() if mask is not None]


def _decode_ids(mask: NDArray[Any], path: Path) -> NDArray[Any]:
    if mask.ndim != 2:
        raise DatasetError(f"{path}: a colour mask among index masks; expected grey values 0…{VOID_ID}")
    check_ids(mask, len(CAMVID) + 1, IGNORE_INDEX, path)
    return np.where(mask == VOID_ID, np.uint8(IGNORE_INDEX), mask)


def _decode_colors(colors: ColorTable, mask: NDArray[Any], path: Path) -> NDArray[Any]:
    if mask.ndim != 3:
        raise DatasetError(f"{path}: a grey or palette mask among colour masks; expected RGB")
    return colors.decode(mask, path)


def _read_classes(root: Path) -> tuple[ClassTable, ColorTable]:
    path = root / "class_dict.csv"
    if not path.is_file():
        ids = {color: class_id for class_id, color in enumerate(CAMVID.palette)}
        ids |= {CAMVID_PAVEMENT_IN_32_CLASSES: CAMVID.names.index("Pavement"), VOID_COLOR: IGNORE_INDEX}
        return CAMVID, ColorTable(ids)
    rows = _read_class_dict(path)
    classes = ClassTable.of([row for row in rows if row[0].lower() not in VOID_NAMES])
    if not 0 < len(classes) < IGNORE_INDEX:
        raise DatasetError(f"{path} lists {len(classes)} classes besides void; expected 1…{IGNORE_INDEX - 1}")
    ids = {color: class_id for class_id, color in enumerate(classes.palette)}
    return classes, ColorTable(ids | {color: IGNORE_INDEX for name, color in rows if name.lower() in VOID_NAMES})


def _read_class_dict(path: Path) -> list[tuple[str, Color]]:
    rows: list[tuple[str, Color]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                red, green, blue = (int(row[channel]) for channel in "rgb")
                if not all(0 <= value <= 255 for value in (red, green, blue)):
                    raise ValueError(f"colour {red, green, blue} is outside 0…255")
                rows.append((row["name"].strip(), (red, green, blue)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected the columns name,r,g,b with colours 0…255 ({error})") from error
    if len({color for _, color in rows}) < len(rows) or len({name for name, _ in rows}) < len(rows):
        raise DatasetError(f"{path}: a name or a colour stands twice; each class needs its own")
    return rows
