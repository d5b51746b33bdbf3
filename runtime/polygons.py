"""Exact outlines of regions, along the edges of their pixels: filled again, they give the same pixels."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int64]
"""Corners (n, 2) of a closed line, (x, y) in pixels, the last one equal to the first. (0, 0) is the picture's top left
corner, (1, 1) the bottom right corner of its first pixel."""

# An edge leads east, south, west or north (0…3), along the top, right, bottom or left of the pixel on its right.
_STEPS: Final = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # (down, right)
_STARTS: Final = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])  # corner of the pixel, (x, y)


def trace_polygons(ids: NDArray[np.int32]) -> dict[int, list[Ring]]:
    """Return the polygon of each region: its outer ring, and then one for each hole.

    Rings are simple, as the OGC's Simple Features ask: none touches itself, and a hole meets the outer ring or another
    hole in single corners at most. Outer rings go clockwise on a screen, which is counter-clockwise in the sense of
    RFC 7946, as y points down; holes go the other way.

    Args:
        ids: (H, W), the region of each pixel, 0 for none. Pixels of one region must be connected by their sides.
    """
    padded = np.pad(ids, 1)
    rows, columns, directions = np.nonzero(_edges(padded))
    following = _followers(padded, rows, columns, directions)
    is_corner = np.empty(len(rows), np.bool_)
    is_corner[following] = directions[following] != directions
    corners = np.stack([columns, rows], axis=1) + _STARTS[directions]
    owners = ids[rows, columns]
    polygons: dict[int, list[Ring]] = {}
    for edges in _cycles(following):  # a region's outer ring comes first: it holds the top of its first pixel
        ring = corners[edges[is_corner[edges]]]
        polygons.setdefault(int(owners[edges[0]]), []).append(np.concatenate([ring, ring[:1]]))
    return polygons


def _edges(padded: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell of each pixel (H, W) and direction (4) whether there is an edge."""
    inner = padded[1:-1, 1:-1]
    across = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    return np.stack([(inner != neighbour) & (inner != 0) for neighbour in across], axis=2)


def _followers(
    padded: NDArray[np.int32], rows: NDArray[np.intp], columns: NDArray[np.intp], directions: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the number of the edge that follows each: left if it can, else straight on, else right.

    Left first means that, where two pixels of a region meet at a corner only, the line does not cut between them:
    the other two are then told apart, of which one lies in a hole.
    """
    left = (directions - 1) % 4
    ahead = np.stack([rows, columns], axis=1) + _STEPS[directions]
    beside = ahead + _STEPS[left]
    own = padded[rows + 1, columns + 1]
    goes_left = padded[beside[:, 0] + 1, beside[:, 1] + 1] == own
    goes_on = padded[ahead[:, 0] + 1, ahead[:, 1] + 1] == own
    row = np.where(goes_left, beside[:, 0], np.where(goes_on, ahead[:, 0], rows))
    column = np.where(goes_left, beside[:, 1], np.where(goes_on, ahead[:, 1], columns))
    direction = np.where(goes_left, left, np.where(goes_on, directions, (directions + 1) % 4))
    width = padded.shape[1]
    keys = (rows * width + columns) * 4 + directions  # in ascending order already
    return np.asarray(np.searchsorted(keys, (row * width + column) * 4 + direction))


def _cycles(following: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    after, is_seen = following.tolist(), bytearray(len(following))
    for first in range(len(after)):
        cycle, edge = [], first
        while not is_seen[edge]:
            is_seen[edge] = True
            cycle.append(edge)
            edge = after[edge]
        if cycle:
            yield np.array(cycle)
