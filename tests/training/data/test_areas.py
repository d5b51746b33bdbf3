from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segship.runtime.errors import DatasetError
from segship.training.data.areas import area_runs, paint_runs

WHERE = "instances.json: annotation 7 of x.jpg"


def _paint(segmentation: object, size: tuple[int, int] = (10, 12)) -> NDArray[np.bool_]:
    """Return the area as True in (H, W)."""
    by_columns = np.zeros(size[0] * size[1], np.uint8)
    for runs in area_runs(segmentation, size, WHERE):
        paint_runs(by_columns, runs, 1)
    return by_columns.reshape(size[1], size[0]).T == 1


def _rectangle(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    expected = np.zeros((10, 12), bool)
    expected[top:bottom, left:right] = True
    return expected


def _counts(area: NDArray[np.bool_]) -> list[int]:
    """Return runs down the columns, counted one by one."""
    pixels = [False, *(bool(pixel) for pixel in area.T.ravel())]
    counts = [0]
    for before, now in pairwise(pixels):
        if before != now:
            counts.append(0)
        counts[-1] += 1
    return counts


AREAS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda draw: np.random.default_rng(draw[2]).random(draw[:2]) < draw[3]
)


@given(AREAS)
@settings(max_examples=100, deadline=None)
def test_runs_as_numbers_and_as_text_give_the_area_back(area: NDArray[np.bool_]) -> None:
    height, width = area.shape
    text = coco_mask.encode(np.asfortranarray(area, np.uint8))["counts"].decode()
    for counts in (_counts(area), text):
        np.testing.assert_array_equal(_paint({"size": [height, width], "counts": counts}, area.shape), area)


def test_long_runs_as_text_give_the_area_back() -> None:
    area = np.zeros((2000, 3000), bool)
    area[3:1990, 700:2900] = True
    area[500:600, 1000:1100] = False
    text = coco_mask.encode(np.asfortranarray(area, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(_paint({"size": [2000, 3000], "counts": text}, area.shape), area)


def _no_crash(segmentation: object, size: tuple[int, int] = (6, 7)) -> None:
    try:
        area = _paint(segmentation, size)
    except DatasetError as error:
        assert str(error).startswith(WHERE)  # noqa: PT017  # some of these are right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert area.shape == size


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


@given(ANYTHING)
@settings(max_examples=200, deadline=None)
def test_whatever_json_holds_is_an_area_or_an_error(segmentation: object) -> None:
    _no_crash(segmentation)


@given(st.text(max_size=30) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
@settings(max_examples=300, deadline=None)
def test_whatever_text_of_runs_is_an_area_or_an_error(counts: str) -> None:
    _no_crash({"size": [6, 7], "counts": counts})


@given(st.lists(st.integers(-2, 50) | st.integers(), max_size=8))
@settings(max_examples=100, deadline=None)
def test_whatever_list_of_runs_is_an_area_or_an_error(counts: list[int]) -> None:
    _no_crash({"size": [6, 7], "counts": counts})
    if all(count >= 0 for count in counts) and sum(counts) <= 42:
        _no_crash({"size": [6, 7], "counts": [*counts, 42 - sum(counts)]})


@given(st.lists(st.floats() | st.floats(-8, 16), min_size=4, max_size=14))
@settings(max_examples=200, deadline=None)
def test_whatever_polygon_is_an_area_or_an_error(polygon: list[float]) -> None:
    _no_crash([polygon])


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([2, 3, 5, 3, 5, 7, 2, 7], _rectangle(3, 2, 7, 5)),
        ([0, 0, 12, 0, 12, 10, 0, 10], _rectangle(0, 0, 10, 12)),
        ([-6, -4, 4, -4, 4, 3, -6, 3], _rectangle(0, 0, 3, 4)),
        ([8, 2, 20, 2, 20, 19, 8, 19], _rectangle(2, 8, 10, 12)),
        ([2, 2, 2, 2, 2, 2], _rectangle(0, 0, 0, 0)),
    ],
    ids=["inside", "the whole picture", "over the upper left", "over the lower right", "a point"],
)
def test_a_polygon_covers_the_pixels_within_it_and_ends_at_the_edges(
    polygon: list[float], expected: NDArray[np.bool_]
) -> None:
    np.testing.assert_array_equal(_paint([polygon]), expected)


def test_several_polygons_are_their_union() -> None:
    parts = [[1, 1, 4, 1, 4, 5, 1, 5], [3, 3, 8, 3, 8, 9, 3, 9]]
    np.testing.assert_array_equal(_paint(parts), _rectangle(1, 1, 5, 4) | _rectangle(3, 3, 9, 8))


def _runs(counts: Any, size: Any = (10, 12)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "has no area, perhaps a box alone; expected polygons or run lengths"),
        ([], "has no area, perhaps a box alone"),
        ([1, 2, 3, 4, 5, 6], r"a polygon is '1'; expected a list of numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon has 7 numbers; expected x and y of 3 points or more"),
        ([[1, 2, 3, 4]], "a polygon has 4 numbers; expected x and y of 3 points or more"),
        ([[1, 2, 3, None, 5, 6]], r"a polygon is '\[1, 2, 3, None, 5, 6\]'; expected a list of numbers"),
        ([[1, 2, 3, float("inf"), 5, 6]], "expected a list of numbers x, y, x, y, …"),
        ([[[1, 2], [3, 4], [5, 6]]], "expected a list of numbers x, y, x, y, …"),
        ([[1, 2, 3, 10**400, 5, 6]], "expected a list of numbers x, y, x, y, …"),
        ([[13, 1, 20, 1, 20, 9]], "a polygon with x 13…20 and y 1…9 does not belong to a picture of 12×10 pixels"),
        ([[1, 1, 5, 1, 5, 9], [1, -9, 5, -9, 5, -1]], "a polygon with x 1…5 and y -9…-1 does not belong"),
        ([[1, 1, 1e9, 1, 5, 5]], r"a polygon with x 1…1e\+09 and y 1…5 does not belong"),
        ([[0, 0, 12, 10] * 40], "a polygon's outline is 960 pixels long, too long for its picture"),
        (_runs([120], (12, 10)), r"its runs are of size \[12, 10\]; expected \[10, 12\]"),
        ({"counts": [120]}, r"its runs are of size None; expected \[10, 12\]"),
        ({"size": [10, 12]}, "its runs are damaged; expected lengths from 0"),
        (_runs([5, -5, 120]), "its runs are damaged; expected lengths from 0"),
        (_runs([60, 60.0]), "its runs are damaged; expected lengths from 0"),
        (_runs([60, 61]), "its runs cover 121 pixels; expected 120, those of the picture"),
        (_runs([60, 10**30]), r"its runs cover 1000000000000000000000000000060 pixels"),
        (_runs([]), "its runs cover 0 pixels; expected 120"),
        (_runs("g3"), "its runs cover 119 pixels; expected 120"),
        (_runs("P"), "its runs are damaged; their text ends within a number"),
        (_runs("1!"), r"its runs are damaged; b'!' does not belong in their text"),
        (_runs("P" * 40), r"its runs are damaged; b'P' does not belong in their text"),
        (_runs("é\ud800"), "its runs are damaged; .* does not belong in their text"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(segmentation: object, words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        _paint(segmentation)
    assert str(caught.value).startswith(WHERE)
    assert "\n" not in str(caught.value)
