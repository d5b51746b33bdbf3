"""Photos of bags with black and white masks, as in a well-known tutorial on FCN, and whatever else has such masks.

The folder holds the pictures in one folder and the masks in another: ``NAME/`` and ``NAME_msk/``, ``NAME_mask/`` or
``NAME_masks/``, or ``images/`` and ``masks/``. Masks may be stored as JPEG: what is brighter than half counts as white.

The bags are black in their masks, while most other masks show things in white. So the edges of the pictures decide:
where nearly all of them are white, as with the bags, white is the background, and otherwise black is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import ClassTable
from segship.training.data import DataOptions, Split, spread_evenly
from segship.training.data.pairs import Pairs, count_held_out, pair_by_name, read_picture
from segship.training.data.parallel import in_parallel

CLASSES: Final = ClassTable.of([("background", (0, 0, 0)), ("bag", (244, 196, 48))])
MASK_FOLDER_ENDINGS: Final = ("_msk", "_mask", "_masks")

DARKEST_GREY: Final = 64
BRIGHTEST_GREY: Final = 192
MOST_GREY: Final = 0.05
"""Share of a mask that may be neither black nor white; soft edges and JPEG make at most 0.012 of it in the bags."""

WHITE_EDGES: Final = 0.8
"""Share of white along the edges of the pictures above which white is the background; it is 0.986 in the bags."""
EDGES_LOOKED_AT: Final = 100


@dataclass(frozen=True)
class BlackAndWhite:
    """Reads the file of a black and white mask as ids (H, W), uint8.

    Attributes:
        white: the id of what is white, 0 or 1; black is the other one.

    Raises:
        DatasetError: when called, if the file cannot be read, or is not black and white.
    """

    white: int

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Read the mask at ``path``."""
        mask = read_picture(path, channels=3, depth="uint8")
        grey = 1 - _share(mask, 0, DARKEST_GREY - 1) - _share(mask, BRIGHTEST_GREY + 1, 255)
        if grey > MOST_GREY:
            raise DatasetError(
                f"{path}: {grey:.0%} of the mask is neither black nor white; expected nothing else "
                "(folder:DIR reads masks of ids and of colours)"
            )
        if 0 < (brightest := int(mask.max())) < DARKEST_GREY:
            raise DatasetError(
                f"{path}: the brightest value of the mask is {brightest}, which is neither black nor white; expected "
                "0 and 255 (folder:DIR reads masks of ids)"
            )
        is_white = cv2.inRange(mask, (128, 128, 128), (255, 255, 255)) > 0
        return np.asarray(is_white == bool(self.white), np.uint8)


def open_bag(place: str, options: DataOptions) -> Split:
    """Open pictures with black and white masks. The last of them, by the numbers in their names, are held out.

    Args:
        place: the folder that holds the two folders.
        options: ``val_fraction`` is the share that is held out.

    Raises:
        DatasetError: if the two folders cannot be told, or pictures and masks do not belong together.
    """
    root = Path(place)
    if not place or not root.is_dir():
        raise DatasetError(f"--data bag:DIR: {place!r} is no folder; expected one that holds pictures and masks")
    images, masks = _find_folders(root)
    pairs = sorted(pair_by_name(images, masks), key=lambda pair: _natural_order(pair[0].as_posix()))
    train_count = len(pairs) - count_held_out(len(pairs), options.val_fraction)
    read = BlackAndWhite(_id_of_white([mask for _, mask in pairs]))
    return Split(Pairs(pairs[:train_count], CLASSES, read), Pairs(pairs[train_count:], CLASSES, read))


def _find_folders(root: Path) -> tuple[Path, Path]:
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    names = [("images", "masks"), *((name, name + ending) for name in folders for ending in MASK_FOLDER_ENDINGS)]
    found = [(images, masks) for images, masks in names if images in folders and masks in folders]
    if len(found) != 1:
        listed = ", ".join(f"{images}/ with {masks}/" for images, masks in found) or "none"
        raise DatasetError(
            f"{root}: expected one folder of pictures with one of masks, NAME/ with NAME_msk/ or images/ with masks/; "
            f"found {listed}"
        )
    images, masks = found[0]
    return folders[images], folders[masks]


def _natural_order(name: str) -> list[str | int]:
    """Return a key that sorts names by the numbers in them: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _id_of_white(masks: Sequence[Path]) -> int:
    chosen = [masks[index] for index in spread_evenly(len(masks), EDGES_LOOKED_AT)]
    shares = [share for share in in_parallel(_white_along_edges, chosen) if share is not None]
    return 0 if shares and sum(shares) / len(shares) > WHITE_EDGES else 1


def _white_along_edges(path: Path) -> float | None:
    try:
        white = BlackAndWhite(white=1)(path)
    except DatasetError:
        return None  # has no say here; what is wrong with it is said when it is read
    return float(np.concatenate([white[0], white[-1], white[:, 0], white[:, -1]]).mean())


def _share(mask: NDArray[np.uint8], darkest: int, brightest: int) -> float:
    """Return the share of the pixels whose channels all lie in a range, bounds included."""
    inside = cv2.inRange(mask, (darkest,) * 3, (brightest,) * 3)
    return float(np.count_nonzero(inside) / inside.size)
