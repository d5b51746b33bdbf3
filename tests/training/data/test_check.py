import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.training.data import Split, open_dataset
from segship.training.data.check import COMMONEST_SIZES, check_dataset
from segship.training.data.demo import Demo
from segship.training.data.report import DataReport, Duplicate, SizeCount

CLASSES = [
    {"id": 0, "name": "grass", "color": [10, 200, 30]},
    {"id": 1, "name": "road", "color": [128, 64, 128]},
    {"id": 2, "name": "sky", "color": [70, 130, 180]},
]


def _write(root: Path, part: str, name: str, *, height: int = 10, seed: int | None = None, void_rows: int = 1) -> None:
    """Write a picture of ``height`` × 10 pixels: void rows at the top, then one row of road, the rest grass."""
    for folder in ("images", "masks"):
        (root / f"{part}_data" / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(f"{part}{name}".encode()) if seed is None else seed)
    PillowImage.fromarray(rng.integers(0, 256, (height, 10, 3), np.uint8)).save(root / f"{part}_data/images/{name}.png")
    mask = np.zeros((height, 10), np.uint8)
    mask[:void_rows] = 255
    mask[void_rows : void_rows + 1] = 1
    PillowImage.fromarray(mask).save(root / f"{part}_data/masks/{name}.png")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four training and two test pictures, 10×10, of grass and road; sky never occurs."""
    for name in ("a", "b", "c", "d"):
        _write(tmp_path, "train", name)
    for name in ("x", "y"):
        _write(tmp_path, "test", name)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def _check(tree: Path) -> DataReport:
    return check_dataset(open_dataset(f"folder:{tree}"), lambda: None)


def test_pixels_and_pictures_of_each_class_are_counted_in_each_part(tree: Path) -> None:
    _write(tree, "train", "d", void_rows=0)
    report = _check(tree)
    assert (report.channels, report.depth) == (3, "uint8")
    assert (report.train.pictures, report.val.pictures) == (4, 2)
    grass, road, sky = report.train.classes
    assert (grass.name, grass.pixels, grass.pictures) == ("grass", 330, 4)
    assert (road.name, road.pixels, road.pictures) == ("road", 40, 4)
    assert (sky.name, sky.pixels, sky.share, sky.pictures) == ("sky", 0, 0.0, 0)
    assert (grass.share, road.share) == (330 / 370, 40 / 370)
    assert (report.train.void.pixels, report.train.void.share, report.train.void.pictures) == (30, 30 / 400, 3)
    assert [count.pixels for count in report.val.classes] == [160, 20, 0]


def test_a_sound_dataset_is_ok_and_a_class_that_is_missing_is_only_a_warning(tree: Path) -> None:
    report = _check(tree)
    assert report.ok
    assert report.train.absent == report.val.absent == ("sky",)
    assert report.warnings == (
        "never in the training part, so not to be learned: sky",
        "never in the validation part, so not to be scored: sky",
    )
    (tree / "classes.json").write_text(json.dumps(CLASSES[:2]))
    assert _check(tree).warnings == ()


def test_every_fault_is_reported_and_the_rest_is_counted(tree: Path) -> None:
    (tree / "train_data/images/b.png").write_bytes(b"?")
    PillowImage.fromarray(np.full((10, 10), 9, np.uint8)).save(tree / "train_data/masks/c.png")
    PillowImage.fromarray(np.zeros((10, 9), np.uint8)).save(tree / "test_data/masks/y.png")
    report = _check(tree)
    assert not report.ok
    first, second = report.train.faults
    assert "images/b.png: no picture that can be read" in first
    assert "masks/c.png: label id 9 is outside the classes 0…2" in second
    assert "masks/y.png: the mask is 9×10 pixels" in report.val.faults[0]
    assert report.faults == report.train.faults + report.val.faults
    assert (report.train.pictures, report.train.classes[0].pictures) == (4, 2)
    text = report.to_text()
    assert "faults: 3\n" in text
    assert all(f"\n  {fault}" in text for fault in report.faults)


def test_a_dataset_of_nothing_but_faults_is_reported(tree: Path) -> None:
    for path in tree.glob("*/images/*.png"):
        path.write_bytes(b"?")
    report = _check(tree)
    assert len(report.faults) == 6
    assert report.sizes == ()
    assert [count.share for count in report.train.classes] == [0.0, 0.0, 0.0]
    assert "faults: 6\n" in report.to_text()


def test_the_same_picture_in_both_parts_is_named_and_comes_first(tree: Path) -> None:
    for part, name in (("train", "a"), ("train", "b"), ("train", "d"), ("test", "y")):
        _write(tree, part, name, seed=1 if name in "ab" else 2)
    report = _check(tree)
    assert report.duplicates == (Duplicate(("d",), ("y",), True), Duplicate(("a", "b"), (), True))
    assert report.ok
    assert report.warnings[:2] == (
        "the same picture: train d, val y; validation should only see what training has not",
        "the same picture: train a, train b",
    )


def test_duplicates_with_other_labels_are_told(tree: Path) -> None:
    _write(tree, "train", "a", seed=1)
    _write(tree, "train", "b", seed=1, void_rows=3)
    assert _check(tree).duplicates == (Duplicate(("a", "b"), (), False),)
    assert "the same picture: train a, train b, with different labels\n" in _check(tree).to_text()


def test_pixels_are_compared_not_files(tree: Path) -> None:
    with PillowImage.open(tree / "train_data/images/a.png") as image:
        image.save(tree / "train_data/images/e.bmp")
    shutil.copy(tree / "train_data/masks/a.png", tree / "train_data/masks/e.png")
    assert _check(tree).duplicates == (Duplicate(("a", "e"), (), True),)


def test_pictures_of_the_same_bytes_in_another_shape_are_no_duplicates(tree: Path) -> None:
    for name, shape in (("a", (10, 4, 3)), ("b", (4, 10, 3))):
        PillowImage.fromarray(np.arange(120, dtype=np.uint8).reshape(shape)).save(
            tree / f"train_data/images/{name}.png"
        )
        PillowImage.fromarray(np.zeros(shape[:2], np.uint8)).save(tree / f"train_data/masks/{name}.png")
    assert _check(tree).duplicates == ()


def test_a_picture_that_is_void_all_over_is_named(tree: Path) -> None:
    _write(tree, "test", "x", void_rows=10)
    report = _check(tree)
    assert (report.train.all_void, report.val.all_void) == ((), ("x",))
    assert "void all over, so of no use: val x" in report.warnings


def test_sizes_are_listed_commonest_first_and_no_more_than_ten(tree: Path) -> None:
    for height in range(11, 24):
        _write(tree, "train", f"e{height}", height=height)
    _write(tree, "test", "z", height=11)
    report = _check(tree)
    assert report.sizes[:3] == (SizeCount(10, 10, 4, 2), SizeCount(11, 10, 1, 1), SizeCount(23, 10, 1, 0))
    assert len(report.sizes) == COMMONEST_SIZES
    assert report.other_sizes == 14 - COMMONEST_SIZES
    assert "\nand 4 other sizes\n" in report.to_text()


def test_progress_is_called_once_a_picture_those_with_faults_included(tree: Path) -> None:
    (tree / "train_data/images/b.png").write_bytes(b"?")
    calls: list[None] = []
    check_dataset(open_dataset(f"folder:{tree}"), lambda: calls.append(None))
    assert len(calls) == 6


def test_the_report_is_plain_json(tree: Path) -> None:
    _write(tree, "test", "x", void_rows=10, seed=1)
    _write(tree, "train", "a", seed=1)
    report = json.loads(json.dumps(_check(tree).to_dict()))
    assert report["ok"] is True
    assert report["sizes"] == [{"height": 10, "width": 10, "train": 4, "val": 2}]
    assert report["duplicates"] == [{"train": ["a"], "val": ["x"], "same_labels": False}]
    assert report["train"]["classes"][1] == {"name": "road", "pixels": 40, "share": 40 / 360, "pictures": 4}
    assert report["val"]["all_void"] == ["x"]
    assert report["val"]["faults"] == []
    assert len(report["warnings"]) == 4


def test_the_text_is_an_aligned_table(tree: Path) -> None:
    _write(tree, "train", "d", height=400, void_rows=0)
    lines = _check(tree).to_text().splitlines()
    assert lines[0] == "4 pictures for training, 2 for validation, 8-bit RGB"
    top = next(number for number, line in enumerate(lines) if line.startswith("class "))
    assert lines[top].split() == ["class", "train:", "pixels", "pictures", "val:", "pixels", "pictures"]
    rows = lines[top + 2 : top + 6]
    assert [row.split()[0] for row in rows] == ["grass", "road", "sky", "void"]
    assert len({len(row) for row in rows}) == 1
    assert rows[1].split() == ["road", "0.94", "%", "4", "11.11", "%", "2"]
    assert rows[3].split() == ["void", "0.70", "%", "3", "10.00", "%", "2"]
    assert lines[-1] == "faults: none"


def test_a_share_that_is_tiny_is_not_shown_as_none(tree: Path) -> None:
    _write(tree, "train", "a", height=3000)
    for path in (tree / "train_data/masks").iterdir():
        mask = np.zeros_like(np.asarray(PillowImage.open(path)))
        mask[0, 0] = path.stem == "a"
        PillowImage.fromarray(mask).save(path)
    row = next(line for line in _check(tree).to_text().splitlines() if line.startswith("road"))
    assert row.split() == ["road", "<", "0.01", "%", "1", "11.11", "%", "2"]


def test_the_drawn_dataset_has_nothing_to_complain_of() -> None:
    train, val = (Demo(part, 20, channels=1, depth="uint16", seed=0) for part in ("train", "val"))
    report = check_dataset(Split(train, val), lambda: None)
    assert (report.channels, report.depth, report.warnings, report.faults) == (1, "uint16", (), ())
    assert report.to_text().startswith("20 pictures for training, 20 for validation, 16-bit grey\n")
