"""Reading masks exactly: ids as they are, colours by a table that knows every colour."""

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import ClassTable, Color
from segship.training.data import IGNORE_INDEX

UNLISTED: Final = -1

NO_TEXT: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, halves of characters, and ends of lines and paragraphs."""


@dataclass(frozen=True)
class MaskReader:
    """Reads the file of a mask as class ids and the ignore index, (H, W) uint8.

    Attributes:
        ids: of grey and palette files: the class id, or the ignore index, of each stored id 0, 1, …; a stored 255 is
            the ignore index anyway. None: such files are refused.
        colors: of RGB files. None: they are refused.
        palette_by_color: palette files are read by their colours instead of by their indices.
        one_bit: 1-bit files are read, as grey ones of 0 and 255.

    Raises:
        DatasetError: when called, if the file is missing, damaged, or holds something else than that.
    """

    ids: tuple[int, ...] | None = None
    colors: "ColorTable | None" = None
    palette_by_color: bool = False
    one_bit: bool = False

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Read the mask at ``path``."""
        mask = read_mask(path, palette_by_color=self.palette_by_color, one_bit=self.one_bit)
        if mask.ndim == 3:
            if self.colors is None:
                expected = f"; expected grey values 0…{len(self.ids) - 1}" if self.ids else ""
                raise DatasetError(f"{path}: a colour mask among index masks{expected}")
            return self.colors.decode(mask, path)
        if self.ids is None:
            raise DatasetError(f"{path}: a grey or palette mask among colour masks; expected RGB")
        check_ids(mask, len(self.ids), IGNORE_INDEX, path)
        table = np.array([*self.ids, *[IGNORE_INDEX] * (256 - len(self.ids))], np.uint8)
        return np.asarray(table[mask])


def renumber(classes: ClassTable, ignore: Collection[int]) -> tuple[ClassTable, tuple[int, ...]]:
    """Take classes out; those that remain keep their order, and are numbered 0…C−1 anew.

    Args:
        classes: in the order of the ids that are stored.
        ignore: stored ids that are void.

    Returns:
        The remaining classes, and for each stored id its new one, or the ignore index.

    Raises:
        DatasetError: if ``ignore`` names an id that is none of a class, or the classes that remain are none or too
            many for the ignore index.
    """
    last = len(classes) - 1
    if strange := sorted(set(ignore) - set(range(len(classes)))):
        raise DatasetError(f"--ignore {strange[0]} is no class id of this dataset; its class ids are 0…{last}")
    kept = [class_id for class_id in range(len(classes)) if class_id not in ignore]
    if not 0 < len(kept) <= IGNORE_INDEX:
        raise DatasetError(f"{len(kept)} of {len(classes)} classes are left besides void; expected 1…{IGNORE_INDEX}")
    new_ids = {old: new for new, old in enumerate(kept)}
    remaining = ClassTable.of([(classes.names[old], classes.palette[old]) for old in kept])
    return remaining, tuple(new_ids.get(old, IGNORE_INDEX) for old in range(len(classes)))


def check_classes(classes: ClassTable, origin: Path) -> ClassTable:
    """Refuse classes that cannot be told apart, or whose names are not one line of text each.

    Args:
        classes: those of a dataset's table, returned as they are.
        origin: the file that lists them, for messages.

    Raises:
        DatasetError: naming the file, and the name that is none.
    """
    if len(set(classes.names)) < len(classes) or len(set(classes.palette)) < len(classes):
        raise DatasetError(f"{origin}: a name or a colour stands twice; each class needs its own")
    for name in classes.names:
        if not name or any(unicodedata.category(character) in NO_TEXT for character in name):
            raise DatasetError(f"{origin}: {name[:60]!a} is no name of a class; expected one line of text")
    return classes


class ColorTable:
    """Decodes colour masks by a table over all 2²⁴ colours, so that decoding is exact and one look-up.

    Args:
        ids: what each colour means: a class id, or the ignore index.
        advice: what to do about a colour that is not among them.
    """

    def __init__(self, ids: Mapping[Color, int], *, advice: str = "add it to the table of classes") -> None:
        self._advice = advice
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
                + f"; {self._advice}, or save the mask without smoothing and as PNG"
            )
        decoded: NDArray[np.uint8] = ids.astype(np.uint8)
        return decoded


def read_mask(path: Path, *, palette_by_color: bool = False, one_bit: bool = False) -> NDArray[Any]:
    """Read a mask file as it is stored.

    Args:
        path: of the file.
        palette_by_color: palette files give their colours instead of their indices.
        one_bit: 1-bit files are read, as grey ones of 0 and 255. Where 255 is void, they are no masks.

    Returns:
        (H, W) of ids for grey and palette files, (H, W, 3) of colours for RGB files.

    Raises:
        DatasetError: if the file is missing or damaged, of another kind, or its colours are partly transparent.
    """
    try:
        with PillowImage.open(path) as image:
            if image.mode == "L" or (image.mode == "P" and not palette_by_color):
                return np.asarray(image)
            if image.mode == "1" and one_bit:
                return np.asarray(image.convert("L"))
            if image.mode in ("P", "RGB", "RGBA"):
                return _opaque_colors(image, path)
            mode = image.mode
    except UnidentifiedImageError:
        raise DatasetError(f"{path}: the mask is no picture that can be read") from None
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise DatasetError(f"{path}: the mask cannot be read ({error})") from error
    raise DatasetError(f"{path}: the mask has mode {mode}; expected 8-bit grey, palette or RGB")


def _opaque_colors(image: PillowImage.Image, path: Path) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3); what shows through has none that could be a class."""
    if image.mode != "RGBA" and "transparency" not in image.info:
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA"))
    if transparent := int((pixels[..., 3] != 255).sum()):
        raise DatasetError(f"{path}: the mask is transparent in {transparent} pixels; save it as RGB without alpha")
    return pixels[..., :3]


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
