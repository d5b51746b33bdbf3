import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import NYU40, voc_colors
from segship.training.data import DataOptions, Split, open_dataset

IDS = np.arange(41, dtype=np.uint8).repeat(2).reshape(1, 82).repeat(3, axis=0)
"""Every id, in a mask of 3×82 pixels."""


def _save_mask(path: Path, form: str) -> None:
    image = PillowImage.fromarray(IDS)
    if form == "palette":
        image.putpalette(np.array(voc_colors(256), np.uint8).tobytes())
    elif form == "grey-RGB":
        image = image.convert("RGB")
    image.save(path)


@pytest.fixture(params=["palette", "grey", "grey-RGB"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three training and two validation pictures, with lists as VOC keeps them."""
    root = tmp_path / "nyu"
    lists = root / "ImageSets/Segmentation"
    for folder in (lists, root / "JPEGImages", root / "Segmentation_40"):
        folder.mkdir(parents=True)
    for number in range(5):
        PillowImage.new("RGB", (82, 3), (number, 0, 0)).save(root / f"JPEGImages/{number:05}.png")
        _save_mask(root / f"Segmentation_40/{number:05}.png", request.param)
    (lists / "train.txt").write_text("00000\n00001\n00002\n")
    (lists / "val.txt").write_text("00003\n00004\n")
    return root


def _read(tree: Path, *ignore: int) -> Split:
    split = open_dataset(f"nyuv2:{tree}", DataOptions(ignore=ignore))
    for part in (split.train, split.val):
        for index in range(len(part)):
            part[index]
    return split


def test_ids_0_to_40_are_41_classes(tree: Path) -> None:
    split = _read(tree)
    assert split.train.classes == split.val.classes == NYU40
    assert (len(split.train), len(split.val)) == (3, 2)
    assert split.val[1].name == "00004"
    assert split.val[1].image[0, 0].tolist() == [4, 0, 0]
    np.testing.assert_array_equal(split.val[1].labels, IDS)
    assert split.val[1].labels.dtype == np.uint8


def test_without_id_0_there_are_40_classes_and_void(tree: Path) -> None:
    split = _read(tree, 0)
    assert split.train.classes.names == NYU40.names[1:]
    assert split.train.classes.palette == NYU40.palette[1:]
    np.testing.assert_array_equal(split.train[0].labels, np.where(IDS == 0, 255, IDS.astype(int) - 1))


def test_255_is_void(tree: Path) -> None:
    path = tree / "Segmentation_40/00000.png"
    image = PillowImage.open(path)
    pixels = np.array(image)
    pixels[1] = 255
    edited = PillowImage.fromarray(pixels)
    if image.mode == "P":
        edited.putpalette(image.getpalette())
    edited.save(path)
    assert set(_read(tree).train[0].labels[1].tolist()) == {255}


def test_lists_may_lie_beside_the_folders_and_test_stands_in_for_val(tree: Path) -> None:
    lists = tree / "ImageSets/Segmentation"
    (lists / "train.txt").rename(tree / "train.txt")
    (lists / "val.txt").rename(tree / "test.txt")
    shutil.rmtree(tree / "ImageSets")
    assert len(_read(tree).val) == 2
    (tree / "val.txt").write_text("00003\n")
    assert len(_read(tree).val) == 1


@pytest.mark.parametrize("tree", ["grey"], indirect=True)
def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(tree: Path) -> None:
    mask = tree / "Segmentation_40/00001.png"
    PillowImage.fromarray(np.full((3, 82), 41, np.uint8)).save(mask)
    with pytest.raises(DatasetError, match=r"00001\.png: label id 41 is outside the classes 0…40"):
        _read(tree)
    PillowImage.fromarray(np.full((3, 82), 41, np.uint8)).convert("RGB").save(mask)
    with pytest.raises(
        DatasetError, match=r"colour \(41, 41, 41\) .*\(246 pixels\); take greys \(0, 0, 0\)…\(40, 40, 4"
    ):
        _read(tree)
    mask.unlink()
    with pytest.raises(DatasetError, match=r"train\.txt: '00001' has no mask in .*Segmentation_40; 1 of 3 entries"):
        _read(tree)
    shutil.rmtree(tree / "Segmentation_40")
    with pytest.raises(DatasetError, match=r"Segmentation_40 is missing; expected the masks that .*train\.txt lists"):
        _read(tree)
    (tree / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(DatasetError, match=r"nyu has no list ImageSets/Segmentation/train\.txt or train\.txt"):
        _read(tree)
    with pytest.raises(DatasetError, match=r"--ignore 41 is no class id of this dataset; its class ids are 0…40"):
        _read(tree, 41)
    with pytest.raises(DatasetError, match=r"--data nyuv2:DIR: '' is no folder; expected one that holds JPEGImages/"):
        open_dataset("nyuv2")
