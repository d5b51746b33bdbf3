"""Where two masks differ, drawn: the picture, both masks, and the pixels that have another label."""

import math
from typing import Final

import cv2
import numpy as np

from segship.runtime.compare import Expected
from segship.runtime.labels import labels_from_logits, resize_labels
from segship.runtime.render import RgbImage, color_image, contact_sheet, displayable
from segship.runtime.result import Result

_DIFFERENT: Final = (255, 0, 0)
_TITLES: Final = ["picture", "expected", "found", "different"]
_MAX_HEIGHT_PX: Final = 480


def comparison_image(expected: Expected, result: Result) -> RgbImage:
    """Draw what was expected of a picture beside what an engine says of it.

    Args:
        expected: what a reference says of the picture.
        result: what the engine does.

    Returns:
        Four pictures side by side; the last one is the picture in pale, and red round the pixels whose labels differ.
    """
    size = (result.labels.shape[0], result.labels.shape[1])
    if expected.logits is None or result.logits is None:
        labels = resize_labels(expected.labels, size)
    else:
        labels = labels_from_logits(expected.logits, size, result.card)
    picture = displayable(result.image)
    pale = (255 - (255 - picture.mean(axis=2, keepdims=True)) / 3).astype(np.uint8).repeat(3, axis=2)
    spot = 1 + 2 * math.ceil(size[0] / _MAX_HEIGHT_PX)  # so that a single pixel is seen, in a smaller drawing too
    different = cv2.dilate((labels != result.labels).astype(np.uint8), np.ones((spot, spot), np.uint8))
    pale[different.astype(bool)] = _DIFFERENT
    row = [picture, color_image(labels, result.card), color_image(result.labels, result.card), pale]
    return contact_sheet([row], _TITLES, cell_height_px=min(max(size[0], 120), _MAX_HEIGHT_PX))
