import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Image, Preprocess
from segship.runtime.tiling import (
    LogitBlock,
    RunTiles,
    num_tiles,
    pad_to,
    tile_positions,
    tiled_logit_blocks,
    tiled_logits,
)

TILE = (12, 16)
OVERLAPS = st.sampled_from([0, 0.1, 0.25, 0.5, 0.7, 0.9])
SIDE = st.integers(1, 60)
CARD = ModelCard(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 0, 0)), Preprocess(TILE), tile_overlap=0.5)

Logits = NDArray[np.float32]


def picture(size: tuple[int, int], channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (*size, channels), np.uint8)


def each(run: Callable[[Image], Logits]) -> RunTiles:
    return lambda tiles: np.stack([run(tile) for tile in tiles])


def planes(tile: Image) -> Logits:
    """A "network" whose logits are the values of the pixels."""
    return tile.transpose(2, 0, 1).astype(np.float32)


def vignette(tile: Image) -> Logits:
    """A "network" that sees the middle of its tile otherwise than the edge, and every tile otherwise."""
    height, width = tile.shape[:2]
    shade = np.hypot(*np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    return (planes(tile) * shade + tile.mean()).astype(np.float32)


def blended_naively(image: Image, tile: tuple[int, int], overlap: float) -> NDArray[np.float64]:
    """Weighted sum of all tiles over the sum of their weights, in double precision, pixel by pixel."""
    deviations = [(np.arange(side) - (side - 1) / 2) / (side / 8) for side in tile]
    window = np.exp(-0.5 * (deviations[0][:, None] ** 2 + deviations[1] ** 2))
    total = np.zeros((image.shape[2], *image.shape[:2]))
    weight = np.zeros(image.shape[:2])
    for top in tile_positions(image.shape[0], tile[0], overlap):
        for left in tile_positions(image.shape[1], tile[1], overlap):
            here = (slice(top, top + tile[0]), slice(left, left + tile[1]))
            total[:, *here] += window * vignette(image[here])
            weight[here] += window
    return np.asarray(total / weight)


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (64, 64, 0.5, [0]),
        (10, 64, 0.5, [0]),
        (65, 64, 0.5, [0, 1]),
        (128, 64, 0.5, [0, 32, 64]),
        (130, 64, 0.5, [0, 32, 64, 66]),
        (130, 64, 0, [0, 64, 66]),
        (128, 64, 0, [0, 64]),
        (14, 10, 0.8, [0, 2, 4]),  # 10 · (1 − 0.8) is not quite 2
        (3, 1, 0.9, [0, 1, 2]),
    ],
)
def test_tiles_step_by_what_does_not_overlap_and_the_last_is_shifted_inwards(
    length: int, tile: int, overlap: float, expected: list[int]
) -> None:
    assert tile_positions(length, tile, overlap) == expected


@given(st.integers(1, 3000), st.integers(1, 700), st.floats(0, 0.9))
def test_tiles_cover_an_axis_and_never_leave_it(length: int, tile: int, overlap: float) -> None:
    positions = tile_positions(length, tile, overlap)
    steps = np.diff(positions)
    assert positions[0] == 0
    assert positions[-1] == max(0, length - tile)
    assert ((steps > 0) & (steps <= tile)).all()
    assert (steps <= max(1, tile * (1 - overlap) + 0.5)).all()


def test_one_tile_that_is_the_picture_is_the_whole_result_bit_for_bit() -> None:
    logits = np.random.default_rng(0).standard_normal((4, *TILE), np.float32)
    found = tiled_logits(picture(TILE), each(lambda tile: logits), num_logits=4, tile=TILE, overlap=0.5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), OVERLAPS, st.floats(0.125, 50, width=32))
def test_logits_that_are_the_same_everywhere_stay_so(size: tuple[int, int], overlap: float, value: float) -> None:
    found = tiled_logits(
        picture(size),
        each(lambda tile: np.full((2, *TILE), value, np.float32)),
        num_logits=2,
        tile=TILE,
        overlap=overlap,
    )
    assert found.shape == (2, *size)
    np.testing.assert_allclose(found, value, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), OVERLAPS)
def test_every_pixel_gets_the_logits_of_its_own_place(size: tuple[int, int], overlap: float) -> None:
    image = picture(size)
    found = tiled_logits(image, each(planes), num_logits=3, tile=TILE, overlap=overlap)
    np.testing.assert_allclose(found, planes(image), rtol=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.9])
def test_tiles_are_blended_by_gaussian_weights(overlap: float) -> None:
    image = picture((41, 50))
    found = tiled_logits(image, each(vignette), num_logits=3, tile=TILE, overlap=overlap)
    np.testing.assert_allclose(found, blended_naively(image, TILE, overlap), rtol=2e-6)


def test_between_two_tiles_the_nearer_one_counts_more() -> None:
    numbers = iter([0, 1])
    found = tiled_logits(
        picture((12, 24)),
        each(lambda tile: np.full((1, *TILE), next(numbers), np.float32)),
        num_logits=1,
        tile=TILE,
        overlap=0.5,
    )
    row = found[0, 5]
    assert (row[:8] == 0).all()
    assert (row[16:] == 1).all()
    assert (np.diff(row[8:16]) > 0).all()
    assert row[11] + row[12] == pytest.approx(1)


@pytest.mark.parametrize("size", [(12, 7), (5, 16), (5, 7), (1, 1), (5, 40), (40, 7)])
def test_a_picture_smaller_than_a_tile_is_padded_and_its_logits_are_cropped(size: tuple[int, int]) -> None:
    image = picture(size)
    seen: list[Image] = []

    def run(tile: Image) -> Logits:
        seen.append(tile)
        return planes(tile)

    found = tiled_logits(image, each(run), num_logits=3, tile=TILE, overlap=0.5)
    assert {tile.shape for tile in seen} == {(*TILE, 3)}
    np.testing.assert_array_equal(seen[-1][-1, -1], image[-1, -1])
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, planes(image), rtol=1e-6)


def test_what_is_added_repeats_the_edge_or_is_filled() -> None:
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(pad_to(labels, (3, 4)), [[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4]])
    np.testing.assert_array_equal(pad_to(labels, (1, 3), fill=255), [[1, 2, 255], [3, 4, 255]])
    deep = np.full((2, 2, 1), 40_000, np.uint16)
    padded = pad_to(deep, (4, 4))
    assert (padded.shape, padded.dtype) == ((4, 4, 1), np.uint16)
    assert (padded == 40_000).all()
    assert pad_to(labels, (2, 1)) is labels


def test_no_weight_is_zero_where_only_the_corners_of_large_tiles_lie() -> None:
    size = (600, 600)
    found = tiled_logits(
        np.zeros((*size, 1), np.uint8),
        each(lambda tile: np.ones((1, 512, 512), np.float32)),
        num_logits=1,
        tile=(512, 512),
        overlap=0,
    )
    assert math.isclose(found.min(), 1, rel_tol=1e-6)


class Rows:
    """A picture that is read by rows, and what was read of it."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> Image:
        self.asked.append((start, stop))
        return self.image[start:stop]


def blocks_of(rows: Rows, run: RunTiles, *, overlap: float = 0.5, batch: int = 1) -> list[LogitBlock]:
    size = (rows.image.shape[0], rows.image.shape[1])
    return list(tiled_logit_blocks(rows, size, run, num_logits=3, tile=TILE, overlap=overlap, batch=batch))


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), OVERLAPS, st.integers(1, 7))
def test_blocks_cover_each_pixel_once_row_by_row(size: tuple[int, int], overlap: float, batch: int) -> None:
    image = picture(size)
    blocks = blocks_of(Rows(image), each(planes), overlap=overlap, batch=batch)
    places = [(block.top, block.left) for block in blocks]
    assert places == sorted(places)
    assert len(blocks) == num_tiles(size, TILE, overlap)
    covered = np.zeros(size, int)
    for block in blocks:
        height, width = block.logits.shape[1:]
        here = (slice(block.top, block.top + height), slice(block.left, block.left + width))
        covered[here] += 1
        np.testing.assert_allclose(block.logits, planes(image[here]), rtol=1e-6)
    assert (covered == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), OVERLAPS, st.integers(2, 9))
def test_batches_change_no_bit(size: tuple[int, int], overlap: float, batch: int) -> None:
    image = picture(size)
    expected = tiled_logits(image, each(vignette), num_logits=3, tile=TILE, overlap=overlap)
    found = tiled_logits(image, each(vignette), num_logits=3, tile=TILE, overlap=overlap, batch=batch)
    np.testing.assert_array_equal(found, expected)


def test_batches_are_full_but_for_the_last_and_reach_into_the_next_row_of_tiles() -> None:
    numbers: list[int] = []

    def run(tiles: Sequence[Image]) -> Logits:
        numbers.append(len(tiles))
        return each(planes)(tiles)

    blocks_of(Rows(picture((24, 40))), run, batch=5)  # 3 rows of 4 tiles
    assert numbers == [5, 5, 2]


def test_rows_are_read_once_for_each_row_of_tiles_and_only_when_it_is_due() -> None:
    rows = Rows(picture((30, 40)))
    blocks = tiled_logit_blocks(rows, (30, 40), each(planes), num_logits=3, tile=TILE, overlap=0.5)
    rows_read = {(block.top, len(rows.asked)) for block in blocks}
    assert rows.asked == [(0, 12), (6, 18), (12, 24), (18, 30)]
    assert rows_read == {(0, 1), (6, 2), (12, 3), (18, 4)}


def test_a_block_does_not_change_when_the_next_ones_are_made() -> None:
    image = picture((40, 50))
    kept = blocks_of(Rows(image), each(vignette))
    expected = tiled_logits(image, each(vignette), num_logits=3, tile=TILE, overlap=0.5)
    for block in kept:
        height, width = block.logits.shape[1:]
        here = expected[:, block.top : block.top + height, block.left : block.left + width]
        np.testing.assert_array_equal(block.logits, here)
