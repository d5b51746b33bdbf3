import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.palettes import distinct_colors
from segship.runtime.postprocess import PostProcess, keep_only, no_class_id
from segship.runtime.preprocess import Preprocess
from segship.runtime.regions import find_regions

BINARY = ModelCard(("rest", "object"), distinct_colors(2), Preprocess((4, 4)), task="binary")
STREET = ModelCard(("sky", "tree", "road"), distinct_colors(3), Preprocess((4, 4)))
WITH_BACKGROUND = dataclasses.replace(STREET, class_names=("background", "tree", "road"))
VOID = 255


def picture(*rows: str) -> NDArray[np.uint8]:
    """Read labels: a digit is a class, a point class 0, an x no class."""
    ids = {".": 0, "x": VOID}
    return np.array([[ids.get(letter, ord(letter) - ord("0")) for letter in row] for row in rows], np.uint8)


def tidied(labels: NDArray[Any], card: ModelCard = BINARY, **steps: int) -> list[str]:
    before = labels.copy()
    after = PostProcess(**steps).apply(labels, card)
    np.testing.assert_array_equal(labels, before)
    assert after.dtype == labels.dtype
    letters = {0: ".", VOID: "x"}
    return ["".join(letters.get(value, str(value)) for value in row) for row in after.tolist()]


def test_nothing_is_done_unless_asked_for() -> None:
    labels = picture("1.2x")
    assert not PostProcess()
    assert PostProcess(min_area_px=1)
    assert PostProcess().apply(labels, STREET) is labels


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PostProcess)])
def test_negative_sizes_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is -1; expected 0 or more pixels"):
        PostProcess(**{field: -1})


def test_small_objects_go_to_what_surrounds_them() -> None:
    labels = picture("......", ".11...", "...1..", "......", "1.....")
    assert tidied(labels, min_area_px=3) == ["......", ".11...", "...1..", "......", "......"]
    assert tidied(labels, min_area_px=4) == ["......"] * 5


def test_of_several_neighbours_the_most_frequent_wins_and_of_equal_ones_the_lowest_id() -> None:
    assert tidied(picture("00222", "01222", "00222"), STREET, min_area_px=2) == ["..222", "..222", "..222"]
    assert tidied(picture("02222", "01222", "02222"), STREET, min_area_px=2)[1] == ".2222"
    assert tidied(picture("02222", "01222", "00222"), STREET, min_area_px=2)[1] == "..222"
    assert tidied(picture("...1222"), STREET, min_area_px=3) == ["....222"]


def test_small_objects_side_by_side_go_to_what_lies_around_them_all() -> None:
    assert tidied(picture("......", "..12..", "......"), STREET, min_area_px=2) == ["......"] * 3
    assert tidied(picture("12....."), STREET, min_area_px=2) == ["......."]  # the left one reaches it through the other


def test_the_background_is_no_object() -> None:
    assert tidied(picture("111", "1.1", "111"), min_area_px=2) == ["111", "1.1", "111"]
    assert tidied(picture("111", "1.1", "111"), WITH_BACKGROUND, min_area_px=2) == ["111", "1.1", "111"]
    assert tidied(picture("111", "1.1", "111"), STREET, min_area_px=2) == ["111", "111", "111"]


def test_a_small_object_that_has_nothing_around_it_stays() -> None:
    assert tidied(picture("11"), min_area_px=9) == ["11"]
    assert tidied(picture("1x", "xx"), min_area_px=9) == ["1x", "xx"]
    assert tidied(picture("12"), STREET, min_area_px=9) == ["12"]


def test_pixels_of_no_class_neither_vote_nor_change() -> None:
    steps = {"open_px": 1, "close_px": 1, "fill_holes_px": 3, "min_area_px": 3}
    assert tidied(picture("xxx", "x1.", "xx."), min_area_px=2) == ["xxx", "x..", "xx."]
    assert tidied(picture("111", "1x1", "111"), **steps)[1] == "1x1"
    assert tidied(picture("xxxx", "xxxx"), **steps) == ["xxxx", "xxxx"]


def test_opening_takes_thin_parts_away() -> None:
    labels = picture(".....", ".111.", ".1111", ".111.", ".....")
    assert tidied(labels, open_px=1) == [".....", ".111.", ".111.", ".111.", "....."]
    assert tidied(labels, open_px=2) == ["....."] * 5


def test_closing_fills_thin_gaps_of_an_object() -> None:
    labels = picture(".......", ".11.11.", ".11.11.", ".11.11.", ".......")
    assert tidied(labels, close_px=1) == [".......", ".11111.", ".11111.", ".11111.", "......."]
    assert tidied(picture(".1.", "11.", "..."), close_px=1) == [".1.", "11.", "..."]  # the edge is no object


def test_a_thin_part_between_two_classes_goes_to_the_nearer_one() -> None:
    labels = picture(*["000012222"] * 5)
    assert tidied(labels, STREET, open_px=1)[2] in ("....." + "2222", "...." + "22222")
    assert tidied(picture(*["0000112222"] * 5), STREET, open_px=1)[2] == ".....22222"


def test_a_gap_that_several_classes_claim_goes_to_the_lowest_id() -> None:
    cross = picture("22.22", "22.22", "11.11", "22.22", "22.22")
    assert tidied(cross, WITH_BACKGROUND, close_px=1)[2] == "22122"  # both close the middle, the 2s also what is beside


def test_holes_smaller_than_asked_for_are_filled() -> None:
    labels = picture("11111.", "1.111.", "111..1", "11...1", "111111")
    assert tidied(labels, fill_holes_px=2) == ["11111.", "11111.", "111..1", "11...1", "111111"]
    ring = picture("1111", "1.21", "1111")
    assert tidied(ring, WITH_BACKGROUND, fill_holes_px=3) == ["1111"] * 3
    assert tidied(ring, WITH_BACKGROUND, fill_holes_px=2) == ["1111", "1.21", "1111"]


def test_what_reaches_the_edge_is_no_hole() -> None:
    labels = picture("111", "1.1", "1.1")
    assert tidied(labels, fill_holes_px=100) == ["111", "1.1", "1.1"]


def test_a_hole_closed_at_corners_only_is_one() -> None:
    assert tidied(picture(".....", "..1..", ".1.1.", "..1..", "....."), fill_holes_px=2)[2] == ".111."


ANY_LABELS = st_numpy.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.sampled_from([0, 1, 2, VOID]),
)


@settings(max_examples=100, deadline=None)
@given(ANY_LABELS, st.integers(2, 20))
def test_no_small_object_is_left_where_there_is_anything_larger_beside_it(labels: NDArray[Any], below: int) -> None:
    tidy = PostProcess(min_area_px=below).apply(labels, STREET)
    before, after = find_regions(labels, range(3)), find_regions(tidy, range(3))
    valid = find_regions((labels == VOID).astype(np.uint8), [0])  # what is connected at all
    for region in range(1, len(valid) + 1):
        inside = valid.ids == region
        if before.areas_px[np.unique(before.ids[inside])].max() >= below:
            assert after.areas_px[np.unique(after.ids[inside])].min() >= below
        else:
            np.testing.assert_array_equal(tidy[inside], labels[inside])


@settings(max_examples=60, deadline=None)
@given(ANY_LABELS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9))
def test_steps_follow_each_other_and_no_class_stays_no_class(
    labels: NDArray[Any], open_px: int, close_px: int, holes: int, area: int
) -> None:
    at_once = PostProcess(open_px=open_px, close_px=close_px, fill_holes_px=holes, min_area_px=area).apply(
        labels, STREET
    )
    one_by_one = labels
    for step in (PostProcess(open_px=open_px), PostProcess(close_px=close_px)):
        one_by_one = step.apply(one_by_one, STREET)
    for step in (PostProcess(fill_holes_px=holes), PostProcess(min_area_px=area)):
        one_by_one = step.apply(one_by_one, STREET)
    np.testing.assert_array_equal(at_once, one_by_one)
    assert at_once.dtype == labels.dtype
    np.testing.assert_array_equal(at_once == VOID, labels == VOID)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_classes_become_no_class(dtype: type) -> None:
    labels = np.array([[0, 1, 2], [2, 1, VOID]], dtype)
    kept = keep_only(labels, [1], STREET)
    assert kept.dtype == dtype
    assert kept.tolist() == [[255, 1, 255], [255, 1, 255]]
    assert labels[0, 0] == 0


@pytest.mark.parametrize(
    ("classes", "ignore_index", "void"), [(3, 255, 255), (3, 7, 7), (3, -1, 255), (256, -100, 65535), (3, 70000, 255)]
)
def test_no_class_is_the_ignore_index_or_the_largest_id(classes: int, ignore_index: int, void: int) -> None:
    card = ModelCard(
        tuple(map(str, range(classes))), distinct_colors(classes), Preprocess((4, 4)), ignore_index=ignore_index
    )
    assert no_class_id(card) == void
    kept = keep_only(np.array([[0, 1]], np.uint8), [1], card)
    assert kept.tolist() == [[void, 1]]
    assert kept.dtype == (np.uint8 if void <= 255 else np.uint16)
