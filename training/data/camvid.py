"""CamVid (Brostow et al., "Semantic Object Classes in Video", 2009) in the two forms it is passed around in.

* index masks: ``train/`` beside ``trainannot/``; grey PNGs of ids 0…10, 11 is void
* colour masks: ``train/`` beside ``train_labels/``; RGB PNGs, named like the picture or with ``_L`` after its name;
  colours from ``class_dict.csv`` (name,r,g,b) or the original's ``label_colors.txt`` (r g b name), which have 32 rows,
  or else the table of 11 classes and Unlabelled

Void and Unlabelled become the ignore index in all of them.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import (
    CAMVID,
    CAMVID_PAVEMENT_IN_32_CLASSES,
    VOID_COLOR,
    VOID_NAMES,
    ClassTable,
    Color,
)
from segship.training.data import IGNORE_INDEX, DataOptions, Split
from segship.training.data.masks import ColorTable, MaskReader, check_classes
from segship.training.data.pairs import Pairs, pair_by_name, read_names

INDEX_MASKS: Final = MaskReader(ids=(*range(len(CAMVID)), IGNORE_INDEX))


def open_camvid(place: str, _: DataOptions | None = None) -> Split:
    """Open CamVid, in whichever of its forms the folder holds.

    Args:
        place: the folder that holds ``train/`` and ``val/``, each with its masks beside it.

    Raises:
        DatasetError: if folders are missing or empty, a picture lacks its mask, or the class table is unusable.
    """
    root = Path(place)
    if not place or not root.is_dir():
        raise DatasetError(f"--data camvid:DIR: {place!r} is no folder; expected one that holds train/ and val/")
    classes, color_masks = _read_classes(root)
    train, val = _open_part(root, "train", classes, color_masks), _open_part(root, "val", classes, color_masks)
    if train.classes != val.classes:
        raise DatasetError(
            f"{root}: one part has index masks of {len(CAMVID)} classes, the other colour masks of the {len(classes)} "
            "of its table; expected the same classes in both"
        )
    return Split(train, val)


def _open_part(root: Path, part: str, classes: ClassTable, color_masks: MaskReader) -> Pairs:
    by_index, by_color = root / f"{part}annot", root / f"{part}_labels"
    if by_index.is_dir():
        return Pairs(pair_by_name(root / part, by_index, endings=("", "_L")), CAMVID, INDEX_MASKS)
    if by_color.is_dir():
        return Pairs(pair_by_name(root / part, by_color, endings=("", "_L")), classes, color_masks)
    raise DatasetError(f"{root}: found neither {by_index.name}/ nor {by_color.name}/; CamVid keeps masks in one")


def _read_classes(root: Path) -> tuple[ClassTable, MaskReader]:
    path, original = root / "class_dict.csv", root / "label_colors.txt"
    if path.is_file():
        rows = _read_class_dict(path)
    elif original.is_file():
        path, rows = original, _read_label_colors(original)
    else:
        ids = {color: class_id for class_id, color in enumerate(CAMVID.palette)}
        ids |= {CAMVID_PAVEMENT_IN_32_CLASSES: CAMVID.names.index("Pavement"), VOID_COLOR: IGNORE_INDEX}
        return CAMVID, MaskReader(colors=ColorTable(ids, advice=f"list the classes in {path} (name,r,g,b)"))
    check_classes(ClassTable.of(rows), path)
    classes = ClassTable.of([row for row in rows if row[0].lower() not in VOID_NAMES])
    if not 0 < len(classes) < IGNORE_INDEX:
        raise DatasetError(f"{path} lists {len(classes)} classes besides void; expected 1…{IGNORE_INDEX - 1}")
    ids = {color: class_id for class_id, color in enumerate(classes.palette)}
    ids |= {color: IGNORE_INDEX for name, color in rows if name.lower() in VOID_NAMES}
    return classes, MaskReader(colors=ColorTable(ids, advice=f"add it to {path.name}"))


def _read_class_dict(path: Path) -> list[tuple[str, Color]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            return [(row["name"].strip(), _color([row[channel] for channel in "rgb"])) for row in table]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected the columns name,r,g,b with colours 0…255 ({error})") from error


def _read_label_colors(path: Path) -> list[tuple[str, Color]]:
    """Read lines of three numbers and a name."""
    try:
        lines = [line.split(maxsplit=3) for line in read_names(path)]
        return [(name, _color([red, green, blue])) for red, green, blue, name in lines]
    except ValueError as error:
        raise DatasetError(f"{path}: expected lines of r g b name with colours 0…255 ({error})") from error


def _color(channels: Sequence[str]) -> Color:
    red, green, blue = (int(channel) for channel in channels)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {red, green, blue} is outside 0…255")
    return red, green, blue
