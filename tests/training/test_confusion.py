from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Preprocess
from segship.training.confusion import draw_confusion
from segship.training.metrics import ConfusionMatrix

GREY_ROW = (224, 224, 224)


def _card(num_classes: int, names: tuple[str, ...] | None = None) -> ModelCard:
    form = Preprocess((32, 32), 3, "uint8", mean=(0.0,) * 3, std=(1.0,) * 3)
    palette = tuple((class_id % 256, 255, class_id // 256) for class_id in range(num_classes))
    return ModelCard(
        names or tuple(f"class {number}" for number in range(num_classes)), palette, form, ignore_index=65535
    )


def _drawn(path: Path, counts: NDArray[np.int64], names: tuple[str, ...] | None = None) -> NDArray[np.uint8]:
    matrix = ConfusionMatrix(len(counts), 65535)
    matrix.counts = counts
    draw_confusion(path, matrix, _card(len(counts), names))
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _area(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> int:
    return int((picture == color).all(axis=2).sum())


@pytest.mark.parametrize("num_classes", [1, 2, 11, 41])
def test_any_number_of_classes_is_drawn_larger_the_more_there_are(tmp_path: Path, num_classes: int) -> None:
    picture = _drawn(tmp_path / "confusion.png", np.eye(num_classes, dtype=np.int64))
    assert 400 < picture.shape[0] < 1500
    full = np.array([8, 48, 107])  # what the colour map has for 1
    share = (np.abs(picture - full).max(axis=2) <= 1).mean()
    assert share > 0.4 / (num_classes + 1), "the diagonal"


def test_with_hundreds_of_classes_the_picture_stays_of_a_size_that_opens(tmp_path: Path) -> None:
    picture = _drawn(tmp_path / "confusion.png", np.eye(300, dtype=np.int64))
    assert picture.shape == (2805, 2915, 3)
    red, green, blue = (picture[:, :, channel].astype(np.int64) for channel in range(3))
    found = np.bincount((red + 256 * blue)[green == 255])  # colours of our palette, and white
    assert np.flatnonzero(found[:300]).tolist() == list(range(0, 300, 2)), "every second class is named"


def test_only_shares_of_a_row_are_shown_so_that_rare_classes_count_as_much(tmp_path: Path) -> None:
    counts = np.array([[900, 100, 0], [2, 6, 0], [0, 0, 5]])
    more_of_the_first = counts * np.array([[1000], [1], [7]])
    first, second = _drawn(tmp_path / "a.png", counts), _drawn(tmp_path / "b.png", more_of_the_first)
    np.testing.assert_array_equal(first, second)
    transposed = _drawn(tmp_path / "c.png", counts.T.copy())
    assert (first != transposed).any()


def test_the_row_of_a_class_that_the_truth_lacks_is_grey_also_where_it_was_predicted(tmp_path: Path) -> None:
    whole = _drawn(tmp_path / "whole.png", np.array([[5, 0, 1], [0, 3, 0], [0, 0, 4]]))
    absent = _drawn(tmp_path / "absent.png", np.array([[5, 0, 1], [0, 3, 0], [0, 0, 0]]))
    nothing = _drawn(tmp_path / "nothing.png", np.zeros((3, 3), np.int64))
    assert _area(whole, GREY_ROW) < 100, "some edges of letters have that grey"
    assert _area(nothing, GREY_ROW) == pytest.approx(3 * _area(absent, GREY_ROW), rel=0.05)
    assert _area(absent, GREY_ROW) > 10_000


def test_each_row_and_column_has_a_square_of_its_class_s_colour(tmp_path: Path) -> None:
    picture = _drawn(tmp_path / "confusion.png", np.eye(4, dtype=np.int64))
    for color in _card(4).palette:
        rows, columns = np.nonzero((picture == color).all(axis=2))
        assert len(rows) > 60
        beside, below = columns < columns.min() + 9, rows > rows.max() - 9
        assert (beside | below).all()


@pytest.mark.parametrize("name", ["$\\x$", "道路", "x" * 500])
def test_names_that_are_odd_are_drawn_all_the_same(tmp_path: Path, name: str) -> None:
    plain = _drawn(tmp_path / "plain.png", np.eye(2, dtype=np.int64), ("a", "b"))
    odd = _drawn(tmp_path / "odd.png", np.eye(2, dtype=np.int64), ("a", name))
    assert plain.shape == odd.shape
    assert (plain != odd).any()


def test_a_share_that_is_small_and_one_that_is_none_are_told_apart(tmp_path: Path) -> None:
    none = _drawn(tmp_path / "none.png", np.array([[100_000, 0], [0, 1]]))
    few = _drawn(tmp_path / "few.png", np.array([[99_999, 1], [0, 1]]))
    changed = np.argwhere((none != few).any(axis=2))
    assert len(changed) > 20, "it says <1"
