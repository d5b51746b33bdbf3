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

VOID_NAMES: Final = frozenset({"void", "unlabelled", "unlabeled"})
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
