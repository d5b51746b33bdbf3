"""A legend of classes below a picture."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from segship.runtime.card import ModelCard
from segship.runtime.labels import Labels
from segship.runtime.palettes import Color
from segship.runtime.render import RgbImage

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

MIN_TEXT_PX: Final = 14
_PICTURE_TO_TEXT: Final = 36  # shorter side of a picture to the size of its text


def with_legend(picture: RgbImage, card: ModelCard, ids: Sequence[int]) -> RgbImage:
    """Return a picture (H, W, 3) with a legend below it, which hides nothing: the picture keeps its place, top left.

    Text grows with the picture, and is ``MIN_TEXT_PX`` high at least. The result is as wide as the picture, or as the
    longest entry where that is wider, and as high as the legend asks for; for one size of picture and the same ids it
    always has the same size, so that frames of a video have, too.

    Args:
        picture: RGB.
        card: gives names and colours. Letters that Pillow's own font lacks appear as boxes.
        ids: of the classes to list, in this order; none: the picture as it is.
    """
    if not ids:
        return picture
    height, width = picture.shape[:2]
    entries = tuple((card.class_names[class_id], card.palette[class_id]) for class_id in ids)
    strip = _legend(entries, width, max(MIN_TEXT_PX, round(min(height, width) / _PICTURE_TO_TEXT)))
    wide = cv2.copyMakeBorder(picture, 0, 0, 0, strip.shape[1] - width, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.vstack([wide, strip])


def ids_by_area(labels: Labels, card: ModelCard) -> list[int]:
    """Return the classes that occur in labels (H, W), those of the largest area first."""
    counts = np.bincount(labels.ravel(), minlength=card.num_classes)[: card.num_classes]
    order = np.argsort(-counts, kind="stable")
    return [int(class_id) for class_id in order if counts[class_id]]


@functools.lru_cache(maxsize=32)  # frames of a video have the same legend
def _legend(entries: tuple[tuple[str, Color], ...], width_px: int, text_px: int) -> RgbImage:
    """Draw swatches with names in rows that fit the width, black on white."""
    from PIL import Image, ImageDraw, ImageFont

    font, gap = ImageFont.load_default(text_px), text_px // 2
    places, width = _places([_text_width(font, name) for name, _ in entries], width_px, text_px)
    line = text_px * 3 // 2
    strip = Image.new("RGB", (width, (places[-1][1] + 1) * line + gap), "white")
    draw = ImageDraw.Draw(strip)
    for (name, color), (left, row) in zip(entries, places, strict=True):
        top = gap + row * line
        draw.rectangle((left, top, left + text_px, top + text_px), fill=color, outline="black")
        draw.text((left + text_px + gap, top + text_px / 2), _one_line(name), "black", font, anchor="lm")
    return np.asarray(strip)


def _places(text_widths: Sequence[int], width_px: int, text_px: int) -> tuple[list[tuple[int, int]], int]:
    """Return left side and row of each entry, and the width that they need."""
    gap = text_px // 2
    places, left, row = [], gap, 0
    for text_width in text_widths:
        needs = text_px + gap + text_width
        if left > gap and left + needs + gap > width_px:
            left, row = gap, row + 1
        places.append((left, row))
        left += needs + 2 * gap
    widest = max(text_widths, default=0) + text_px + 3 * gap
    return places, max(width_px, widest)


def _text_width(font: "FreeTypeFont | ImageFont", name: str) -> int:
    return int(font.getlength(_one_line(name))) + 1


def _one_line(name: str) -> str:
    return " ".join(name.split())
