import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import VOC, voc_colors
from segship.training.data import DataOptions, Dataset, Split, open_dataset

Ids = NDArray[np.uint8]
SIZE = (12, 16)

CVAT_LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
crack:250,50,83::
traffic light:36,179,83:a,b:on
"""
CVAT_COLORS = np.array([(0, 0, 0), (250, 50, 83), (36, 179, 83)], np.uint8)


def _patches(seed: int, num_ids: int, void: bool = False) -> Ids:
    ids = np.random.default_rng(seed).integers(0, num_ids, (SIZE[0] // 4, SIZE[1] // 4), np.uint8)
    if void:
        ids[0, 0] = 255
    return np.kron(ids, np.ones((4, 4), np.uint8))


def _save_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    PillowImage.fromarray(pixels).save(path)


def _save_palette(path: Path, ids: Ids, colors: Sequence[tuple[int, int, int]] = voc_colors(256)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PillowImage.fromarray(ids)
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path)


def _write_list(root: Path, part: str, names: Sequence[str]) -> None:
    folder = root / "ImageSets/Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def _read(tree: Path, **options: object) -> Split:
    split = open_dataset(f"voc:{tree}", DataOptions(**options))  # type: ignore[arg-type]
    for part in (split.train, split.val):
        for index in range(len(part)):
            part[index]
    return split


def _names(part: Dataset) -> list[str]:
    return [part[index].name for index in range(len(part))]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOCdevkit with 4 training and 2 validation pictures, and one that no list names."""
    root = tmp_path / "VOCdevkit/VOC2012"
    names = [f"2007_00{number:04}" for number in range(7)]
    for number, name in enumerate(names):
        _save_picture(root / f"JPEGImages/{name}.jpg", number)
        if number < 6:
            _save_palette(root / f"SegmentationClass/{name}.png", _patches(number, 21, void=True))
            _save_palette(root / f"SegmentationObject/{name}.png", _patches(number, 3))
    for part, listed in (("train", names[:4]), ("val", names[4:6]), ("trainval", names[:6])):
        _write_list(root, part, listed)
    return root


@pytest.fixture
def cvat(tmp_path: Path) -> Path:
    """What CVAT exports: RGB masks, labelmap.txt, default.txt, an empty JPEGImages; and pictures in another folder."""
    root = tmp_path / "export"
    names = [f"day {number % 2}/frame_{number:06}" for number in range(6)]
    for number, name in enumerate(names):
        _save_picture(tmp_path / f"pictures/{name}.png", number)
        path = root / f"SegmentationClass/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(CVAT_COLORS[_patches(number, 3)]).save(path)
    (root / "JPEGImages").mkdir()
    (root / "labelmap.txt").write_text(CVAT_LABELMAP)
    _write_list(root, "default", names)
    return root


@pytest.fixture
def labelme(tmp_path: Path) -> Path:
    """What labelme2voc writes: no lists, masks as .npy and as palette PNG, previews, class_names.txt."""
    root = tmp_path / "data_dataset_voc"
    for number in range(5):
        ids = _patches(number, 3, void=True)
        _save_picture(root / f"JPEGImages/img{number}.jpg", number)
        _save_picture(root / f"SegmentationClassVisualization/img{number}.jpg", number)
        _save_palette(root / f"SegmentationClassPNG/img{number}.png", ids)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        np.save(root / f"SegmentationClass/img{number}.npy", np.where(ids == 255, -1, ids.astype(np.int32)))
    (root / "class_names.txt").write_text("_background_\nscratch\ndent")
    return root


def test_voc_is_read_by_its_lists_with_255_as_void(voc: Path) -> None:
    split = _read(voc)
    assert split.train.classes == split.val.classes == VOC
    assert (split.train.channels, split.train.depth) == (3, "uint8")
    assert _names(split.train) == [f"2007_00{number:04}" for number in range(4)]
    assert _names(split.val) == ["2007_000004", "2007_000005"]
    sample = split.train[2]
    np.testing.assert_array_equal(sample.labels, _patches(2, 21, void=True))
    assert sample.labels.dtype == np.uint8
    assert (sample.labels == 255).sum() == 16
    np.testing.assert_array_equal(sample.image, np.array(PillowImage.open(voc / "JPEGImages/2007_000002.jpg")))


@pytest.mark.parametrize("above", [1, 2])
def test_voc_may_be_named_by_a_folder_above(voc: Path, above: int) -> None:
    assert len(_read(voc.parents[above - 1]).train) == 4


def test_masks_in_vocs_colours_say_the_same_as_palette_masks(voc: Path) -> None:
    expected = [_read(voc).train[index].labels for index in range(4)]
    for path in (voc / "SegmentationClass").iterdir():
        PillowImage.open(path).convert("RGB").save(path)
    train = _read(voc).train
    for index in range(4):
        np.testing.assert_array_equal(train[index].labels, expected[index])


def test_ignored_ids_are_void_and_the_rest_is_numbered_anew(voc: Path) -> None:
    split = _read(voc, ignore=(0, 5))
    assert split.val.classes.names == tuple(name for name in VOC.names if name not in ("background", "bottle"))
    assert split.val.classes.palette[4] == VOC.palette[6]  # a class keeps its colour
    stored, labels = _patches(1, 21, void=True), split.train[1].labels
    for class_id in range(21):
        new = 255 if class_id in (0, 5) else class_id - 1 - (class_id > 5)
        assert set(labels[stored == class_id].tolist()) <= {new}
    assert set(labels.ravel().tolist()) - {255} <= set(range(19))


@pytest.mark.parametrize("part", ["trainval", "default", "train"])
def test_a_single_list_is_split(voc: Path, part: str) -> None:
    names = (voc / "ImageSets/Segmentation/trainval.txt").read_text().split()
    shutil.rmtree(voc / "ImageSets")
    _write_list(voc, part, names)
    split = _read(voc, val_fraction=0.5, split_seed=3)
    assert (len(split.train), len(split.val)) == (3, 3)
    assert sorted(_names(split.train) + _names(split.val)) == names
    shutil.rmtree(voc / "ImageSets")
    _write_list(voc, part, names[::-1])
    assert _names(_read(voc, val_fraction=0.5, split_seed=3).val) == _names(split.val)
    assert len(_read(voc).val) == 1


def test_lists_may_be_called_as_cvat_calls_the_subsets_of_a_project(voc: Path) -> None:
    lists = voc / "ImageSets/Segmentation"
    (lists / "train.txt").rename(lists / "Train.txt")
    (lists / "val.txt").rename(lists / "Validation.txt")
    (lists / "trainval.txt").unlink()
    assert len(_read(voc).val) == 2


def test_cvats_colours_are_decoded_by_labelmap_and_pictures_found_elsewhere(cvat: Path, tmp_path: Path) -> None:
    split = _read(cvat, images=tmp_path / "pictures")
    assert split.train.classes.names == ("background", "crack", "traffic light")
    assert split.train.classes.palette == ((0, 0, 0), (250, 50, 83), (36, 179, 83))
    assert (len(split.train), len(split.val)) == (5, 1)
    for part in (split.train, split.val):
        for index in range(len(part)):
            sample = part[index]
            np.testing.assert_array_equal(sample.labels, _patches(int(sample.name[-6:]), 3))


def test_the_order_of_labelmap_is_that_of_the_ids(cvat: Path, tmp_path: Path) -> None:
    head, background, *rest = CVAT_LABELMAP.splitlines()
    (cvat / "labelmap.txt").write_text("\n".join([head, *rest, background]))  # as old versions of CVAT had it
    split = _read(cvat, images=tmp_path / "pictures")
    assert split.train.classes.names == ("crack", "traffic light", "background")
    sample = split.val[0]
    np.testing.assert_array_equal(sample.labels, np.array([2, 0, 1])[_patches(int(sample.name[-6:]), 3)])


def test_a_palette_mask_with_labelmap_is_read_by_its_colours(cvat: Path, tmp_path: Path) -> None:
    colors = [tuple(int(v) for v in color) for color in CVAT_COLORS]
    for path in (cvat / "SegmentationClass").rglob("*.png"):
        ids = _patches(int(path.stem[-6:]), 3)
        _save_palette(path, (2 - ids).astype(np.uint8), colors[::-1])  # an optimiser sorts a palette as it likes
    sample = _read(cvat, images=tmp_path / "pictures").train[0]
    np.testing.assert_array_equal(sample.labels, _patches(int(sample.name[-6:]), 3))


def test_a_grey_mask_with_labelmap_is_read_by_the_order_of_its_lines(cvat: Path, tmp_path: Path) -> None:
    for path in (cvat / "SegmentationClass").rglob("*.png"):
        PillowImage.fromarray(_patches(int(path.stem[-6:]), 3, void=True)).save(path)
    sample = _read(cvat, images=tmp_path / "pictures").train[0]
    np.testing.assert_array_equal(sample.labels, _patches(int(sample.name[-6:]), 3, void=True))


def test_a_class_called_ignored_is_void(cvat: Path, tmp_path: Path) -> None:
    (cvat / "labelmap.txt").write_text(CVAT_LABELMAP.replace("crack", "Ignored"))
    split = _read(cvat, images=tmp_path / "pictures")
    assert split.train.classes.names == ("background", "traffic light")
    sample = split.train[0]
    np.testing.assert_array_equal(sample.labels, np.array([0, 255, 1])[_patches(int(sample.name[-6:]), 3)])


@pytest.mark.parametrize("names", ["_background_\nscratch\ndent", "__ignore__\n_background_\nscratch\ndent\n"])
def test_labelmes_classes_come_from_class_names_and_minus_1_is_void(labelme: Path, names: str) -> None:
    (labelme / "class_names.txt").write_text(names)
    split = _read(labelme)
    assert split.train.classes.names == ("_background_", "scratch", "dent")
    assert split.train.classes.palette == VOC.palette[:3]
    assert (len(split.train), len(split.val)) == (4, 1)
    sample = split.train[0]
    np.testing.assert_array_equal(sample.labels, _patches(int(sample.name[-1]), 3, void=True))


def test_newer_labelme_keeps_its_masks_in_segmentation_class(labelme: Path) -> None:
    (labelme / "SegmentationClass").rename(labelme / "SegmentationClassNpy")
    (labelme / "SegmentationClassPNG").rename(labelme / "SegmentationClass")
    assert len(_read(labelme).train) == 4


def _edit(path: Path, value: int | tuple[int, int, int], count: int = 3) -> None:
    image = PillowImage.open(path)
    pixels = np.array(image)
    pixels[5, :count] = value
    edited = PillowImage.fromarray(pixels)
    if image.mode == "P":
        edited.putpalette(image.getpalette())
    edited.save(path)


def _rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _mask(root: Path) -> Path:
    return next(path for path in sorted((root / "SegmentationClass").rglob("*.png")))


HARMS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no masks": (
        "voc",
        lambda root: shutil.rmtree(root / "SegmentationClass"),
        r"VOC2012 holds none of SegmentationClassPNG, SegmentationClass and no VOC20xx that does",
    ),
    "no pictures": (
        "voc",
        lambda root: shutil.rmtree(root / "JPEGImages"),
        r"VOC2012/JPEGImages holds no pictures; where they are elsewhere, name their folder: --images DIR",
    ),
    "entries without mask": (
        "voc",
        lambda root: [(root / f"SegmentationClass/2007_00000{number}.png").unlink() for number in (1, 3)],
        r"train\.txt: '2007_000001' has no mask in .*SegmentationClass; 2 of 4 entries have none; add what is missing",
    ),
    "an entry without picture": (
        "voc",
        lambda root: (root / "JPEGImages/2007_000005.jpg").unlink(),
        r"val\.txt: '2007_000005' has no picture in .*JPEGImages; 1 of 2 entries have none",
    ),
    "an empty list": (
        "voc",
        lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("\n"),
        r"val\.txt lists nothing; expected names, one a line",
    ),
    "no list of training pictures": (
        "voc",
        lambda root: [(root / f"ImageSets/Segmentation/{part}.txt").unlink() for part in ("train", "trainval")],
        r"ImageSets/Segmentation holds val\.txt; expected train\.txt and val\.txt, or trainval\.txt",
    ),
    "an id that is none of VOC's": (
        "voc",
        lambda root: _edit(_mask(root), 21),
        r"2007_000000\.png: label id 21 is outside the classes 0…20 \(3 pixels .* row 5, column 0\)",
    ),
    "a colour that is none of VOC's": (
        "voc",
        lambda root: (PillowImage.open(_mask(root)).convert("RGB").save(_mask(root)), _edit(_mask(root), (1, 2, 3))),
        r"colour \(1, 2, 3\) stands for no class \(3 pixels\); take the colours of Pascal VOC's ids 0…20, or save",
    ),
    "a mask of another size": (
        "voc",
        lambda root: PillowImage.open(_mask(root)).resize((8, 8)).save(_mask(root)),
        r"2007_000000\.png: the mask is 8×8 pixels, its picture 2007_000000\.jpg 16×12; expected the same size",
    ),
    "a transparent mask": (
        "voc",
        lambda root: PillowImage.new("RGBA", SIZE[::-1], (128, 0, 0, 90)).save(_mask(root)),
        r"the mask is transparent in 192 pixels; save it as RGB without alpha",
    ),
    "a 16-bit picture": (
        "voc",
        lambda root: (
            PillowImage.fromarray(np.full(SIZE, 300, np.uint16)).save(root / "JPEGImages/2007_000001.png"),
            (root / "JPEGImages/2007_000001.jpg").unlink(),
        ),
        r"2007_000001\.png: a 16-bit picture.*save it as 8-bit RGB without transparency",
    ),
    "an ignored id that is none": (
        "voc",
        lambda root: None,
        r"--ignore 21 is no class id of this dataset; its class ids are 0…20",
    ),
    "a colour that labelmap does not list": (
        "cvat",
        lambda root: _edit(_mask(root), (9, 9, 9), 2),
        r"frame_000000\.png: colour \(9, 9, 9\) stands for no class \(2 pixels\); add it to labelmap\.txt",
    ),
    "a line without colour": (
        "cvat",
        lambda root: _rewrite(root / "labelmap.txt", "250,50,83", ""),
        r"labelmap\.txt: 'crack:::' is no class; expected name:r,g,b:parts:actions",
    ),
    "a line of something else": (
        "cvat",
        lambda root: _rewrite(root / "labelmap.txt", "crack:", "crack"),
        r"labelmap\.txt: 'crack250,50,83::' is no class",
    ),
    "a colour above 255": (
        "cvat",
        lambda root: _rewrite(root / "labelmap.txt", "250", "256"),
        r"labelmap\.txt: 'crack:256,50,83::' has a colour outside 0…255",
    ),
    "a colour twice": (
        "cvat",
        lambda root: _rewrite(root / "labelmap.txt", "250,50,83", "0,0,0"),
        r"labelmap\.txt: a name or a colour stands twice",
    ),
    "a labelmap of comments": (
        "cvat",
        lambda root: (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n"),
        r"0 of 0 classes are left besides void",
    ),
    "an annotation export without pictures": (
        "cvat",
        lambda root: None,
        r"export/JPEGImages holds no pictures; where they are elsewhere, name their folder: --images DIR",
    ),
    "a list of files": (
        "voc",
        lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("2007_000000.jpg\n"),
        r"val\.txt: '2007_000000\.jpg' has no picture in .*; 1 of 1 entries have none; leave the suffix away",
    ),
    "a class name twice": (
        "labelme",
        lambda root: (root / "class_names.txt").write_text("_background_\ndent\ndent"),
        r"class_names\.txt: a name or a colour stands twice",
    ),
    "a picture that was not annotated": (
        "labelme",
        lambda root: (root / "SegmentationClassPNG/img3.png").unlink(),
        r"img3\.jpg has no mask in .*SegmentationClassPNG \(expected img3\.png\); 1 of 5 pictures have none",
    ),
}


@pytest.mark.parametrize(("form", "harm", "words"), HARMS.values(), ids=HARMS)
def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(
    request: pytest.FixtureRequest, form: str, harm: Callable[[Path], object], words: str
) -> None:
    tree: Path = request.getfixturevalue(form)
    harm(tree)
    images = tree.parent / "pictures" if form == "cvat" and "--images" not in words else None
    with pytest.raises(DatasetError, match=words) as caught:
        _read(tree, images=images, ignore=(21,) if "--ignore" in words else ())
    assert "\n" not in str(caught.value)


def test_several_years_in_one_folder_are_refused_naming_them(voc: Path) -> None:
    shutil.copytree(voc, voc.with_name("VOC2007"))
    with pytest.raises(
        DatasetError, match=r"VOCdevkit holds VOC2007 and VOC2012; name one of them, such as --data voc:"
    ):
        _read(voc.parent)


def test_a_share_to_hold_out_is_refused_where_lists_say_it(voc: Path) -> None:
    with pytest.raises(DatasetError, match=r"--val-fraction has no use where .*val\.txt says what is held out"):
        _read(voc, val_fraction=0.3)


@pytest.mark.parametrize("place", ["", "/nowhere/at/all"])
def test_no_folder_is_refused(place: str) -> None:
    with pytest.raises(
        DatasetError, match=r"--data voc:DIR: '.*' is no folder; expected one such as VOCdevkit/VOC2012"
    ):
        open_dataset(f"voc:{place}")


def test_images_that_are_no_folder_are_refused(cvat: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"--images DIR: '.*nowhere' is no folder; expected the one that holds"):
        _read(cvat, images=tmp_path / "nowhere")
