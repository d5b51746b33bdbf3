"""Pictures whose answers changed, drawn: picture, truth, old, new, and where which of them became right or wrong."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from segship.runtime.card import ModelCard
from segship.runtime.labels import Labels
from segship.runtime.legend import with_legend
from segship.runtime.preprocess import Preprocess
from segship.runtime.render import RgbImage, color_image, contact_sheet, displayable
from segship.training.data import IGNORE_INDEX, Sample

_KINDS: Final = ("became right", "became wrong", "wrong in another way")
_COLORS: Final = ((0, 158, 60), (220, 20, 40), (70, 70, 70))
_CELL_WIDTH_PX: Final = 320
_MAX_CELL_HEIGHT_PX: Final = 480
_LONGEST_TITLE: Final = 34
"""Characters above a cell of that width."""


def change_row(sample: Sample, old: Labels, new: Labels, card: ModelCard, titles: Sequence[str]) -> RgbImage:
    """Draw one picture: itself, truth, old, new and the change, side by side under five titles.

    Args:
        sample: the picture with its truth.
        old: labels (H, W) of the old model.
        new: likewise of the new one.
        card: gives the colours. Void is black.
        titles: of the five cells.
    """
    height, width = sample.labels.shape
    picture = displayable(sample.image)
    masks = [color_image(labels, card) for labels in (sample.labels, old, new)]
    shown = [title.encode("ascii", "replace").decode()[:_LONGEST_TITLE] for title in titles]  # all that OpenCV writes
    cell_height = min(max(round(_CELL_WIDTH_PX * height / width), 1), _MAX_CELL_HEIGHT_PX)
    change = _change_image(picture, sample.labels, old, new)
    return contact_sheet([[picture, *masks, change]], shown, cell_height_px=cell_height)


def change_sheet(rows: Sequence[RgbImage], card: ModelCard, ids: Sequence[int]) -> RgbImage:
    """Put rows below each other, and below them what the colours of change and of the classes ``ids`` mean."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    line = np.full((1, width, 3), 255, np.uint8)  # a legend's text grows with the picture that it is put below
    legends = [
        with_legend(line, ModelCard(_KINDS, _COLORS, Preprocess((1, 1))), range(3)),
        with_legend(line, card, ids),
    ]
    widest = max(part.shape[1] for part in legends)
    parts = [
        np.pad(part, ((0, 0), (0, widest - part.shape[1]), (0, 0)), constant_values=255) for part in (*padded, *legends)
    ]
    return np.asarray(np.vstack(parts), np.uint8)


def _change_image(picture: RgbImage, truth: Labels, old: Labels, new: Labels) -> RgbImage:
    """Paint changed pixels over the picture in pale; those without a truth are left out."""
    grey = picture.mean(axis=2, keepdims=True)
    pale: RgbImage = np.repeat((255 - (255 - grey) / 3).astype(np.uint8), 3, axis=2)
    changed = (old != new) & (truth != IGNORE_INDEX)
    right, wrong = changed & (new == truth), changed & (old == truth)
    spot = 2 * (truth.shape[1] // (2 * _CELL_WIDTH_PX)) + 1  # so that a single pixel is seen, in a smaller drawing too
    for number, kind in ((2, changed & ~right & ~wrong), (0, right), (1, wrong)):  # what is worse lies on top
        shown = cv2.dilate(kind.astype(np.uint8), np.ones((spot, spot), np.uint8))
        pale[shown.astype(bool)] = _COLORS[number]
    return pale
