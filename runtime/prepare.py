"""From a picture to a network's logits: one definition for training's validation, parity, calibration and runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Image
from segship.runtime.tiling import tiled_logits

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
