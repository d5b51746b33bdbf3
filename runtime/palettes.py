"""Class names and colours: the one place that knows them.

Colours are (red, green, blue), 0…255. A :class:`ClassTable` lists the classes in the order of their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes 0…C−1, in order."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, Color]]) -> "ClassTable":
        """Build a table from (name, colour) rows."""
        return cls(tuple(name for name, _ in rows), tuple(color for _, color in rows))

    def __len__(self) -> int:
        return len(self.names)


CAMVID: Final = ClassTable.of(
    [
        ("Sky", (128, 128, 128)),
        ("Building", (128, 0, 0)),
        ("Pole", (192, 192, 128)),
        ("Road", (128, 64, 128)),
        ("Pavement", (60, 40, 222)),
        ("Tree", (128, 128, 0)),
        ("SignSymbol", (192, 128, 128)),
        ("Fence", (64, 64, 128)),
        ("Car", (64, 0, 128)),
        ("Pedestrian", (64, 64, 0)),
        ("Bicyclist", (0, 128, 192)),
    ]
)
"""The 11 classes of CamVid as commonly benchmarked (Badrinarayanan et al., SegNet, 2017)."""

CAMVID_PAVEMENT_IN_32_CLASSES: Final[Color] = (0, 0, 192)
"""Pavement's colour in the original 32-class table, which some 12-colour copies kept."""

VOID_COLOR: Final[Color] = (0, 0, 0)
"""Colour of void or unlabelled in CamVid's colour masks, and of the ignore index in our pictures."""

VOID_NAMES: Final = frozenset({"void", "unlabelled", "unlabeled", "ignored", "__ignore__"})
"""Names, in lower case, that mean "no class" in class tables of datasets."""

DEMO: Final = ClassTable.of(
    [
        ("ground", (112, 84, 60)),
        ("brick", (200, 72, 56)),
        ("fabric", (64, 112, 208)),
        ("ball", (244, 196, 48)),
        ("grid", (88, 184, 104)),
        ("wire", (236, 236, 236)),
    ]
)
"""Classes of the built-in drawn dataset."""


def voc_colors(count: int) -> tuple[Color, ...]:
    """Return the colours of ids 0…count−1 in Pascal VOC, up to 256.

    The bits of an id go to red, green, blue, red, … in turn, and fill each channel from its highest bit.
    """
    return tuple(_voc_color(class_id) for class_id in range(count))


def _voc_color(class_id: int) -> Color:
    red, green, blue = (
        sum((class_id >> (3 * step + channel) & 1) << (7 - step) for step in range(3)) for channel in range(3)
    )
    return red, green, blue


# fmt: off
_VOC_NAMES: Final = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
_NYU40_NAMES: Final = (
    "unlabelled", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure",
    "other furniture", "other prop",
)
# fmt: on

VOC: Final = ClassTable(_VOC_NAMES, voc_colors(len(_VOC_NAMES)))
"""Background and the 20 classes of Pascal VOC (Everingham et al., IJCV 2010)."""

VOC_VOID_COLOR: Final[Color] = (224, 224, 192)
"""Colour of void, id 255, in Pascal VOC's masks."""

NYU40: Final = ClassTable(_NYU40_NAMES, voc_colors(len(_NYU40_NAMES)))
"""Unlabelled and the 40 classes of NYU Depth v2 (Gupta et al., CVPR 2013), in Pascal VOC's order of colours."""

_LEVELS: Final = (0, 36, 73, 109, 146, 182, 219, 255)
MAX_DISTINCT_COLORS: Final = len(_LEVELS) ** 3 - 1


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return colours far from each other and from black, always the same; fewer of them are the first of more.

    Args:
        count: up to ``MAX_DISTINCT_COLORS``.
    """
    if not 0 <= count <= MAX_DISTINCT_COLORS:
        raise ValueError(f"{count} distinct colours were asked for; expected 0…{MAX_DISTINCT_COLORS}")
    chosen: list[Color] = [VOID_COLOR]
    distances = {(red, green, blue): 3 * 255**2 for red in _LEVELS for green in _LEVELS for blue in _LEVELS}
    while len(chosen) <= count:  # each time the one that is farthest from those chosen
        last = chosen[-1]
        for color, distance in distances.items():
            distances[color] = min(distance, sum((a - b) ** 2 for a, b in zip(color, last, strict=True)))
        chosen.append(max(distances, key=distances.__getitem__))
    return tuple(chosen[1:])
