import numpy as np
import pytest

from segship.runtime.card import ModelCard
from segship.runtime.legend import ids_by_area, with_legend
from segship.runtime.palettes import distinct_colors
from segship.runtime.preprocess import Preprocess

NAMES = ("road", "Straße", "a class of quite a long name", "道路", "x")
CARD = ModelCard(NAMES, distinct_colors(5), Preprocess((4, 4)))
RNG = np.random.default_rng(4)


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (360, 480), (500, 90), (2000, 3000)])
def test_a_legend_hides_nothing(size: tuple[int, int]) -> None:
    picture = RNG.integers(0, 256, (*size, 3), np.uint8)
    drawn = with_legend(picture, CARD, [1, 0, 4])
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > size[0]
    assert drawn.shape[1] >= size[1]
    np.testing.assert_array_equal(drawn[: size[0], : size[1]], picture)


def test_a_legend_shows_the_colour_of_each_class_it_lists_and_of_no_other() -> None:
    drawn = with_legend(np.zeros((360, 480, 3), np.uint8), CARD, [3, 1])
    strip = {tuple(color) for color in drawn[360:].reshape(-1, 3).tolist()}
    assert {CARD.palette[3], CARD.palette[1]} <= strip
    assert not {CARD.palette[2], CARD.palette[4]} & strip


def test_classes_come_in_the_order_given() -> None:
    strip = with_legend(np.zeros((360, 480, 3), np.uint8), CARD, [3, 1])[360:]
    first, second = (np.nonzero((strip == CARD.palette[i]).all(axis=2))[1].min() for i in (3, 1))
    assert first < second


def test_text_grows_with_the_picture() -> None:
    small, large = (with_legend(np.zeros((side, side, 3), np.uint8), CARD, [0])[side:] for side in (100, 2000))
    assert len(large) > 2 * len(small)


def test_a_narrow_picture_becomes_as_wide_as_the_longest_name_and_has_a_row_for_each_class() -> None:
    one, two = (with_legend(np.zeros((64, 16, 3), np.uint8), CARD, ids) for ids in ([2], [2, 0]))
    assert one.shape[1] == two.shape[1] > 150
    assert two.shape[0] > one.shape[0]
    assert (one[:64, 16:] == 255).all()


def test_without_classes_there_is_no_legend() -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    assert with_legend(picture, CARD, []) is picture


def test_classes_are_listed_by_area_without_those_that_have_none() -> None:
    labels = np.array([[3, 3, 1, 255, 255, 255], [0, 3, 1, 255, 255, 4]], np.uint8)
    assert ids_by_area(labels, CARD) == [3, 1, 0, 4]
