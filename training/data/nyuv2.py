"""NYU Depth v2 (Silberman et al., ECCV 2012) with the 40 classes of Gupta et al. (CVPR 2013), in Pascal VOC's form.

``JPEGImages`` and ``Segmentation_40``: PNGs of ids 0…40 as palette, as grey, or as grey saved in three equal channels.
The lists are in ``ImageSets/Segmentation`` or beside the folders: ``train.txt`` and ``val.txt``, or ``test.txt`` for
want of that. 0 is unlabelled: a class of its own, unless ``--ignore 0`` makes it void; 40 classes remain.
"""

from pathlib import Path
from typing import Final

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import NYU40
from segship.training.data import IGNORE_INDEX, DataOptions, Split
from segship.training.data.masks import ColorTable, MaskReader, renumber
from segship.training.data.pairs import Pair, Pairs, pair_listed, read_names

MASKS: Final = "Segmentation_40"


def open_nyuv2(place: str, options: DataOptions) -> Split:
    """Open NYU Depth v2.

    Args:
        place: the folder that holds ``JPEGImages`` and ``Segmentation_40``.
        options: ``ignore`` takes ids as they are stored; the remaining classes are numbered anew.

    Raises:
        DatasetError: if folders or lists are missing, an entry lacks its picture or its mask, or an id is ignored that
            is none.
    """
    root = Path(place)
    if not place or not root.is_dir():
        raise DatasetError(
            f"--data nyuv2:DIR: {place!r} is no folder; expected one that holds JPEGImages/ and {MASKS}/"
        )
    classes, ids = renumber(NYU40, options.ignore)
    greys = {(grey, grey, grey): class_id for grey, class_id in enumerate(ids)}
    colors = ColorTable(
        greys | {(IGNORE_INDEX,) * 3: IGNORE_INDEX},
        advice=f"take greys (0, 0, 0)…({len(ids) - 1}, {len(ids) - 1}, {len(ids) - 1})",
    )
    read = MaskReader(ids, colors)
    return Split(Pairs(_pairs(root, "train"), classes, read), Pairs(_pairs(root, "val", "test"), classes, read))


def _pairs(root: Path, *lists: str) -> list[Pair]:
    places = [folder / f"{name}.txt" for name in lists for folder in (root / "ImageSets/Segmentation", root)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DatasetError(f"{root} has no list {' or '.join(str(path.relative_to(root)) for path in places)}")
    return pair_listed(read_names(found), root / "JPEGImages", root / MASKS, found)
