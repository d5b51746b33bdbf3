import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.training.data import DataOptions, Split, open_dataset
from segship.training.data.bag import CLASSES

Harm = Callable[[Path], object]


def _disc(number: int) -> NDArray[np.bool_]:
    """A bag: sizes differ from picture to picture, and none touches the edges."""
    rows, columns = np.indices((48 + number, 64))
    return np.asarray(np.hypot(rows - 24, columns - 20 - number) < 12 + number / 4)


def _write(root: Path, count: int = 12, *, white: str = "background", folders: str = "bag_data bag_data_msk") -> Path:
    """Write pictures 0.jpg, 1.jpg, … and JPEG masks of their names."""
    images, masks = (root / name for name in folders.split())
    rng = np.random.default_rng(5)
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for number in range(count):
        bag = _disc(number)
        picture = rng.integers(0, 256, (*bag.shape, 3), np.uint8)
        PillowImage.fromarray(picture).save(images / f"{number}.jpg")
        bright = bag if white == "bag" else ~bag
        PillowImage.fromarray(np.where(bright, 255, 0).astype(np.uint8)).save(masks / f"{number}.jpg", quality=60)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve bags, black on white, as in the tutorial."""
    return _write(tmp_path / "bags")


def _open(tree: Path, **options: float) -> Split:
    return open_dataset(f"bag:{tree}", DataOptions(**options))  # type: ignore[arg-type]


def _names(split: Split) -> tuple[list[str], list[str]]:
    train, val = ([part[index].name for index in range(len(part))] for part in (split.train, split.val))
    return train, val


def test_the_last_fifth_by_number_is_held_out_2_before_10(tree: Path) -> None:
    assert _names(_open(tree)) == ([str(number) for number in range(10)], ["10", "11"])


def test_of_200_pictures_the_last_40_are_held_out(tmp_path: Path) -> None:
    for folder in ("x", "x_msk"):
        (tmp_path / folder).mkdir()
        for number in range(200):
            PillowImage.new("L", (2, 2)).save(tmp_path / folder / f"{number}.png")
    assert _names(_open(tmp_path)) == ([str(n) for n in range(160)], [str(n) for n in range(160, 200)])


@pytest.mark.parametrize(("fraction", "held"), [(0.25, 3), (0.01, 1), (0.99, 11)])
def test_another_share_may_be_held_out_but_no_part_is_empty(tree: Path, fraction: float, held: int) -> None:
    train, val = _names(_open(tree, val_fraction=fraction))
    assert train + val == [str(number) for number in range(12)]
    assert len(val) == held


@pytest.mark.parametrize("white", ["background", "bag"])
def test_jpeg_masks_are_cut_at_half_and_the_edges_tell_which_side_is_background(tmp_path: Path, white: str) -> None:
    split = _open(_write(tmp_path / "bags", white=white))
    assert split.train.classes == split.val.classes == CLASSES
    assert (split.train.channels, split.train.depth) == (3, "uint8")
    for number in range(10):
        with PillowImage.open(tmp_path / f"bags/bag_data_msk/{number}.jpg") as mask:
            assert len(np.unique(np.asarray(mask))) > 10, "JPEG should have left its traces"
        sample = split.train[number]
        assert sample.labels.dtype == np.uint8
        np.testing.assert_array_equal(sample.labels, _disc(number).astype(np.uint8))
        assert sample.image.shape == (*sample.labels.shape, 3)


@pytest.mark.parametrize(("value", "class_id"), [(0, 0), (63, 0), (127, 0), (128, 1), (193, 1), (255, 1)])
def test_values_from_128_on_are_white(tree: Path, value: int, class_id: int) -> None:
    path = tree / "bag_data_msk/0.png"
    mask = np.zeros(_disc(0).shape, np.uint8)
    mask[10:12, 10:12] = 255
    mask[20:22, 20:22] = value
    PillowImage.fromarray(mask).save(path)
    path.with_suffix(".jpg").unlink()
    for number in range(1, 12):  # white is the bag
        PillowImage.fromarray(255 * _disc(number).astype(np.uint8)).save(tree / f"bag_data_msk/{number}.jpg")
    assert _open(tree).train[0].labels[20, 20] == class_id


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_masks_may_be_of_any_mode_that_shows_black_and_white(tree: Path, mode: str) -> None:
    for number in range(12):
        path = tree / f"bag_data_msk/{number}.jpg"
        PillowImage.fromarray(~_disc(number)).convert(mode).save(path.with_suffix(".png"))
        path.unlink()
    np.testing.assert_array_equal(_open(tree).train[3].labels, _disc(3))


@pytest.mark.parametrize("folders", ["x x_msk", "x x_mask", "x x_masks", "images masks"])
def test_the_two_folders_may_be_named_in_four_ways(tmp_path: Path, folders: str) -> None:
    (tmp_path / "bags/notes").mkdir(parents=True)
    assert len(_open(_write(tmp_path / "bags", 3, folders=folders)).train) == 2


def _save(tree: Path, mask: NDArray[np.uint8]) -> None:
    PillowImage.fromarray(mask).save(tree / "bag_data_msk/3.png")
    (tree / "bag_data_msk/3.jpg").unlink()


def _soft(tree: Path) -> None:
    mask = np.where(_disc(3), np.uint8(0), np.uint8(255))
    mask[:, :8] = 128
    _save(tree, mask)


HARMS: dict[str, tuple[Harm, str]] = {
    "no folder": (shutil.rmtree, r"--data bag:DIR: .*is no folder; expected one that holds pictures and masks"),
    "no folder of masks": (
        lambda tree: (tree / "bag_data_msk").rename(tree / "truth"),
        r"bags: expected one folder of pictures with one of masks, NAME/ with NAME_msk/ or images/ with masks/; found "
        r"none",
    ),
    "two pairs of folders": (
        lambda tree: _write(tree, 1, folders="more more_mask"),
        r"found bag_data/ with bag_data_msk/, more/ with more_mask/",
    ),
    "a missing mask": (lambda tree: (tree / "bag_data_msk/7.jpg").unlink(), r"7\.jpg has no mask in .*bag_data_msk"),
    "a single picture": (
        lambda tree: [path.unlink() for path in tree.rglob("*.jpg") if path.stem != "7"],
        r"1 pictures cannot be split",
    ),
    "a mask with much grey": (
        _soft,
        r"bag_data_msk/3\.png: 12% of the mask is neither black nor white; expected nothing else \(folder:DIR reads",
    ),
    "a mask of colours": (
        lambda tree: _save(tree, np.full((51, 64, 3), (255, 0, 0), np.uint8)),
        r"bag_data_msk/3\.png: 100% of the mask is neither black nor white",
    ),
    "a mask of ids": (
        lambda tree: _save(tree, _disc(3).astype(np.uint8)),
        r"3\.png: the brightest value of the mask is 1, which is neither black nor white; expected 0 and 255 \(folder",
    ),
    "a mask of another size": (
        lambda tree: _save(tree, np.zeros((51, 63), np.uint8)),
        r"3\.png: the mask is 63×51 pixels, its picture 3\.jpg 64×51",
    ),
    "a damaged mask": (
        lambda tree: (tree / "bag_data_msk/3.jpg").write_bytes(b"JFIF"),
        r"bag_data_msk/3\.jpg: no picture that can be read",
    ),
}


@pytest.mark.parametrize("what", HARMS)
def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(tree: Path, what: str) -> None:
    harm, words = HARMS[what]
    harm(tree)
    with pytest.raises(DatasetError, match=words) as caught:
        _names(_open(tree))
    assert "\n" not in str(caught.value)


def test_a_damaged_mask_has_no_say_in_what_the_edges_are(tree: Path) -> None:
    (tree / "bag_data_msk/3.jpg").write_bytes(b"JFIF")
    np.testing.assert_array_equal(_open(tree).train[4].labels, _disc(4))


def test_options_without_a_use_are_refused(tree: Path) -> None:
    with pytest.raises(DatasetError, match="--ignore has no use for --data bag"):
        open_dataset(f"bag:{tree}", DataOptions(ignore=(1,)))
