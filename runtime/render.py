"""Pictures of labels: colour maps, overlays and palette masks."""

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.files import replacing
from segship.runtime.labels import Labels
from segship.runtime.palettes import VOID_COLOR
from segship.runtime.png import encode_png
from segship.runtime.preprocess import Image

RgbImage = NDArray[np.uint8]
"""(H, W, 3) uint8, red, green, blue."""

DEFAULT_ALPHA: Final = 0.5


def palette_table(card: ModelCard, size: int = 256) -> NDArray[np.uint8]:
    """Return the colours of the ids 0…size−1, (size, 3); those of no class are black."""
    table = np.full((max(size, card.num_classes), 3), VOID_COLOR, np.uint8)
    table[: card.num_classes] = card.palette
    return table[:size]


def color_image(labels: Labels, card: ModelCard) -> RgbImage:
    """Paint labels (H, W) in the card's colours; what is of no class is black."""
    if labels.dtype == np.uint8:  # five times np.take's speed
        return np.asarray(cv2.applyColorMap(labels, palette_table(card).reshape(256, 1, 3)), np.uint8)
    return np.take(palette_table(card, 65536), labels, axis=0)


def overlay_image(image: Image, labels: Labels, card: ModelCard, alpha: float = DEFAULT_ALPHA) -> RgbImage:
    """Lay the colours over the picture; where labels are of no class, it stays as it is.

    Args:
        image: (H, W, 1 or 3), uint8 or uint16.
        labels: (H, W).
        card: gives the colours.
        alpha: opacity of the colours, 0…1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected 0…1")
    shown = displayable(image)
    mixed = cv2.addWeighted(color_image(labels, card), alpha, shown, 1 - alpha, 0)
    if labels.max(initial=0) >= card.num_classes:
        cv2.copyTo(shown, np.asarray(labels >= card.num_classes).view(np.uint8), mixed)
    return np.asarray(mixed, np.uint8)


def side_by_side_image(image: Image, labels: Labels, card: ModelCard) -> RgbImage:
    """Put the colours to the right of the picture, (H, 2 · W, 3)."""
    return np.hstack([displayable(image), color_image(labels, card)])


def cutout_image(image: Image, opacity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture with ``opacity`` (H, W) as its alpha channel, (H, W, 4).

    Colours are not multiplied by it. Where it is 0 they are black, so that nothing of what was cut away is in the file.
    """
    cutout = np.dstack([displayable(image), opacity])
    cutout[opacity == 0] = 0
    return cutout


def displayable(image: Image) -> RgbImage:
    """Return a picture (H, W, 1 or 3) as a screen shows it: 8-bit RGB. A 16-bit one is stretched over its range."""
    if image.dtype == np.uint16:
        low, high = int(image.min()), int(image.max())
        image = ((image.astype(np.float32) - low) * (255 / max(high - low, 1)) + 0.5).astype(np.uint8)
    return np.asarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image, np.uint8)


def encode_mask(labels: Labels, card: ModelCard) -> bytes:
    """Return labels as PNG: a viewer shows the card's colours, a program reads ids. Of type uint16: 16-bit grey."""
    return encode_png(labels, palette=palette_table(card) if labels.dtype == np.uint8 else None)


def write_mask(path: Path, labels: Labels, card: ModelCard) -> None:
    """Write labels as the PNG of :func:`encode_mask`."""
    _write(path, encode_mask(labels, card))


def write_rgb(path: Path, image: RgbImage) -> None:
    """Write a picture (H, W, 3) as PNG."""
    write_pixels(path, image)


def write_pixels(path: Path, pixels: NDArray[Any]) -> None:
    """Write pixels as PNG: (H, W) grey, uint8 or uint16; (H, W, 3 or 4) red, green, blue and opacity, uint8."""
    _write(path, encode_png(pixels))


def _write(path: Path, encoded: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)


def contact_sheet(rows: list[list[RgbImage]], titles: list[str], *, cell_height_px: int = 180) -> RgbImage:
    """Put pictures side by side under titles, one row a sample.

    Args:
        rows: each a list of pictures of one size, as many as there are titles.
        titles: of the columns.
        cell_height_px: height of a row.
    """
    gap, title_height = 4, 24
    lines = [np.hstack([_cell(picture, cell_height_px, gap) for picture in row]) for row in rows]
    width = max(line.shape[1] for line in lines)
    sheet = np.vstack(
        [np.pad(line, ((0, gap), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    )
    header = np.full((title_height, width, 3), 255, np.uint8)
    left = 0
    for title, picture in zip(titles, rows[0], strict=True):
        cv2.putText(header, title, (left + 2, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        left += round(picture.shape[1] * cell_height_px / picture.shape[0]) + gap
    return np.asarray(np.vstack([header, sheet]), np.uint8)


def _cell(picture: RgbImage, height_px: int, gap: int) -> NDArray[Any]:
    width_px = round(picture.shape[1] * height_px / picture.shape[0])
    shrinks = height_px < picture.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    cell = cv2.resize(picture, (width_px, height_px), interpolation=interpolation)
    return np.pad(cell, ((0, 0), (0, gap), (0, 0)), constant_values=255)
