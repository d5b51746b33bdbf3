import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import CAMVID
from segship.training.cli import seg_train
from segship.training.data import Dataset, Split, open_dataset
from segship.training.data.camvid import open_camvid

WriteCamVid = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]
Harm = Callable[[Path], object]

# label_colors.txt of the original, in the columns that class_dict.csv has
THIRTY_TWO_CLASSES = """name,r,g,b
Animal,64,128,64
Archway,192,0,128
Bicyclist,0,128,192
Bridge,0,128,64
Building,128,0,0
Car,64,0,128
CartLuggagePram,64,0,192
Child,192,128,64
Column_Pole,192,192,128
Fence,64,64,128
LaneMkgsDriv,128,0,192
LaneMkgsNonDriv,192,0,64
Misc_Text,128,128,64
MotorcycleScooter,192,0,192
OtherMoving,128,64,64
ParkingBlock,64,192,128
Pedestrian,64,64,0
Road,128,64,128
RoadShoulder,128,128,192
Sidewalk,0,0,192
SignSymbol,192,128,128
Sky,128,128,128
SUVPickupTruck,64,128,192
TrafficCone,0,0,64
TrafficLight,0,64,64
Train,192,64,128
Tree,128,128,0
Truck_Bus,192,128,192
Tunnel,64,0,64
VegetationMisc,192,192,0
Void,0,0,0
Wall,64,192,0
"""


def _read_everything(tree: Path) -> Split:
    split = open_camvid(str(tree))
    for part in (split.train, split.val):
        for index in range(len(part)):
            part[index]
    return split


def _mask(tree: Path, part: str = "train", number: int = 0) -> Path:
    folder = next(path for path in (tree / f"{part}annot", tree / f"{part}_labels") if path.is_dir())
    return next(folder.glob(f"seq_{number:03}*.png"))


def _edit(path: Path, row: int, column: int, value: int | tuple[int, int, int]) -> None:
    pixels = np.array(PillowImage.open(path))
    pixels[row, column] = value
    PillowImage.fromarray(pixels).save(path)


def _ids(dataset: Dataset) -> list[np.ndarray]:
    return [dataset[index].labels for index in range(len(dataset))]


def test_index_masks_are_read_with_id_11_as_void(index_tree: Path) -> None:
    split = _read_everything(index_tree)
    assert (len(split.train), len(split.val)) == (6, 3)
    assert split.train.classes == split.val.classes == CAMVID
    stored = np.array(PillowImage.open(_mask(index_tree)))
    assert (stored == 11).any(), "the tree should hold void"
    sample = split.train[0]
    assert sample.name == "seq_000"
    assert sample.labels.dtype == np.uint8
    np.testing.assert_array_equal(sample.labels, np.where(stored == 11, 255, stored))
    picture = np.array(PillowImage.open(index_tree / "train/seq_000.png"))
    np.testing.assert_array_equal(sample.image, picture)  # red, green, blue, as stored


def test_colour_masks_say_the_same_as_index_masks(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    by_index = _read_everything(write_camvid(tmp_path / "index", masks="index"))
    by_color = _read_everything(write_camvid(tmp_path / "color", masks="color"))
    assert by_color.train.classes == CAMVID
    for part in ("train", "val"):
        for one, other in zip(_ids(getattr(by_index, part)), _ids(getattr(by_color, part)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_both_colours_of_pavement_are_pavement_and_black_is_void(color_tree: Path) -> None:
    path = _mask(color_tree)
    for column, color in enumerate([(60, 40, 222), (0, 0, 192), (0, 0, 0)]):
        _edit(path, 0, column, color)
    assert open_camvid(str(color_tree)).train[0].labels[0, :3].tolist() == [4, 4, 255]


@pytest.mark.parametrize("suffix", ["_L", ""])
def test_a_colour_mask_may_be_named_like_its_picture_or_with_l(color_tree: Path, suffix: str) -> None:
    for path in (color_tree / "train_labels").iterdir():
        path.rename(path.with_name(path.name.replace("_L", suffix)))
    assert len(_read_everything(color_tree).train) == 6


@pytest.mark.parametrize("table", ["class_dict.csv", "label_colors.txt"])
def test_a_table_of_32_classes_gives_31_and_void(color_tree: Path, table: str) -> None:
    rows = [line.split(",") for line in THIRTY_TWO_CLASSES.splitlines()[1:]]
    assert len(rows) == 32
    colors = np.array([[int(value) for value in row[1:]] for row in rows], np.uint8)
    picture = np.zeros((4, 8, 3), np.uint8)
    for part in ("train", "val"):
        for number in range(6 if part == "train" else 3):
            PillowImage.fromarray(picture).save(color_tree / part / f"seq_{number:03}.png")
            PillowImage.fromarray(colors.reshape(4, 8, 3)).save(_mask(color_tree, part, number))
    if table == "class_dict.csv":
        (color_tree / table).write_text(THIRTY_TWO_CLASSES)
    else:  # the original, with one tab or two before the name
        lines = [f"{r} {g} {b}\t{chr(9) * (len(name) % 2)}{name}" for name, r, g, b in rows]
        (color_tree / table).write_text("\r\n".join(lines))
    split = _read_everything(color_tree)
    assert split.train.classes == split.val.classes
    assert split.train.classes.names == tuple(row[0] for row in rows if row[0] != "Void")
    assert split.train.classes.palette[22] == (64, 128, 192)  # SUVPickupTruck, after Sky
    assert split.train[0].labels.ravel().tolist() == [*range(30), 255, 30]  # Void comes before Wall


def test_class_dict_may_come_from_excel_with_a_byte_order_mark_and_spaces(color_tree: Path) -> None:
    text = "\ufeffname, r, g, b\r\n" + "".join(
        f"{name}, {r}, {g}, {b}\r\n" for name, (r, g, b) in zip(CAMVID.names, CAMVID.palette, strict=True)
    )
    (color_tree / "class_dict.csv").write_text(text + "Unlabelled, 0, 0, 0\r\n", encoding="utf-8", newline="")
    assert _read_everything(color_tree).train.classes == CAMVID


def test_other_files_beside_pictures_and_masks_are_left_alone(index_tree: Path) -> None:
    for folder in ("train", "trainannot"):
        (index_tree / folder / "Thumbs.db").write_bytes(b"?")
    assert len(_read_everything(index_tree).train) == 6


def _replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _resize(path: Path, size: tuple[int, int]) -> None:
    PillowImage.open(path).resize(size, PillowImage.Resampling.NEAREST).save(path)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _smudge(path: Path) -> None:
    for column in range(5):
        _edit(path, 9, column, (127, 64, 128))
    _edit(path, 10, 0, (1, 2, 3))


INDEX_HARMS: dict[str, tuple[Harm, str]] = {
    "a missing mask": (
        lambda tree: [_mask(tree, "train", number).unlink() for number in (2, 4)],
        r"seq_002\.png has no mask in .*trainannot \(expected seq_002\.png\); 2 of 6 pictures have none",
    ),
    "a mask of another size": (
        lambda tree: _resize(_mask(tree, "val", 1), (44, 32)),
        r"valannot/seq_001\.png: the mask is 44×32 pixels, its picture seq_001\.png 40×32; expected the same size",
    ),
    "an id outside the classes": (
        lambda tree: [_edit(_mask(tree), 5, column, 12) for column in (7, 8, 9)],
        r"trainannot/seq_000\.png: label id 12 is outside .*\(3 pixels .* first at row 5, column 7\)",
    ),
    "a colour mask among index masks": (
        lambda tree: PillowImage.open(_mask(tree)).convert("RGB").save(_mask(tree)),
        r"trainannot/seq_000\.png: a colour mask among index masks; expected grey values 0…11",
    ),
    "a 16-bit mask": (
        lambda tree: PillowImage.fromarray(np.zeros((32, 40), np.uint16)).save(_mask(tree)),
        r"trainannot/seq_000\.png: the mask has mode I;16; expected 8-bit grey, palette or RGB",
    ),
    "a truncated picture": (lambda tree: _halve(tree / "val/seq_000.png"), r"val/seq_000\.png.*(truncated|damaged)"),
    "a truncated mask": (lambda tree: _halve(_mask(tree, "val")), r"valannot/seq_000\.png: the mask cannot be read"),
    "a text file as mask": (
        lambda tree: _replace(_mask(tree), b"no picture"),
        r"trainannot/seq_000\.png: the mask is no picture that can be read",
    ),
    "an empty file as picture": (
        lambda tree: _replace(tree / "train/seq_003.png", b""),
        r"train/seq_003\.png: no pict",
    ),
    "no pictures folder": (lambda tree: shutil.rmtree(tree / "train"), r"camvid/train is missing; expected the pict"),
    "no masks folder": (
        lambda tree: shutil.rmtree(tree / "valannot"),
        r"found neither valannot/ nor val_labels/; CamVid keeps masks in one",
    ),
    "an empty pictures folder": (lambda tree: _empty(tree / "val"), r"camvid/val holds no pictures \(.*\.png"),
    "an empty masks folder": (lambda tree: _empty(tree / "trainannot"), r"seq_000\.png has no mask.*6 of 6 pictures"),
    "an empty root": (shutil.rmtree, r"--data camvid:DIR: .*is no folder; expected one that holds train/ and val/"),
}

COLOR_HARMS: dict[str, tuple[Harm, str]] = {
    "an unknown colour": (
        lambda tree: _smudge(_mask(tree)),
        r"train_labels/seq_000_L\.png: colour \(127, 64, 128\) stands for no class \(5 pixels, and 1 more such "
        r"colours\); list the classes in .*class_dict\.csv",
    ),
    "a grey mask among colour masks": (
        lambda tree: PillowImage.open(_mask(tree)).convert("L").save(_mask(tree)),
        r"train_labels/seq_000_L\.png: a grey or palette mask among colour masks; expected RGB",
    ),
    "a class_dict.csv without a column": (
        lambda tree: (tree / "class_dict.csv").write_text("name,red,green,blue\nSky,128,128,128\n"),
        r"class_dict\.csv: expected the columns name,r,g,b with colours 0…255 \('r'\)",
    ),
    "a class_dict.csv with a word for a number": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nSky,128,grey,128\n"),
        r"class_dict\.csv: expected the columns.*grey",
    ),
    "a class_dict.csv with a short row": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nSky,128\n"),
        r"class_dict\.csv: expected the columns name,r,g,b",
    ),
    "a class_dict.csv with a row that lacks the name": (
        lambda tree: (tree / "class_dict.csv").write_text("r,g,b,name\n128,128,128\n"),
        r"class_dict\.csv: expected the columns name,r,g,b",
    ),
    "a class_dict.csv with a colour above 255": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nSky,128,128,256\n"),
        r"class_dict\.csv: .*\(128, 128, 256\) is outside 0…255",
    ),
    "a class_dict.csv with a colour twice": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nSky,1,2,3\nRoad,1,2,3\n"),
        r"class_dict\.csv: a name or a colour stands twice",
    ),
    "a class_dict.csv of nothing but void": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nVoid,0,0,0\n"),
        r"class_dict\.csv lists 0 classes besides void; expected 1…254",
    ),
    "an empty class_dict.csv": (
        lambda tree: (tree / "class_dict.csv").write_text(""),
        r"class_dict\.csv lists 0 classes besides void",
    ),
    "a class_dict.csv that is no text": (
        lambda tree: (tree / "class_dict.csv").write_bytes(b"\x89PNG\xff\xfe\x00name,r,g,b\n"),
        r"class_dict\.csv: expected the columns name,r,g,b",
    ),
    "a label_colors.txt without names": (
        lambda tree: (tree / "label_colors.txt").write_text("128 128 128\n"),
        r"label_colors\.txt: expected lines of r g b name with colours 0…255",
    ),
    "a label_colors.txt with a colour above 255": (
        lambda tree: (tree / "label_colors.txt").write_text("128 128 256 Sky\n"),
        r"label_colors\.txt: .*\(128, 128, 256\) is outside 0…255",
    ),
    "a label_colors.txt that lacks a class of the masks": (
        lambda tree: (tree / "label_colors.txt").write_text("128 128 128\tSky\n0 0 0\tVoid\n"),
        r"stands for no class .*; add it to label_colors\.txt",
    ),
    "a colour of the 32 classes without their table": (
        lambda tree: PillowImage.new("RGB", (8, 8), (64, 192, 0)).save(_mask(tree, "val", 0)),
        r"colour \(64, 192, 0\) stands for no class .*; list the classes in .*class_dict\.csv \(name,r,g,b\)",
    ),
    "a class_dict.csv that lacks a class of the masks": (
        lambda tree: (tree / "class_dict.csv").write_text("name,r,g,b\nSky,128,128,128\nVoid,0,0,0\n"),
        r"(train|val)_labels/seq_000_L\.png: colour \(\d+, \d+, \d+\) stands for no class",
    ),
}
HARMS = [("index_tree", what) for what in INDEX_HARMS] + [("color_tree", what) for what in COLOR_HARMS]


@pytest.fixture(params=HARMS, ids=[what for _, what in HARMS])
def harmed(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A tree with one thing wrong, and what its error should say."""
    form, what = request.param
    tree: Path = request.getfixturevalue(form)
    harm, words = (INDEX_HARMS | COLOR_HARMS)[what]
    harm(tree)
    return tree, words


def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(harmed: tuple[Path, str]) -> None:
    tree, words = harmed
    with pytest.raises(DatasetError, match=words) as caught:
        _read_everything(tree)
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_status_1_and_that_line(harmed: tuple[Path, str], command: Command) -> None:
    tree, words = harmed
    status, out, err = command(
        seg_train,
        "--data",
        f"camvid:{tree}",
        "--arch",
        "unet",
        "--base-channels",
        1,
        "--size",
        "16x16",
        "--epochs",
        1,
        "--batch-size",
        3,
        "--device",
        "cpu",
        "--out",
        tree.parent / "run",
    )
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    with pytest.raises(DatasetError, match=words):
        raise DatasetError(err)


def test_parts_of_different_classes_are_refused(write_camvid: WriteCamVid, color_tree: Path, tmp_path: Path) -> None:
    index_tree = write_camvid(tmp_path / "index")
    shutil.move(index_tree / "valannot", color_tree / "valannot")
    assert open_camvid(str(color_tree)).val.classes == CAMVID  # the 12-colour table has the same 11 classes
    (color_tree / "class_dict.csv").write_text(THIRTY_TWO_CLASSES)
    with pytest.raises(DatasetError, match=r"index masks of 11 classes.*31 of its table"):
        open_camvid(str(color_tree))


def test_a_kind_of_dataset_that_is_not_known_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(DatasetError, match=r"'cityscapes'; known are camvid, voc, coco, nyuv2, "):
        open_dataset("cityscapes:/data")


def test_camvid_without_a_folder_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"camvid:DIR.*expected one that holds train/ and val/"):
        open_dataset("camvid")


def test_a_mask_without_a_picture_is_an_error_that_names_it(write_camvid: Callable[..., Path], tmp_path: Path) -> None:
    tree = write_camvid(tmp_path / "camvid")
    picture = min((tree / "train").iterdir())
    picture.unlink()
    with pytest.raises(DatasetError, match=f"{picture.stem}.png has no picture of its name.*1 of 6 masks have none"):
        open_camvid(str(tree))


def test_a_picture_whose_own_name_ends_in_l_finds_its_mask(write_camvid: Callable[..., Path], tmp_path: Path) -> None:
    tree = write_camvid(tmp_path / "camvid")
    for folder in ("train", "trainannot"):
        path = min((tree / folder).iterdir())
        path.rename(path.with_stem(f"{path.stem}_L"))
    assert len(open_camvid(str(tree)).train) == 6


def test_a_picture_that_would_lose_something_says_how_to_save_it(
    write_camvid: Callable[..., Path], tmp_path: Path
) -> None:
    tree = write_camvid(tmp_path / "camvid")
    picture = min((tree / "train").iterdir())
    PillowImage.new("RGBA", (40, 32), (9, 9, 9, 100)).save(picture.with_suffix(".png"))
    if picture.suffix != ".png":
        picture.unlink()
    with pytest.raises(DatasetError, match="partly transparent; save it as 8-bit RGB"):
        open_camvid(str(tree)).train[0]
