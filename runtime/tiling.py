"""From a picture to a network's logits: in one piece, or in tiles that overlap and are blended.

The trainer's validation, the comparison at export and the runtime all take this way.

Tiles lie on a grid, and so does their weighting: the weight of a tile at a pixel is the product of a weight of its row
and one of its column, and each adds up to 1 over the tiles that meet there. So nothing is divided in the end, and what
lies above the next row of tiles is finished.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Image

Run = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps what the graph takes of one picture, (1, C, h, w) or (1, h, w, C), to what it returns: (K, h, w) or (h, w)."""

PreparedPicture = Callable[[Run], NDArray[Any]]
"""A picture that is ready for the network: called with what runs it, returns what it says of the picture."""


def logits_of_picture(card: ModelCard, image: Image, run: Run) -> NDArray[np.float32]:
    """Return what a network says of a picture.

    Args:
        card: the network's.
        image: in the card's form, (H, W, C).
        run: runs the network.

    Returns:
        Logits (K, h, w), float32: of the network's size, or of the picture's own where the card has a tile overlap.
    """
    return prepare(card, image)(run)


def prepare(card: ModelCard, image: Image) -> PreparedPicture:
    """Do of :func:`logits_of_picture` what can be done before the network is free."""
    form, overlap = card.preprocess, card.tile_overlap
    if overlap is None:
        batch = whole_input(card, image)
        return lambda run: run(batch)
    # Each tile is normalised on its own, as each part was in training, and just before it is needed: prepared together,
    # tiles would take up several times the picture's memory.
    return lambda run: tiled_logits(
        image, lambda tile: run(graph_input(card, tile)), num_logits=card.num_logits, tile=form.size, overlap=overlap
    )


def whole_input(card: ModelCard, image: Image) -> NDArray[Any]:
    """Bring a picture (H, W, C) in one piece into the form that the graph takes, (1, C, h, w) or (1, h, w, C)."""
    return graph_input(card, image if card.frame else card.preprocess.geometry(image))


def graph_input(card: ModelCard, image: Image) -> NDArray[Any]:
    """Bring a picture (h, w, C) of the size that the graph takes into the form that it takes."""
    return np.ascontiguousarray(image)[None] if card.input_form == "pixels" else card.preprocess.normalise(image)


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
