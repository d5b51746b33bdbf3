import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from segship.runtime.polygons import Ring, trace_polygons
from segship.runtime.regions import find_regions

LABELS = st_numpy.arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 0, 1, 1, 2])
)


def filled(rings: list[Ring], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill by the even-odd rule: each upright line turns over what lies to its right."""
    inside = np.zeros(size, np.bool_)
    for ring in rings:
        for (x, y), (next_x, next_y) in itertools.pairwise(ring.tolist()):
            if x == next_x:
                inside[min(y, next_y) : max(y, next_y), x:] ^= True
    return inside


def area(ring: Ring) -> float:
    """Measure what a ring encloses, positive where it goes counter-clockwise with y up."""
    x, y = ring[:-1].T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def unit_steps(ring: Ring) -> list[tuple[int, int]]:
    """List every grid point that a ring passes, the last one once."""
    points = []
    for (x, y), (next_x, next_y) in itertools.pairwise(ring.tolist()):
        count = abs(next_x - x) + abs(next_y - y)
        points += [(x + (next_x - x) * step // count, y + (next_y - y) * step // count) for step in range(count)]
    return points


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_filled_again_polygons_give_the_same_pixels(labels: NDArray[Any]) -> None:
    regions = find_regions(labels, [1, 2], connectivity=4)
    polygons = trace_polygons(regions.ids)
    assert sorted(polygons) == list(range(1, len(regions) + 1))
    for region, rings in polygons.items():
        np.testing.assert_array_equal(filled(rings, labels.shape), regions.ids == region)


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_rings_are_simple_closed_and_turn_at_every_corner(labels: NDArray[Any]) -> None:
    for rings in trace_polygons(find_regions(labels, [1, 2], connectivity=4).ids).values():
        outer, *holes = rings
        assert area(outer) > 0
        assert all(area(hole) < 0 for hole in holes)
        for ring in rings:
            assert ring[0].tolist() == ring[-1].tolist()
            points = unit_steps(ring)
            assert len(set(points)) == len(points)
            assert ((np.diff(ring, axis=0) == 0).sum(axis=1) == 1).all()
            directions = np.sign(np.diff(np.concatenate([ring, ring[1:2]]), axis=0))
            assert (directions[1:] != directions[:-1]).any(axis=1).all()


def test_a_pixel_is_a_square_from_its_top_left_corner() -> None:
    ids = np.zeros((3, 4), np.int32)
    ids[1, 2] = 1
    assert trace_polygons(ids)[1][0].tolist() == [[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]


def test_a_hole_follows_its_outer_ring() -> None:
    ids = np.ones((3, 3), np.int32)
    ids[1, 1] = 0
    outer, hole = trace_polygons(ids)[1]
    assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]
    assert sorted(map(tuple, hole[:-1].tolist())) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_where_a_region_touches_itself_at_a_corner_there_is_a_hole() -> None:
    ids = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.int32)
    assert len(trace_polygons(ids)[1]) == 2


def test_a_picture_without_regions_has_no_polygons() -> None:
    assert trace_polygons(np.zeros((5, 5), np.int32)) == {}
