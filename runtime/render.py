"""Pictures of labels: colour maps, overlays and palette masks."""

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.files import replacing
from segship.runtime.labels import Labels
from segship.runtime.palettes import VOID_COLOR
from segship.runtime.preprocess import Image

RgbImage = NDArray[np.uint8]
"""(H, W, 3) uint8, red, green, blue."""

DEFAULT_ALPHA: Final = 0.5


def palette_table(card: ModelCard) -> NDArray[np.uint8]:
    """Return the colours of all ids that labels of this card can hold, (256 or 65536, 3); the rest is black."""
    table = np.full((256 if card.num_classes <= 256 else 65536, 3), VOID_COLOR, np.uint8)
    table[: card.num_classes] = card.palette
    return table


def color_image(labels: Labels, card: ModelCard) -> RgbImage:
    """Paint labels (H, W) in the card's colours; the ignore index is black."""
    table = palette_table(card)
    if labels.dtype == np.uint8 and len(table) == 256:
        return np.asarray(cv2.applyColorMap(labels, table.reshape(256, 1, 3)), np.uint8)  # five times np.take's speed
    return np.take(table, labels, axis=0)


def overlay_image(image: Image, labels: Labels, card: ModelCard, alpha: float = DEFAULT_ALPHA) -> RgbImage:
    """Lay the colours over the picture.

    Args:
        image: (H, W, 1 or 3), uint8 or uint16.
        labels: (H, W).
        card: gives the colours.
        alpha: opacity of the colours, 0…1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected 0…1")
    return np.asarray(cv2.addWeighted(color_image(labels, card), alpha, displayable(image), 1 - alpha, 0), np.uint8)


def displayable(image: Image) -> RgbImage:
    """Return a picture (H, W, 1 or 3) as a screen shows it: 8-bit RGB. A 16-bit one is stretched over its range."""
    if image.dtype == np.uint16:
        low, high = int(image.min()), int(image.max())
        image = ((image.astype(np.float32) - low) * (255 / max(high - low, 1)) + 0.5).astype(np.uint8)
    return np.asarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image, np.uint8)


def write_mask(path: Path, labels: Labels, card: ModelCard) -> None:
    """Write labels as PNG: a viewer shows the card's colours, a program reads ids. Above 256 classes: 16-bit grey."""
    mask = PillowImage.fromarray(labels)
    if labels.dtype == np.uint8:
        mask.putpalette(palette_table(card)[:256].tobytes())
    with replacing(path) as temporary:
        mask.save(temporary, compress_level=3)


def write_rgb(path: Path, image: RgbImage) -> None:
    """Write a picture (H, W, 3) as PNG."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())  # cv2.imwrite says True of a file that the disk had no room for


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
