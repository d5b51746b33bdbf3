"""Any pictures with masks, in two folders.

The folder holds ``images/`` and ``masks/``, part of which is held out, or ``train_data/`` and ``test_data/`` with an
``images/`` and a ``masks/`` each. A mask has the name of its picture, and is one of

* grey or palette PNGs of class ids, 255 is void
* PNGs of 0 and 255 (or 1-bit ones): two classes, white is the second of them. They count as such if all masks are so
* RGB PNGs in the colours of ``classes.json``

``classes.json`` lies beside and names the classes as ``seg-infer`` does: ``[{"id": 0, "name": "road", "color":
[128, 64, 128]}, …]``, ids 0, 1, … in any order. A class called void, unlabelled, ignored or ignore is void, whatever
its id; so an entry of id 255 can give void a colour. Without the file, classes are called "class 0" up to the largest
id there is.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import VOID_NAMES, ClassTable, Color, distinct_colors
from segship.runtime.preprocess import Depth
from segship.runtime.strict import parse
from segship.training.data import IGNORE_INDEX, DataOptions, Split
from segship.training.data.masks import ColorTable, MaskReader, check_classes, read_mask, renumber
from segship.training.data.pairs import Pair, Pairs, hold_out, keep_own_split, pair_by_name
from segship.training.data.parallel import in_parallel

WHITE: Final = 255
BLACK_AND_WHITE: Final = ClassTable.of([("background", (0, 0, 0)), ("foreground", (244, 196, 48))])
LONGEST_LIST: Final = 200
CLASSES_FORM: Final = '[{"id": 0, "name": "road", "color": [128, 64, 128]}, …]'


def open_folder(place: str, options: DataOptions) -> Split:
    """Open pictures with masks.

    The first picture says whether the dataset is grey or RGB, 8-bit or 16-bit.

    Args:
        place: the folder.
        options: ``ignore`` takes ids as they are stored; the remaining classes are numbered anew.

    Raises:
        DatasetError: if folders are missing, pictures and masks do not belong together, or the classes are unusable.
    """
    root = Path(place)
    if not place or not root.is_dir():
        raise DatasetError(f"--data folder:DIR: {place!r} is no folder; expected one that holds images/ and masks/")
    train, val = _find_pairs(root, options)
    masks = [mask for _, mask in (*train, *val)]
    if lossy := [mask for mask in masks if mask.suffix.lower() in (".jpg", ".jpeg")]:
        raise DatasetError(
            f"{lossy[0]}: JPEG changes ids and colours; save masks as PNG (bag:DIR reads black and white JPEG masks)"
        )
    path = root / "classes.json"
    if path.is_file():
        classes, read = _classes_of_file(path, masks, options.ignore)
    else:
        classes, read = _classes_of_masks(root, masks, options.ignore)
    if len(classes) < 2:
        raise DatasetError(f"{root} has one class only, {classes.names[0]!r}; expected at least two")
    channels, depth, first = _form([picture for picture, _ in (*train, *val)])
    parts = (Pairs(pairs, classes, read, channels=channels, depth=depth, like=first) for pairs in (train, val))
    return Split(*parts)


def _find_pairs(root: Path, options: DataOptions) -> tuple[list[Pair], list[Pair]]:
    train, test = root / "train_data", root / "test_data"
    if train.is_dir() or test.is_dir():
        keep_own_split(options.val_fraction, str(test))
        return pair_by_name(train / "images", train / "masks"), pair_by_name(test / "images", test / "masks")
    images, masks = root / "images", root / "masks"
    if not images.is_dir() and not masks.is_dir():
        raise DatasetError(f"{root} holds neither images/ and masks/ nor train_data/ and test_data/; expected either")
    named = [(pair[0].relative_to(images).with_suffix("").as_posix(), pair) for pair in pair_by_name(images, masks)]
    return hold_out(named, options.val_fraction, options.split_seed)


def _form(pictures: Sequence[Path]) -> tuple[int, Depth, Path]:
    """Return channels and depth of the first picture that can be opened, and which one that is."""
    for path in pictures:
        try:
            with PillowImage.open(path) as image:
                channels = 1 if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16") else 3
                # Pillow's mode does not tell of the 16 bits of colour; its raw mode does.
                deep = image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in image.tile)
                return channels, "uint16" if deep else "uint8", path
        except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError):
            continue  # what is wrong with it is said when it is read
    return 3, "uint8", pictures[0]


@dataclass(frozen=True)
class _Entry:
    """One entry of ``classes.json``."""

    id: int
    name: str
    color: tuple[int, int, int]

    @property
    def is_void(self) -> bool:
        return self.name.lower() in VOID_NAMES | {"ignore"}


def _classes_of_file(path: Path, masks: Sequence[Path], ignore: Collection[int]) -> tuple[ClassTable, MaskReader]:
    """Return the classes that ``classes.json`` names besides void, and what reads masks of them."""
    entries = _read_entries(path)
    stored = [entry for entry in entries if entry.id != IGNORE_INDEX]
    void = {entry.id for entry in stored if entry.is_void}
    classes, ids = renumber(ClassTable.of([(entry.name, entry.color) for entry in stored]), void | set(ignore))
    colors = {entry.color: IGNORE_INDEX if entry.id == IGNORE_INDEX else ids[entry.id] for entry in entries}
    black_and_white = len(stored) == len(entries) == 2 and not void and _scan(masks).black_and_white
    if black_and_white:
        ids = _at_black_and_white(ids)
        colors = _as_greys(ids) | colors
    return classes, MaskReader(ids, ColorTable(colors, advice=f"add it to {path}"), one_bit=black_and_white)


def _read_entries(path: Path) -> list[_Entry]:
    """Read ``classes.json``, in the order of ids.

    Raises:
        DatasetError: if it is no such file, or its ids are not 0…N−1 (and 255 for void), or a name or colour stands
            twice.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}); expected {CLASSES_FORM}") from error
    if not isinstance(listed, list) or not listed:
        raise DatasetError(f"{path}: expected a list of classes, {CLASSES_FORM}")
    entries = [parse(_Entry, entry, f"{path}: [{index}]", DatasetError) for index, entry in enumerate(listed)]
    entries.sort(key=lambda entry: entry.id)
    for entry in entries:
        if not all(0 <= value <= 255 for value in entry.color):
            raise DatasetError(f"{path}: {entry.name!r} has the colour {entry.color}; expected values 0…255")
        if entry.id == IGNORE_INDEX and not entry.is_void:
            raise DatasetError(f"{path}: {entry.name!r} has the id 255, which is void; expected ids 0, 1, …")
    ids = [entry.id for entry in entries if entry.id != IGNORE_INDEX]
    if ids != list(range(len(ids))):
        listed_ids = ", ".join(map(str, ids))
        shown = listed_ids if len(listed_ids) <= LONGEST_LIST else f"{listed_ids[:LONGEST_LIST]}…"
        raise DatasetError(f"{path} has the ids {shown}; expected 0…{len(ids) - 1}, each once")
    check_classes(ClassTable.of([(entry.name, entry.color) for entry in entries]), path)
    return entries


def _classes_of_masks(root: Path, masks: Sequence[Path], ignore: Collection[int]) -> tuple[ClassTable, MaskReader]:
    """Return classes for the ids that masks hold, and what reads these masks."""
    found = _scan(masks)
    if not found.values:
        raise DatasetError(f"{masks[0]}: masks of colours need a {root / 'classes.json'}: {CLASSES_FORM}")
    if found.black_and_white:
        classes, ids = renumber(BLACK_AND_WHITE, ignore)
        ids = _at_black_and_white(ids)
    else:
        count = max(found.values - {IGNORE_INDEX}) + 1
        names = tuple(f"class {class_id}" for class_id in range(count))
        classes, ids = renumber(ClassTable(names, distinct_colors(count)), ignore)
    advice = f"name the classes and their colours in {root / 'classes.json'}"
    colors = ColorTable(_as_greys(ids), advice=advice) if found.rgb else None
    return classes, MaskReader(ids, colors, one_bit=found.black_and_white)


def _at_black_and_white(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Move the two ids to where black and white are among 0…255."""
    return (ids[0], *[IGNORE_INDEX] * (WHITE - 1), ids[1])


def _as_greys(ids: tuple[int, ...]) -> dict[Color, int]:
    """Return what greys mean in RGB masks that hold nothing else."""
    return {(WHITE, WHITE, WHITE): IGNORE_INDEX} | {(value, value, value): new for value, new in enumerate(ids)}


@dataclass(frozen=True)
class _Scan:
    """What a set of masks holds.

    Attributes:
        values: that occur in grey and palette masks, and in RGB masks without colours.
        rgb: whether there are RGB masks.
    """

    values: frozenset[int]
    rgb: bool

    @property
    def black_and_white(self) -> bool:
        return WHITE in self.values <= {0, WHITE}


def _scan(masks: Sequence[Path]) -> _Scan:
    """Look into all masks, as far as they can be read.

    Raises:
        DatasetError: if none can be.
    """
    scans = [scan for scan in in_parallel(_scan_one, masks) if scan is not None]
    if not scans:
        read_mask(masks[0], one_bit=True)  # raises what is wrong with it
    return _Scan(frozenset().union(*(scan.values for scan in scans)), any(scan.rgb for scan in scans))


def _scan_one(path: Path) -> _Scan | None:
    try:
        mask = read_mask(path, one_bit=True)
    except DatasetError:
        return None  # what is wrong with it is said when it is read as part of the dataset
    rgb = mask.ndim == 3
    if rgb and not (mask[..., :1] == mask).all():
        return _Scan(frozenset(), rgb)
    grey = np.ascontiguousarray(mask[..., 0] if rgb else mask)
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256])  # unlike np.bincount, it lets other threads run
    return _Scan(frozenset(np.flatnonzero(counts).tolist()), rgb)
