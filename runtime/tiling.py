"""A picture cut into tiles that overlap, and what the network says of them blended.

Tiles lie on a grid, and so does their weighting: the weight of a tile at a pixel is the product of a weight of its row
and one of its column, and each adds up to 1 over the tiles that meet there. So nothing is divided in the end, and what
lies above the next row of tiles and left of the next column is finished.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.preprocess import Image

ReadRows = Callable[[int, int], Image]
"""Returns the rows of a picture from one up to, but not including, another: (stop − start, W, C)."""

RunTiles = Callable[[Sequence[Image]], NDArray[np.float32]]
"""Maps n tiles (h, w, C) to their logits (n, K, h, w)."""


@dataclass(frozen=True)
class LogitBlock:
    """What a network says of a part of a picture, finished.

    Attributes:
        top: the part's first row in the picture.
        left: its first column.
        logits: (K, h, w), float32.
    """

    top: int
    left: int
    logits: NDArray[np.float32]


def tiled_logits(
    image: Image, run: RunTiles, *, num_logits: int, tile: tuple[int, int], overlap: float, batch: int = 1
) -> NDArray[np.float32]:
    """Run a network on the tiles of a picture (H, W, C) and return the blended logits (K, H, W), float32.

    See :func:`tiled_logit_blocks`, which says what the arguments are and needs no whole picture.
    """
    size = (image.shape[0], image.shape[1])
    logits = np.empty((num_logits, *size), np.float32)
    for block in tiled_logit_blocks(
        lambda start, stop: image[start:stop],
        size,
        run,
        num_logits=num_logits,
        tile=tile,
        overlap=overlap,
        batch=batch,
    ):
        height, width = block.logits.shape[1:]
        logits[:, block.top : block.top + height, block.left : block.left + width] = block.logits
    return logits


def tiled_logit_blocks(
    read_rows: ReadRows,
    size: tuple[int, int],
    run: RunTiles,
    *,
    num_logits: int,
    tile: tuple[int, int],
    overlap: float,
    batch: int = 1,
) -> Iterator[LogitBlock]:
    """Run a network on the tiles of a picture that is read row by row, and blend what it returns, part by part.

    Of a tile the middle counts more than the edge, where the network sees less of the surroundings: weights are
    Gaussian, with a standard deviation of an eighth of the tile's side, as in Isensee et al., "nnU-Net", 2021.

    Held at a time: the pixels of a row of tiles (of two where a batch reaches into the next row), the logits of a batch
    and of a block, and over the picture's whole width those of the rows that the next row of tiles covers too. These
    are K · overlap · h · W numbers, and for the last row of tiles, which is shifted, more, but less than K · h · W. The
    picture's height does not count.

    Args:
        read_rows: called for rows from top to bottom; those that two rows of tiles share are asked for twice.
        size: (H, W) of the picture. One that is smaller than a tile is padded, and its logits are cropped.
        run: called with at most ``batch`` tiles, from left to right and top to bottom.
        num_logits: K.
        tile: (h, w).
        overlap: share of a tile that the next one covers too, 0…0.9; at the picture's lower and right edge more.
        batch: number of tiles to run at once.

    Yields:
        Blocks that cover the picture, each pixel once: rows of blocks from top to bottom, from left to right in a row.
        All blocks of a row have the same rows.
    """
    rows, columns = (_spans(side, length, overlap) for side, length in zip(size, tile, strict=True))
    logits_of_tiles = _run_in_batches(_tiles(read_rows, size, rows, columns), run, batch)
    shared_rows = max(row.stop - row.finished for row in rows)
    from_above = np.zeros((num_logits, shared_rows, columns[-1].stop), np.float32)
    shared_with_above = 0
    for row in rows:
        shared_with_below = row.stop - row.finished
        from_left = np.zeros((num_logits, tile[0], 0), np.float32)
        for column in columns:
            weighted = next(logits_of_tiles) * column.weights
            weighted[:, :, : from_left.shape[2]] += from_left
            from_left = weighted[:, :, column.finished - column.start :].copy()
            block = weighted[:, :, : column.finished - column.start]
            block *= row.weights[:, None]
            here = slice(column.start, column.finished)
            block[:, :shared_with_above] += from_above[:, :shared_with_above, here]
            from_above[:, :shared_with_below, here] = block[:, tile[0] - shared_with_below :]
            bottom, right = min(row.finished, size[0]), min(column.finished, size[1])
            yield LogitBlock(row.start, column.start, block[:, : bottom - row.start, : right - column.start])
        shared_with_above = shared_with_below


def num_tiles(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> int:
    """Return how many tiles (h, w) cover a picture of ``size`` (H, W)."""
    rows, columns = (len(tile_positions(side, length, overlap)) for side, length in zip(size, tile, strict=True))
    return rows * columns


def tile_positions(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles start along an axis of a picture.

    The last one is shifted inwards so that it ends with the picture; a picture that is no longer than a tile has one.
    """
    step = max(1, round(tile * (1 - overlap)))
    last = max(0, length - tile)
    return [*range(0, last, step), last]


def pad_to(image: NDArray[Any], size: tuple[int, int], fill: int | None = None) -> NDArray[Any]:
    """Add to a picture (H, W, C), or labels (H, W), below and to the right what it lacks of ``size`` (height, width).

    Args:
        image: returned as it is where it is large enough.
        size: in pixels.
        fill: value of what is added; None: the nearest pixel of the picture.
    """
    missing = [(0, max(0, side - has)) for side, has in zip(size, image.shape[:2], strict=True)]
    if missing == [(0, 0), (0, 0)]:
        return image
    missing += [(0, 0)] * (image.ndim - 2)
    return np.pad(image, missing, "edge") if fill is None else np.pad(image, missing, constant_values=fill)


@dataclass(frozen=True)
class _Span:
    """Where a tile lies along an axis.

    Attributes:
        start: first pixel.
        stop: that after the last.
        finished: where the next tile starts; after the last one, its stop.
        weights: (tile,) of its pixels.
    """

    start: int
    stop: int
    finished: int
    weights: NDArray[np.float32]


def _spans(length: int, tile: int, overlap: float) -> list[_Span]:
    """Return where tiles lie along an axis; at each pixel their weights add up to 1."""
    positions = tile_positions(length, tile, overlap)
    deviations = (np.arange(tile) - (tile - 1) / 2) / (tile / 8)
    window = np.exp(-0.5 * deviations**2)  # 3e-4 at the edges, never 0: some pixels lie at the edge of all their tiles
    total = np.zeros(max(length, tile))
    for start in positions:
        total[start : start + tile] += window
    following = [*positions[1:], positions[-1] + tile]
    return [
        _Span(start, start + tile, after, (window / total[start : start + tile]).astype(np.float32))
        for start, after in zip(positions, following, strict=True)
    ]


def _tiles(read_rows: ReadRows, size: tuple[int, int], rows: list[_Span], columns: list[_Span]) -> Iterator[Image]:
    tile = (rows[0].stop, columns[0].stop)
    for row in rows:
        strip = pad_to(read_rows(row.start, min(row.stop, size[0])), tile)
        for column in columns:
            yield strip[:, column.start : column.stop]


def _run_in_batches(tiles: Iterable[Image], run: RunTiles, batch: int) -> Iterator[NDArray[np.float32]]:
    waiting: list[Image] = []
    for tile in tiles:
        waiting.append(tile)
        if len(waiting) == batch:
            yield from run(waiting)
            waiting = []
    if waiting:
        yield from run(waiting)
