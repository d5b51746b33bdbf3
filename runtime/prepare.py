"""From a picture to a network's logits: one definition for training's validation, parity, calibration and runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.graph_layout import of_picture
from segship.runtime.labels import upscale
from segship.runtime.preprocess import Image
from segship.runtime.tiling import tiled_logits

Run = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps the input of N pictures, (N, C, h, w) or (N, h, w, C), to what the network says: (N, K, h, w) or (N, h, w)."""


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes:
        size: (height, width) of a tile, in pixels of the picture.
        overlap: share of a tile that the next one covers too, 0…0.9.
        batch: tiles that the graph gets at once.
    """

    size: tuple[int, int]
    overlap: float
    batch: int = 1


@dataclass(frozen=True)
class WholePicture:
    """A picture that goes through the network in one piece.

    Attributes:
        batch: what the graph takes of it, (1, C, h, w) or (1, h, w, C).
        card: of the network.
        shape: of the picture, (H, W).
    """

    batch: NDArray[Any]
    card: ModelCard
    shape: tuple[int, int]

    def __call__(self, run: Run) -> NDArray[Any]:
        """Run the network; return what it says of the picture, (K, h, w) or (h, w)."""
        return self.of_output(run(self.batch)[0])

    def of_output(self, output: NDArray[Any]) -> NDArray[Any]:
        """Cut what the network says of the picture, (K, h, w) or (h, w), out of what it says of its whole map."""
        return of_picture(output, self.card, self.shape)


@dataclass(frozen=True)
class TiledPicture:
    """A picture that goes through the network in tiles.

    Each tile is normalised on its own, as each part was in training, and just before it is needed: prepared together,
    tiles would take up several times the picture's memory.
    """

    image: Image
    card: ModelCard
    tiling: Tiling

    def __call__(self, run: Run) -> NDArray[np.float32]:
        """Run the network on the tiles; return logits of the picture's size, (K, H, W)."""
        return tiled_logits(
            self.image,
            lambda tiles: logits_of_tiles(self.card, tiles, run),
            num_logits=self.card.num_logits,
            tile=self.tiling.size,
            overlap=self.tiling.overlap,
            batch=self.tiling.batch,
        )


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


def prepare(card: ModelCard, image: Image) -> WholePicture | TiledPicture:
    """Do of :func:`logits_of_picture` what can be done before the network is free."""
    if card.tile_overlap is not None:
        return TiledPicture(image, card, Tiling(card.preprocess.size, card.tile_overlap))
    return whole_picture(card, image)


def whole_picture(card: ModelCard, image: Image) -> WholePicture:
    """Bring a picture (H, W, C) in one piece into the form that the graph takes."""
    resized = image if card.frame is not None else card.preprocess.geometry(image)
    return WholePicture(graph_input(card, resized), card, (image.shape[0], image.shape[1]))


def logits_of_tiles(card: ModelCard, tiles: Sequence[Image], run: Run) -> NDArray[np.float32]:
    """Return logits (N, K, h, w), of the tiles' own size, of N tiles (h, w, C).

    Tiles of the network's size are what it takes; others are brought to it as pictures are, and their logits back.
    """
    size = (tiles[0].shape[0], tiles[0].shape[1])
    if size == card.preprocess.size and card.output_stride == 1:
        return run(np.concatenate([graph_input(card, tile) for tile in tiles]))
    pictures = [whole_picture(card, tile) for tile in tiles]
    outputs = run(np.concatenate([picture.batch for picture in pictures]))
    return np.stack(
        [
            np.stack([upscale(np.ascontiguousarray(plane), size) for plane in picture.of_output(output)])
            for picture, output in zip(pictures, outputs, strict=True)
        ]
    )


def graph_input(card: ModelCard, image: Image) -> NDArray[Any]:
    """Bring a picture (h, w, C) of the size that the graph takes into the form that it takes."""
    return np.ascontiguousarray(image)[None] if card.input_form == "pixels" else card.preprocess.normalise(image)
