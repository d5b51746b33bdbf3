"""Pascal VOC (Everingham et al., IJCV 2010), and what annotation tools write in its form.

* Pascal VOC: lists in ``ImageSets/Segmentation``, ``JPEGImages``, ``SegmentationClass`` of palette PNGs: 21 classes,
  255 is void. Masks in VOC's colours as RGB are read, too.
* CVAT's "Segmentation mask 1.1": the classes and their colours are in ``labelmap.txt``, masks are read by these
  colours; the only list is ``default.txt``; the pictures are often elsewhere.
* labelme2voc: the classes are in ``class_names.txt``, there are no lists, and the masks are in
  ``SegmentationClassPNG`` or ``SegmentationClass``.

Classes whose names mean void, such as ``ignored``, are. Where ``train`` and ``val`` are not both listed, part of the
pictures is held out.
"""

from pathlib import Path
from typing import Final

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import VOC, VOC_VOID_COLOR, VOID_NAMES, ClassTable, Color, voc_colors
from segship.training.data import IGNORE_INDEX, DataOptions, Split
from segship.training.data.masks import ColorTable, MaskReader, check_classes, renumber
from segship.training.data.pairs import (
    Pair,
    Pairs,
    hold_out,
    keep_own_split,
    pair_by_name,
    pair_listed,
    pictures_by_name,
    read_names,
)

LISTS: Final = Path("ImageSets/Segmentation")
MASK_FOLDERS: Final = ("SegmentationClassPNG", "SegmentationClass")
WHOLE_LISTS: Final = ("trainval", "default", "train")
"""Lists that are split where ``train`` and ``val`` are not both there; the first of them that is."""


def open_voc(place: str, options: DataOptions) -> Split:
    """Open a dataset in Pascal VOC's form.

    Args:
        place: the folder that holds the masks' folder, such as ``VOCdevkit/VOC2012``, or one that holds that folder.
        options: ``ignore`` takes ids as they are stored; the remaining classes are numbered anew.

    Raises:
        DatasetError: if folders or lists are missing, an entry lacks its picture or its mask, or the classes are
            unusable.
    """
    root = _find_root(place)
    classes, read = _read_classes(root, options.ignore)
    train, val = _find_pairs(root, options)
    return Split(Pairs(train, classes, read), Pairs(val, classes, read))


def _find_root(place: str) -> Path:
    folder = Path(place)
    if not place or not folder.is_dir():
        raise DatasetError(f"--data voc:DIR: {place!r} is no folder; expected one such as VOCdevkit/VOC2012")
    if _mask_folder(folder):
        return folder
    years = sorted(path for path in [*folder.glob("VOC20*"), *folder.glob("VOCdevkit/VOC20*")] if _mask_folder(path))
    if len(years) > 1:
        names = " and ".join(path.name for path in years)
        raise DatasetError(f"{folder} holds {names}; name one of them, such as --data voc:{years[-1]}")
    if not years:
        raise DatasetError(f"{folder} holds none of {', '.join(MASK_FOLDERS)} and no VOC20xx that does")
    return years[0]


def _mask_folder(root: Path) -> Path | None:
    return next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)


def _find_pairs(root: Path, options: DataOptions) -> tuple[list[Pair], list[Pair]]:
    masks = _mask_folder(root) or root
    images = options.images or root / "JPEGImages"
    if options.images and not images.is_dir():
        raise DatasetError(f"--images DIR: {str(images)!r} is no folder; expected the one that holds the pictures")
    if not images.is_dir() or not pictures_by_name(images):
        raise DatasetError(f"{images} holds no pictures; where they are elsewhere, name their folder: --images DIR")
    lists = {path.stem.lower(): path for path in sorted((root / LISTS).glob("*.txt"))}  # CVAT's may be Train.txt
    train, val = lists.get("train"), lists.get("val", lists.get("validation"))
    if train and val:
        keep_own_split(options.val_fraction, f"{val}")
        return pair_listed(read_names(train), images, masks, train), pair_listed(read_names(val), images, masks, val)
    if lists:
        origin = next((lists[name] for name in WHOLE_LISTS if name in lists), None)
        if origin is None:
            found = ", ".join(path.name for path in lists.values())
            raise DatasetError(f"{root / LISTS} holds {found}; expected train.txt and val.txt, or trainval.txt")
        pairs = pair_listed(read_names(origin), images, masks, origin)
    else:
        pairs = pair_by_name(images, masks)
    named = [(pair[1].relative_to(masks).as_posix(), pair) for pair in pairs]
    return hold_out(named, options.val_fraction, options.split_seed)


def _read_classes(root: Path, ignore: tuple[int, ...]) -> tuple[ClassTable, MaskReader]:
    """Return the classes besides void, and what reads masks of them."""
    labelmap, class_names = root / "labelmap.txt", root / "class_names.txt"
    if labelmap.is_file():
        stored = _read_labelmap(labelmap)
        void_colors: dict[Color, int] = {}
        advice = "add it to labelmap.txt"
    else:
        stored = _read_class_names(class_names) if class_names.is_file() else VOC
        void_colors = {VOC_VOID_COLOR: IGNORE_INDEX}
        advice = f"take the colours of Pascal VOC's ids 0…{len(stored) - 1}"
    void = {class_id for class_id, name in enumerate(stored.names) if name.lower() in VOID_NAMES}
    classes, ids = renumber(stored, void | set(ignore))
    colors = ColorTable(void_colors | dict(zip(stored.palette, ids, strict=True)), advice=advice)
    return classes, MaskReader(ids, colors, palette_by_color=labelmap.is_file())


def _read_labelmap(path: Path) -> ClassTable:
    """Read lines of name:r,g,b:parts:actions."""
    rows: list[tuple[str, Color]] = []
    for line in read_names(path):
        if line.startswith("#"):
            continue
        name, *rest = line.split(":")
        try:
            red, green, blue = (int(value) for value in rest[0].split(","))
        except (ValueError, IndexError):
            raise DatasetError(f"{path}: {line!r} is no class; expected name:r,g,b:parts:actions") from None
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise DatasetError(f"{path}: {line!r} has a colour outside 0…255")
        rows.append((name.strip(), (red, green, blue)))
    return check_classes(ClassTable.of(rows), path)


def _read_class_names(path: Path) -> ClassTable:
    names = read_names(path)
    if names[0] == "__ignore__":  # whose id is -1, stored as 255
        names = names[1:]
    return check_classes(ClassTable(tuple(names), voc_colors(len(names))), path)
