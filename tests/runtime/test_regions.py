from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.regions import find_regions, present_ids

SIDES = ((0, 1), (1, 0))
SIDE = st.integers(1, 9)
CORNERS = ((1, 1), (1, -1))


def flooded(labels: NDArray[Any], start: tuple[int, int], connectivity: int) -> set[tuple[int, int]]:
    """Collect the pixels connected to one, by walking."""
    steps = [step for step in (*SIDES, *CORNERS) if connectivity == 8 or step in SIDES]
    found, waiting = {start}, [start]
    while waiting:
        row, column = waiting.pop()
        for down, right in [*steps, *((-down, -right) for down, right in steps)]:
            place = row + down, column + right
            inside = 0 <= place[0] < labels.shape[0] and 0 <= place[1] < labels.shape[1]
            if inside and place not in found and labels[place] == labels[start]:
                found.add(place)
                waiting.append(place)
    return found


@settings(max_examples=80, deadline=None)
@given(
    st_numpy.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(0, 3),
    ),
    st.sampled_from([4, 8]),
)
def test_regions_are_what_a_walk_over_their_pixels_finds(labels: NDArray[Any], connectivity: Any) -> None:
    regions = find_regions(labels, [0, 1, 3], connectivity=connectivity)
    np.testing.assert_array_equal(regions.ids == 0, labels == 2)
    np.testing.assert_array_equal(np.bincount(regions.ids.ravel(), minlength=len(regions) + 1), regions.areas_px)
    for region in range(1, len(regions) + 1):
        places = list(zip(*np.nonzero(regions.ids == region), strict=True))
        assert flooded(labels, places[0], connectivity) == set(places)
        assert labels[places[0]] == regions.classes[region]


def test_regions_are_in_order_of_class_and_place() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 255]], np.uint8)
    regions = find_regions(labels, range(3))
    assert regions.ids.tolist() == [[2, 1, 3], [1, 1, 1], [4, 1, 0]]
    assert regions.classes.tolist() == [-1, 0, 1, 1, 1]
    assert regions.areas_px.tolist() == [1, 5, 1, 1, 1]


def test_without_the_classes_there_are_no_regions() -> None:
    regions = find_regions(np.zeros((3, 4), np.uint8), [1, 2])
    assert len(regions) == 0
    assert regions.areas_px.tolist() == [12]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ids_that_occur_are_told(dtype: type) -> None:
    assert present_ids(np.array([[7, 0], [255, 7]], dtype)) == {0, 7, 255}
