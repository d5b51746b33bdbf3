"""Reading masks exactly: ids as they are, colours by a table that knows every colour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import Color

UNLISTED: Final = -1


class ColorTable:
    """Decodes colour masks by a table over all 2²⁴ colours, so that decoding is exact and one look-up.

    Args:
        ids: what each colour means: a class id, or the ignore index.
    """

    def __init__(self, ids: Mapping[Color, int]) -> None:
        self._table = np.full(1 << 24, UNLISTED, np.int16)
        for (red, green, blue), class_id in ids.items():
            self._table[red << 16 | green << 8 | blue] = class_id

    def decode(self, mask: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """Turn a colour mask (H, W, 3) into ids (H, W).

        Raises:
            DatasetError: naming file, colour and number of pixels, if a colour is not in the table.
        """
        wide = mask.astype(np.uint32)
        packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        ids = self._table[packed]
        if (unlisted := ids == UNLISTED).any():
            colors, counts = np.unique(packed[unlisted], return_counts=True)
            worst = int(colors[counts.argmax()])
            color = (worst >> 16, worst >> 8 & 255, worst & 255)
            raise DatasetError(
                f"{path}: colour {color} stands for no class ({int(counts.max())} pixels"
                + (f", and {len(colors) - 1} more such colours)" if len(colors) > 1 else ")")
                + "; add it to class_dict.csv, or save the mask without smoothing and as PNG"
            )
        decoded: NDArray[np.uint8] = ids.astype(np.uint8)
        return decoded


def read_mask(path: Path) -> NDArray[Any]:
    """Read a mask file as it is stored.

    Returns:
        (H, W) of ids for grey and palette files, (H, W, 3) of colours for RGB files.

    Raises:
        DatasetError: if the file is missing or damaged, or of another kind.
    """
    try:
        with PillowImage.open(path) as image:
            if image.mode == "RGBA":
                return np.asarray(image.convert("RGB"))
            if image.mode in ("L", "P", "RGB"):
                return np.asarray(image)
            mode = image.mode
    except UnidentifiedImageError:
        raise DatasetError(f"{path}: the mask is no picture that can be read") from None
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise DatasetError(f"{path}: the mask cannot be read ({error})") from error
    raise DatasetError(f"{path}: the mask has mode {mode}; expected 8-bit grey, palette or RGB")


def check_ids(ids: NDArray[Any], num_classes: int, ignore_index: int, path: Path) -> None:
    """Check that a mask holds class ids and the ignore index only.

    Raises:
        DatasetError: naming the id, how many pixels have it and where the first one is.
    """
    wrong = (ids >= num_classes) & (ids != ignore_index)
    if wrong.any():
        row, column = (int(v) for v in np.argwhere(wrong)[0])
        raise DatasetError(
            f"{path}: label id {int(ids[row, column])} is outside the classes 0…{num_classes - 1} "
            f"({int(wrong.sum())} pixels have such ids, the first at row {row}, column {column})"
        )
