"""A picture cut into tiles that overlap, and what the network says of them blended.

Tiles lie on a grid, and so does their weighting: the weight of a tile at a pixel is the product of a weight of its row
and one of its column, and each adds up to 1 over the tiles that meet there. So nothing is divided in the end, and what
lies above the next row of tiles is finished.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.preprocess import Image


def tiled_logits(
    image: Image,
    run: Callable[[Image], NDArray[np.float32]],
    *,
    num_logits: int,
    tile: tuple[int, int],
    overlap: float,
) -> NDArray[np.float32]:
    """Run a network on the tiles of a picture and blend what it returns.

    Of a tile the middle counts more than the edge, where the network sees less of the surroundings: weights are
    Gaussian, with a standard deviation of an eighth of the tile's side, as in Isensee et al., "nnU-Net", 2021.

    Args:
        image: (H, W, C). One that is smaller than a tile is padded, and its logits are cropped.
        run: maps a tile (h, w, C) to logits (K, h, w).
        num_logits: K.
        tile: (h, w).
        overlap: share of a tile that the next one covers too, 0…0.9; at the picture's lower and right edge more.

    Returns:
        Logits (K, H, W), float32.
    """
    height, width = image.shape[:2]
    padded = pad_to(image, tile)
    columns = _weighted_positions(padded.shape[1], tile[1], overlap)
    logits = np.zeros((num_logits, *padded.shape[:2]), np.float32)
    for top, row_weights in _weighted_positions(padded.shape[0], tile[0], overlap):
        strip = np.zeros((num_logits, tile[0], padded.shape[1]), np.float32)
        for left, column_weights in columns:
            right = left + tile[1]
            strip[:, :, left:right] += run(padded[top : top + tile[0], left:right]) * column_weights
        logits[:, top : top + tile[0]] += strip * row_weights[:, None]
    return np.ascontiguousarray(logits[:, :height, :width])


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


def _weighted_positions(length: int, tile: int, overlap: float) -> list[tuple[int, NDArray[np.float32]]]:
    """Return where tiles start along an axis, and the weights (tile,) of each; at each pixel these add up to 1."""
    positions = tile_positions(length, tile, overlap)
    deviations = (np.arange(tile) - (tile - 1) / 2) / (tile / 8)
    window = np.exp(-0.5 * deviations**2)  # 3e-4 at the edges, never 0: some pixels lie at the edge of all their tiles
    total = np.zeros(length)
    for start in positions:
        total[start : start + tile] += window
    return [(start, (window / total[start : start + tile]).astype(np.float32)) for start in positions]
