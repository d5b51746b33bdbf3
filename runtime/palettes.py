"""Class names and colours: the one place that knows them.

Colours are (red, green, blue), 0…255. A :class:`ClassTable` lists the classes in the order of their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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

CITYSCAPES: Final = ClassTable.of(
    [
        ("road", (128, 64, 128)),
        ("sidewalk", (244, 35, 232)),
        ("building", (70, 70, 70)),
        ("wall", (102, 102, 156)),
        ("fence", (190, 153, 153)),
        ("pole", (153, 153, 153)),
        ("traffic light", (250, 170, 30)),
        ("traffic sign", (220, 220, 0)),
        ("vegetation", (107, 142, 35)),
        ("terrain", (152, 251, 152)),
        ("sky", (70, 130, 180)),
        ("person", (220, 20, 60)),
        ("rider", (255, 0, 0)),
        ("car", (0, 0, 142)),
        ("truck", (0, 0, 70)),
        ("bus", (0, 60, 100)),
        ("train", (0, 80, 100)),
        ("motorcycle", (0, 0, 230)),
        ("bicycle", (119, 11, 32)),
    ]
)
"""The 19 classes of Cityscapes that are trained and judged (Cordts et al., CVPR 2016), by their train ids."""

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


def parse_hex(text: str) -> Color:
    """Return the colour of six hexadecimal digits, ``rrggbb``.

    Raises:
        ValueError: if they are not.
    """
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


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
_ADE20K_NAMES: Final = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle",
    "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake",
    "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)
_ADE20K_COLORS: Final = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
    8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
    ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
    8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
    00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
    ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
    00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
    5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
    0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
    b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""  # six hexadecimal digits each
# fmt: on

VOC: Final = ClassTable(_VOC_NAMES, voc_colors(len(_VOC_NAMES)))
"""Background and the 20 classes of Pascal VOC (Everingham et al., IJCV 2010)."""

VOC_VOID_COLOR: Final[Color] = (224, 224, 192)
"""Colour of void, id 255, in Pascal VOC's masks."""

NYU40: Final = ClassTable(_NYU40_NAMES, voc_colors(len(_NYU40_NAMES)))
"""Unlabelled and the 40 classes of NYU Depth v2 (Gupta et al., CVPR 2013), in Pascal VOC's order of colours."""

ADE20K: Final = ClassTable(_ADE20K_NAMES, tuple(parse_hex(text) for text in _ADE20K_COLORS.split()))
"""The 150 classes of ADE20K's scene parsing benchmark (Zhou et al., IJCV 2019), in short names."""

PALETTES: Final = {"voc": VOC, "camvid": CAMVID, "nyu40": NYU40, "cityscapes": CITYSCAPES, "ade20k": ADE20K}
"""Classes and colours of datasets, by name."""

_LEVELS: Final = (0, 36, 73, 109, 146, 182, 219, 255)
MAX_DISTINCT_COLORS: Final = 65535


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return colours far from each other and from black, always the same; fewer of them are the first of more.

    The first 511 lie as far apart as a grid of eight levels a channel allows; the others are only all different, spread
    evenly by Roberts' sequence ("The unreasonable effectiveness of quasirandom sequences", 2018).

    Args:
        count: up to ``MAX_DISTINCT_COLORS``.
    """
    if not 0 <= count <= MAX_DISTINCT_COLORS:
        raise ValueError(f"{count} distinct colours were asked for; expected 0…{MAX_DISTINCT_COLORS}")
    grid = np.array([(red, green, blue) for red in _LEVELS for green in _LEVELS for blue in _LEVELS])
    chosen = [0]  # black, which is not among those returned
    distances = np.full(len(grid), np.iinfo(np.int64).max)
    for _ in range(min(count, len(grid) - 1)):  # each time the one that is farthest from those chosen
        np.minimum(distances, ((grid - grid[chosen[-1]]) ** 2).sum(axis=1), out=distances)
        chosen.append(int(distances.argmax()))
    colors = grid[chosen[1:]] if count < len(grid) else np.vstack([grid[chosen[1:]], _more_colors(count, grid)])
    return tuple((red, green, blue) for red, green, blue in colors[:count].tolist())


def _more_colors(count: int, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at least ``count`` colours, all different, none of which is taken."""
    ratio = 1.2207440846057596  # the root of x⁴ = x + 1, which makes the sequence even in three dimensions
    steps = ratio ** -np.arange(1.0, 4.0)
    fractions = np.arange(1, count + count // 50 + 1)[:, None] * steps % 1  # 2 % more, as some fall on one colour
    colors = np.vstack([taken, np.floor(fractions * 256).astype(np.int64)])
    first = np.unique(colors @ [1 << 16, 1 << 8, 1], return_index=True)[1]
    return np.asarray(colors[np.sort(first)][len(taken) :])
