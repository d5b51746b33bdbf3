"""Objects in COCO's JSON (Lin et al., ECCV 2014), painted into masks.

Class 0 is background; the categories follow in the order of their ids, and one that is called background is class 0.
Objects are painted in the file's order, later over earlier. Crowds are void, and lie under all objects. A picture
without objects is background alone.

The pictures are looked for in ``--images``, or else in ``images/`` and beside the JSON, there and one folder up; in
these folders also in one that is called like the part (``train2017`` of ``instances_train2017.json``).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import VOID_COLOR, VOID_NAMES, ClassTable, distinct_colors
from segship.runtime.preprocess import Depth
from segship.training.data import IGNORE_INDEX, DataOptions, Sample, Split
from segship.training.data.areas import area_runs, paint_runs, require_pycocotools
from segship.training.data.masks import check_classes, renumber
from segship.training.data.pairs import hold_out, keep_own_split, read_picture

BACKGROUND: Final = "background"
MAX_CATEGORIES: Final = IGNORE_INDEX - 1

Row = dict[str, Any]


@dataclass(frozen=True)
class Area:
    """What an object covers: its id, its class or the ignore index, and its area as it stands in the JSON."""

    object_id: str
    class_id: int
    segmentation: object


@dataclass(frozen=True)
class Picture:
    """A picture: its ``file_name`` and size (height, width) in the JSON, its file, and what is painted, in order."""

    name: str
    path: Path
    size: tuple[int, int]
    areas: tuple[Area, ...]


class Coco:
    """One part of a dataset in COCO's form.

    Args:
        origin: the JSON file.
        pictures: with their objects.
        classes: names and colours.
        background: class id of what no object covers, or the ignore index.
    """

    channels = 3
    depth: Depth = "uint8"

    def __init__(self, origin: Path, pictures: list[Picture], classes: ClassTable, background: int) -> None:
        self.origin = origin
        self.pictures = pictures
        self.classes = classes
        self.background = background

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        picture = self.pictures[index]
        image = read_picture(picture.path, channels=self.channels, depth=self.depth)
        if image.shape[:2] != picture.size:
            raise DatasetError(
                f"{picture.path}: the picture is {image.shape[1]}×{image.shape[0]} pixels, {self.origin.name} says "
                f"{picture.size[1]}×{picture.size[0]}; expected the same size"
            )
        return Sample(picture.path.stem, image, self._paint(picture))

    def _paint(self, picture: Picture) -> NDArray[np.uint8]:
        height, width = picture.size
        by_columns = np.full(width * height, self.background, np.uint8)
        for area in picture.areas:
            where = f"{self.origin}: annotation {area.object_id} of {picture.name}"
            for runs in area_runs(area.segmentation, picture.size, where):
                paint_runs(by_columns, runs, area.class_id)
        return np.ascontiguousarray(by_columns.reshape(width, height).T)


def open_coco(place: str, options: DataOptions) -> Split:
    """Open a dataset in COCO's form.

    A file with ``train`` in its name is the training part where one with ``val`` instead lies beside it; that holds
    also for folders, as in ``train/_annotations.coco.json`` and ``valid/_annotations.coco.json``. Otherwise part of
    the pictures is held out.

    Args:
        place: the JSON file.
        options: ``ignore`` takes ids of categories; 0 is the background, unless a category has that id.

    Raises:
        DatasetError: if the file is none of COCO's, its parts do not fit each other, or pictures are missing.
        MissingExtraError: if pycocotools is not installed.
    """
    origin = Path(place)
    if not place or not origin.is_file():
        raise DatasetError(f"--data coco:FILE.json: {place!r} is no file; expected COCO's JSON of objects")
    require_pycocotools()  # now, and not at the first polygon
    document = _read_json(origin)
    classes, ids, background = _read_categories(document, origin, options.ignore)
    pictures = _read_pictures(document, origin, ids, options.images)
    other = _validation_file(origin)
    if other is None:
        named = [(picture.name, picture) for picture in pictures]
        train, val = hold_out(named, options.val_fraction, options.split_seed)
        return Split(Coco(origin, train, classes, background), Coco(origin, val, classes, background))
    keep_own_split(options.val_fraction, str(other))
    document = _read_json(other)
    if _read_categories(document, other, options.ignore) != (classes, ids, background):
        raise DatasetError(f"{other} lists other categories than {origin.name}; expected the same in both")
    held_out = _read_pictures(document, other, ids, options.images)
    return Split(Coco(origin, pictures, classes, background), Coco(other, held_out, classes, background))


def _validation_file(origin: Path) -> Path | None:
    words = ("val", "valid", "validation")
    beside = [origin.with_name(origin.name.replace("train", word)) for word in words if "train" in origin.name]
    folders = [origin.parent.with_name(word) / origin.name for word in words if origin.parent.name == "train"]
    return next((path for path in beside + folders if path.is_file()), None)


def _read_json(path: Path) -> Row:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: expected an object with images, annotations and categories")
    return document


def _rows(document: Row, key: str, origin: Path) -> list[Row]:
    rows = document.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{origin}: expected a list of objects under {key!r}")
    return rows


def _field(row: Row, key: str, kind: type, where: str) -> Any:
    value = row.get(key)
    if type(value) is not kind:
        raise DatasetError(
            f"{where} has {key} {str(value)[:60]!r}; expected {'text' if kind is str else 'a whole number'}"
        )
    return value


def _by_id(rows: Iterable[Row], what: str, origin: Path) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for row in rows:
        row_id = _field(row, "id", int, f"{origin}: one of the {what}")
        if row_id in found:
            raise DatasetError(f"{origin}: two of the {what} have the id {row_id}")
        found[row_id] = row
    return found


def _read_categories(document: Row, origin: Path, ignore: tuple[int, ...]) -> tuple[ClassTable, dict[int, int], int]:
    """Return the classes besides void, the class id of each category, and that of the background."""
    categories = _by_id(_rows(document, "categories", origin), "categories", origin)
    names = {
        category_id: str(_field(categories[category_id], "name", str, f"{origin}: category {category_id}"))
        for category_id in sorted(categories)
    }
    if len(set(names.values())) < len(names):
        raise DatasetError(f"{origin}: two categories have one name; each needs its own")
    if not 0 < len(names) <= MAX_CATEGORIES:
        raise DatasetError(f"{origin} lists {len(names)} categories; expected 1…{MAX_CATEGORIES}")
    objects = [category_id for category_id, name in names.items() if name.lower() != BACKGROUND]
    place = dict.fromkeys(names, 0) | {category_id: index for index, category_id in enumerate(objects, 1)}
    all_names = (BACKGROUND, *(names[category_id] for category_id in objects))
    by_stored_id = {0: 0} | place
    if strange := sorted(set(ignore) - set(by_stored_id)):
        raise DatasetError(
            f"--ignore {strange[0]} is no category of {origin}; its ids are {', '.join(map(str, names))}"
        )
    void = {index for index, name in enumerate(all_names) if name.lower() in VOID_NAMES}
    classes, ids = renumber(
        check_classes(ClassTable(all_names, (VOID_COLOR, *distinct_colors(len(objects)))), origin),
        void | {by_stored_id[stored] for stored in ignore},
    )
    return classes, {category_id: ids[index] for category_id, index in place.items()}, ids[0]


def _read_pictures(document: Row, origin: Path, ids: dict[int, int], images: Path | None) -> list[Picture]:
    rows = _by_id(_rows(document, "images", origin), "images", origin)
    areas: dict[int, list[Area]] = {image_id: [] for image_id in rows}
    crowds: dict[int, list[Area]] = {image_id: [] for image_id in rows}
    for row in _rows(document, "annotations", origin):
        object_id = repr(row.get("id"))[:60]
        where = f"{origin}: annotation {object_id}"
        image_id, category_id = (_field(row, key, int, where) for key in ("image_id", "category_id"))
        if image_id not in rows:
            raise DatasetError(f"{where} is of image {image_id}, which is not listed")
        if category_id not in ids:
            raise DatasetError(f"{where} has the unknown category {category_id}; listed are {', '.join(map(str, ids))}")
        crowd = row.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise DatasetError(f"{where} has iscrowd {str(crowd)[:60]!r}; expected 0 or 1")
        area = Area(object_id, IGNORE_INDEX if crowd else ids[category_id], row.get("segmentation"))
        (crowds if crowd else areas)[image_id].append(area)
    files = _find_files(rows, origin, images)
    pictures = []
    for image_id, row in rows.items():
        name, path = files[image_id]
        height, width = (_field(row, key, int, f"{origin}: image {image_id}") for key in ("height", "width"))
        pictures.append(Picture(name, path, (height, width), (*crowds[image_id], *areas[image_id])))
    return pictures


def _find_files(rows: dict[int, Row], origin: Path, images: Path | None) -> dict[int, tuple[str, Path]]:
    """Return the name and the file of each picture."""
    names = {
        image_id: str(_field(row, "file_name", str, f"{origin}: image {image_id}")).replace("\\", "/")
        for image_id, row in rows.items()  # tools on Windows may write backslashes
    }
    if not names:
        raise DatasetError(f"{origin} lists no images")
    if len(set(names.values())) < len(names):
        raise DatasetError(f"{origin}: two images have one file_name; expected each picture once")
    places = (
        [images] if images else [up / name for up in (origin.parent, origin.parent.parent) for name in ("images", "")]
    )
    part = origin.stem.removeprefix("instances_")
    folders = [folder for place in places for folder in (place, place / part)]
    some = list(names.values())[:100]
    folder = next((folder for folder in folders if any(_is_file(folder / name) for name in some)), places[0])
    missing = [name for name in names.values() if not _is_file(folder / name)]
    if missing:
        raise DatasetError(
            f"{origin}: {missing[0][:200]} is not in {folder}; {len(missing)} of {len(names)} pictures are not; "
            "name the folder that they are in: --images DIR"
        )
    return {image_id: (name, folder / name) for image_id, name in names.items()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for one
        return False
