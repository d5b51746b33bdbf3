import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from segship.runtime.errors import DatasetError
from segship.training.data import DataOptions, Split, open_dataset

Document = dict[str, Any]

CATEGORIES = [
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 3, "name": "car", "supercategory": "vehicle"},
]
SQUARE = [2, 1, 8, 1, 8, 6, 2, 6]  # rows 1…5, columns 2…7
OTHER_SQUARE = [5, 3, 11, 3, 11, 9, 5, 9]  # rows 3…8, columns 5…10


def _object(number: int, image_id: int, category_id: int, segmentation: object, **more: object) -> Document:
    box = {"bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": 0}
    return {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": segmentation} | box | more


def _document(objects: list[Document], count: int = 4) -> Document:
    images = [{"id": 10 * n, "file_name": f"{n}.jpg", "height": 10, "width": 12, "license": 1} for n in range(count)]
    return {"info": {}, "images": images, "annotations": objects, "categories": CATEGORIES}


def _save_pictures(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        PillowImage.new("RGB", (12, 10), (40 * number, 0, 0)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSON file in ``annotations/`` and its pictures, 10×12 pixels, in ``images/`` beside that folder."""

    def _write(objects: list[Document], **changes: object) -> Path:
        path = tmp_path / "annotations/instances_all.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_document(objects) | changes))
        _save_pictures(tmp_path / "images")
        return path

    return _write


def _read(path: Path, **options: object) -> Split:
    split = open_dataset(f"coco:{path}", DataOptions(**options))  # type: ignore[arg-type]
    for part in (split.train, split.val):
        for index in range(len(part)):
            part[index]
    return split


def _labels(split: Split, name: str = "0") -> np.ndarray:
    samples = [part[index] for part in (split.train, split.val) for index in range(len(part))]
    labels: np.ndarray = next(sample.labels for sample in samples if sample.name == name)
    assert labels.dtype == np.uint8
    return labels


def _expected(*rectangles: tuple[int, int, int, int, int]) -> np.ndarray:
    """Labels 10×12 of (top, left, bottom, right, id), later over earlier."""
    labels = np.zeros((10, 12), np.uint8)
    for top, left, bottom, right, class_id in rectangles:
        labels[top:bottom, left:right] = class_id
    return labels


def _mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    return np.asfortranarray(_expected((top, left, bottom, right, 1)))


def _uncompressed(mask: np.ndarray) -> Document:
    pixels = mask.T.ravel()
    edges = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if pixels[0] == 0 else [0, *counts]}


def _compressed(mask: np.ndarray) -> Document:
    return {"size": list(mask.shape), "counts": coco_mask.encode(mask)["counts"].decode()}


def test_categories_follow_background_in_the_order_of_their_ids(write: Callable[..., Path]) -> None:
    split = _read(write([_object(1, 0, 18, [SQUARE]), _object(2, 10, 3, [SQUARE])]))
    assert split.train.classes.names == split.val.classes.names == ("background", "car", "dog")
    assert split.train.classes.palette[0] == (0, 0, 0)
    assert len(set(split.train.classes.palette)) == 3
    np.testing.assert_array_equal(_labels(split, "0"), _expected((1, 2, 6, 8, 2)))
    np.testing.assert_array_equal(_labels(split, "1"), _expected((1, 2, 6, 8, 1)))
    np.testing.assert_array_equal(_labels(split, "2"), _expected())  # no objects: background alone


@pytest.mark.parametrize("form", [_uncompressed, _compressed, lambda _: [SQUARE]], ids=["numbers", "text", "polygon"])
def test_every_form_of_area_says_the_same(write: Callable[..., Path], form: Callable[[np.ndarray], object]) -> None:
    path = write([_object(1, 0, 3, form(_mask(1, 2, 6, 8)))])
    np.testing.assert_array_equal(_labels(_read(path)), _expected((1, 2, 6, 8, 1)))


def test_a_later_object_lies_over_an_earlier_one(write: Callable[..., Path]) -> None:
    car, dog = _object(1, 0, 3, [SQUARE]), _object(2, 0, 18, [OTHER_SQUARE])
    np.testing.assert_array_equal(_labels(_read(write([car, dog]))), _expected((1, 2, 6, 8, 1), (3, 5, 9, 11, 2)))
    np.testing.assert_array_equal(_labels(_read(write([dog, car]))), _expected((3, 5, 9, 11, 2), (1, 2, 6, 8, 1)))


@pytest.mark.parametrize("crowd_first", [True, False])
def test_a_crowd_is_void_and_lies_under_all_objects(write: Callable[..., Path], crowd_first: bool) -> None:
    crowd = _object(1, 0, 18, _uncompressed(_mask(0, 0, 10, 7)), iscrowd=1)
    car = _object(2, 0, 3, [SQUARE])
    split = _read(write([crowd, car] if crowd_first else [car, crowd]))
    np.testing.assert_array_equal(_labels(split), _expected((0, 0, 10, 7, 255), (1, 2, 6, 8, 1)))


def test_an_object_may_have_several_polygons(write: Callable[..., Path]) -> None:
    split = _read(write([_object(1, 0, 3, [SQUARE, OTHER_SQUARE])]))
    np.testing.assert_array_equal(_labels(split), _expected((1, 2, 6, 8, 1), (3, 5, 9, 11, 1)))


def test_ignored_categories_are_void_and_0_is_the_background(write: Callable[..., Path]) -> None:
    path = write([_object(1, 0, 18, [SQUARE]), _object(2, 0, 3, [OTHER_SQUARE])])
    split = _read(path, ignore=(3,))
    assert split.train.classes.names == ("background", "dog")
    np.testing.assert_array_equal(_labels(split), _expected((1, 2, 6, 8, 1), (3, 5, 9, 11, 255)))
    split = _read(path, ignore=(0,))
    assert split.train.classes.names == ("car", "dog")
    expected = _expected((0, 0, 10, 12, 255), (1, 2, 6, 8, 1), (3, 5, 9, 11, 0))
    np.testing.assert_array_equal(_labels(split), expected)


def test_a_category_of_id_0_is_no_background(write: Callable[..., Path]) -> None:
    categories = [{"id": 0, "name": "crack"}, {"id": 1, "name": "dent"}]
    path = write([_object(1, 0, 0, [SQUARE])], categories=categories)
    assert _read(path).train.classes.names == ("background", "crack", "dent")
    np.testing.assert_array_equal(_labels(_read(path)), _expected((1, 2, 6, 8, 1)))
    assert _read(path, ignore=(0,)).train.classes.names == ("background", "dent")


def test_categories_called_background_and_void_are_these(write: Callable[..., Path]) -> None:
    categories = [{"id": 1, "name": "Background"}, {"id": 2, "name": "Void"}, {"id": 3, "name": "car"}]
    squares = [_object(1, 0, 3, [SQUARE]), _object(2, 0, 1, [OTHER_SQUARE]), _object(3, 10, 2, [SQUARE])]
    split = _read(write(squares, categories=categories))
    assert split.train.classes.names == ("background", "car")
    np.testing.assert_array_equal(_labels(split, "0"), _expected((1, 2, 6, 8, 1), (3, 5, 9, 11, 0)))
    np.testing.assert_array_equal(_labels(split, "1"), _expected((1, 2, 6, 8, 255)))


def test_part_is_held_out_whatever_the_order_of_the_file(write: Callable[..., Path]) -> None:
    split = _read(write([]), val_fraction=0.5, split_seed=2)
    assert (len(split.train), len(split.val)) == (2, 2)
    held_out = [split.val[index].name for index in range(2)]
    turned = _read(write([], images=_document([])["images"][::-1]), val_fraction=0.5, split_seed=2)
    assert [turned.val[index].name for index in range(2)] == held_out
    assert len(_read(write([])).val) == 1


@pytest.mark.parametrize(
    ("train", "val", "pictures"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", ("train2017", "val2017")),
        ("train.json", "val.json", ("", "")),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", ("train", "valid")),
    ],
    ids=["COCO", "one folder", "Roboflow"],
)
def test_a_file_of_training_pictures_finds_that_of_validation_pictures(
    tmp_path: Path, train: str, val: str, pictures: tuple[str, str]
) -> None:
    for name, folder, count in ((train, pictures[0], 3), (val, pictures[1], 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(_document([_object(1, 0, 18, [SQUARE])], count)))
        _save_pictures(tmp_path / folder, count)
    split = _read(tmp_path / train)
    assert (len(split.train), len(split.val)) == (3, 2)
    np.testing.assert_array_equal(split.val[0].labels, _expected((1, 2, 6, 8, 2)))
    with pytest.raises(DatasetError, match=r"--val-fraction has no use where .*val.* says what is held out"):
        _read(tmp_path / train, val_fraction=0.2)
    (tmp_path / val).write_text(json.dumps(_document([], 2) | {"categories": CATEGORIES[:1]}))
    with pytest.raises(DatasetError, match=r"lists other categories than .*json; expected the same in both"):
        _read(tmp_path / train)


@pytest.mark.parametrize("place", ["images", "annotations/images", "annotations", "", "all", "images/all", "elsewhere"])
def test_pictures_are_found_where_tools_put_them(write: Callable[..., Path], tmp_path: Path, place: str) -> None:
    path = write([])
    (tmp_path / "images").rename(tmp_path / "away")
    _save_pictures(tmp_path / place)
    given = {"images": tmp_path / place} if place == "elsewhere" else {}
    assert len(_read(path, **given).train) == 3


def test_a_file_name_may_hold_folders_and_backslashes(write: Callable[..., Path], tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"JPEGImages\\{n}.jpg", "height": 10, "width": 12} for n in range(3)]
    _save_pictures(tmp_path / "annotations/JPEGImages")
    assert len(_read(write([], images=images)).train) == 2


def test_a_part_survives_the_way_to_another_process(write: Callable[..., Path]) -> None:
    split = open_dataset(f"coco:{write([_object(1, n * 10, 3, [SQUARE]) for n in range(4)])}")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(split.train))[0].labels, split.train[0].labels)


def _images(**changes: object) -> list[Document]:
    images: list[Document] = _document([])["images"]
    return [images[0] | changes, *images[1:]]


@pytest.mark.parametrize(
    ("objects", "changes", "words"),
    [
        ([_object(7, 0, 4, [SQUARE])], {}, r"all\.json: annotation 7 has the unknown category 4; listed are 3, 18"),
        ([_object(7, 5, 3, [SQUARE])], {}, r"annotation 7 is of image 5, which is not listed"),
        ([_object(7, 0, 3, [[1, 2, 3]])], {}, r"all\.json: annotation 7 of 0\.jpg: a polygon has 3 numbers"),
        ([_object(7, 0, 3, [])], {}, r"annotation 7 of 0\.jpg has no area, perhaps a box alone"),
        ([_object(7, 0, 3, {"size": [10, 12], "counts": [3]})], {}, r"annotation 7 of 0\.jpg: its runs cover 3 pixels"),
        ([_object(7, "0", 3, [SQUARE])], {}, r"annotation 7 has image_id '0'; expected a whole number"),
        ([], {"images": _images(width=13)}, r"0\.jpg: the picture is 12×10 pixels, instances_all\.json says 13×10"),
        ([], {"images": _images(width=10**30)}, r"0\.jpg: the picture is 12×10 pixels, .* says 10000"),
        ([], {"images": _images(width=None)}, r"image 0 has width 'None'; expected a whole number"),
        ([], {"images": _images(height=True)}, r"image 0 has height 'True'; expected a whole number"),
        ([], {"images": _images(file_name=3)}, r"image 0 has file_name '3'; expected text"),
        ([], {"images": _images(file_name="1.jpg")}, r"two images have one file_name"),
        (
            [],
            {"images": _images(file_name="5.jpg")},
            r"all\.json: 5\.jpg is not in .*images; 1 of 4 pictures are not; name",
        ),
        (
            [],
            {"images": _images(file_name="x" * 9999)},
            r"all\.json: x{200} is not in .*images; 1 of 4 pictures are not",
        ),
        ([], {"images": _images(file_name="0\0.jpg")}, r"is not in .*images; 1 of 4 pictures are not"),
        ([], {"images": _images(id=10)}, r"two of the images have the id 10"),
        ([], {"images": []}, r"all\.json lists no images"),
        ([], {"images": {}}, r"all\.json: expected a list of objects under 'images'"),
        ([], {"annotations": [3]}, r"expected a list of objects under 'annotations'"),
        ([], {"categories": None}, r"expected a list of objects under 'categories'"),
        ([], {"categories": []}, r"lists 0 categories; expected 1…254"),
        ([], {"categories": [{"id": n, "name": f"{n}"} for n in range(255)]}, r"lists 255 categories; expected 1…254"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, r"two categories have one name"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, r"two of the categories have the id 1"),
        ([], {"categories": [{"id": 1}]}, r"category 1 has name 'None'; expected text"),
        ([], {"categories": [{"id": 1, "name": "\ud800x"}]}, r"all\.json: '\\ud800x' is no name of a class"),
        (
            [],
            {"categories": [{"id": 1, "name": "a\n\x1b[31m"}]},
            r"'a\\n\\x1b\[31m' is no name of a class; expected one line",
        ),
        ([], {"categories": [{"id": 1, "name": ""}]}, r"all\.json: '' is no name of a class"),
        ([_object(7, 0, 3, [SQUARE], iscrowd="0")], {}, r"annotation 7 has iscrowd '0'; expected 0 or 1"),
    ],
)
def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(
    write: Callable[..., Path], objects: list[Document], changes: Document, words: str
) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        _read(write(objects, **changes))
    assert "\n" not in str(caught.value)


def test_an_ignored_id_that_is_no_category_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match=r"--ignore 4 is no category of .*all\.json; its ids are 3, 18"):
        _read(write([]), ignore=(3, 4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"x\.json: cannot be read as JSON"),
        (b'{"images": [', r"x\.json: cannot be read as JSON"),
        (b"\x89PNG\xff\xfe", r"x\.json: cannot be read as JSON"),
        (b"[" * 100_000, r"x\.json: cannot be read as JSON"),
        (b"[]", r"x\.json: expected an object with images, annotations and categories"),
    ],
    ids=["empty", "cut off", "no text", "nested without end", "a list"],
)
def test_a_file_that_is_no_json_of_coco_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        _read(tmp_path / "x.json")


@pytest.mark.parametrize("place", ["", "/nowhere.json", "/"])
def test_no_file_is_refused(place: str) -> None:
    with pytest.raises(DatasetError, match=r"--data coco:FILE\.json: '.*' is no file; expected COCO's JSON of objects"):
        open_dataset(f"coco:{place}")


def test_without_pycocotools_one_line_says_how_to_install_it(write: Callable[..., Path]) -> None:
    code = """
import sys
sys.modules["pycocotools"] = None
from segship.runtime.errors import MissingExtraError
from segship.training.data import open_dataset
try:
    open_dataset(sys.argv[1])
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, f"coco:{write([])}"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--data coco needs pycocotools.mask, which does not import here")
    assert 'pip install "segship[train]"' in done.stdout
