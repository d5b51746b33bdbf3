"""What a check of a dataset found: counts, warnings and faults, as values and as text."""

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from segship.runtime.preprocess import Depth


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs in a part.

    Attributes:
        name: of the class.
        pixels: that have it.
        share: of a class: of all pixels that have any; of void: of all pixels. 0…1.
        pictures: that it occurs in.
    """

    name: str
    pixels: int
    share: float
    pictures: int


@dataclass(frozen=True)
class SizeCount:
    """How many pictures of each part have a size in pixels."""

    height: int
    width: int
    train: int
    val: int


@dataclass(frozen=True)
class PartReport:
    """What one part of a dataset holds.

    Attributes:
        pictures: in the part, those with a fault included; nothing else is known of these.
        classes: one entry a class, in the order of their ids.
        void: the pixels that are of no class.
        all_void: names of the pictures that are void all over.
        faults: of each picture that cannot be used, what is wrong with it.
    """

    pictures: int
    classes: tuple[ClassCount, ...]
    void: ClassCount
    all_void: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that never occur."""
        return tuple(count.name for count in self.classes if count.pixels == 0)


@dataclass(frozen=True)
class Duplicate:
    """A picture that is there more than once, pixel for pixel.

    Attributes:
        train: its names in the training part.
        val: its names in the validation part.
        same_labels: whether its labels are the same each time.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    same_labels: bool

    def __str__(self) -> str:
        names = [f"train {name}" for name in self.train] + [f"val {name}" for name in self.val]
        leak = "; validation should only see what training has not" if self.train and self.val else ""
        return f"the same picture: {', '.join(names)}{'' if self.same_labels else ', with different labels'}{leak}"


@dataclass(frozen=True)
class DataReport:
    """What a dataset holds, and what is wrong with it.

    Attributes:
        channels: of the pictures, 1 or 3.
        depth: integer type of the pictures.
        sizes: the ten commonest, the commonest first.
        other_sizes: number of sizes besides these.
        train: the training part.
        val: the validation part.
        duplicates: pictures that are there more than once; first those that are in both parts.
    """

    channels: int
    depth: Depth
    sizes: tuple[SizeCount, ...]
    other_sizes: int
    train: PartReport
    val: PartReport
    duplicates: tuple[Duplicate, ...]

    @property
    def ok(self) -> bool:
        """Whether every picture can be used. Training is possible with warnings, and not with faults."""
        return not self.faults

    @property
    def faults(self) -> tuple[str, ...]:
        """Of each picture that cannot be used, what is wrong with it."""
        return self.train.faults + self.val.faults

    @property
    def warnings(self) -> tuple[str, ...]:
        """What can be trained on, and is hardly meant."""
        lines = [str(duplicate) for duplicate in self.duplicates]
        if self.train.absent:
            lines.append(f"never in the training part, so not to be learned: {', '.join(self.train.absent)}")
        if self.val.absent:
            lines.append(f"never in the validation part, so not to be scored: {', '.join(self.val.absent)}")
        for part, report in (("train", self.train), ("val", self.val)):
            lines += [f"void all over, so of no use: {part} {name}" for name in report.all_void]
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ``ok`` and ``warnings`` included, as plain values that JSON can hold."""
        return {"ok": self.ok, **dataclasses.asdict(self), "warnings": self.warnings}

    def to_text(self) -> str:
        """Return tables of sizes and classes, then each warning and each fault on a line of its own."""
        form = f"{self.depth.removeprefix('uint')}-bit {'RGB' if self.channels == 3 else 'grey'}"
        parts = f"{self.train.pictures} pictures for training, {self.val.pictures} for validation, {form}"
        blocks = [parts, self._sizes_as_text(), self._classes_as_text()]
        for title, lines in (("warnings", self.warnings), ("faults", self.faults)):
            blocks.append("\n  ".join([f"{title}: {len(lines) or 'none'}", *lines]))
        return "\n\n".join(blocks)

    def _sizes_as_text(self) -> str:
        rows = [[f"{size.height}×{size.width}", str(size.train), str(size.val)] for size in self.sizes]
        more = f"\nand {self.other_sizes} other sizes" if self.other_sizes else ""
        return _aligned(["height×width", "train", "val"], rows) + more

    def _classes_as_text(self) -> str:
        counts = zip((*self.train.classes, self.train.void), (*self.val.classes, self.val.void), strict=True)
        rows = [
            [train.name, _percent(train.share), str(train.pictures), _percent(val.share), str(val.pictures)]
            for train, val in counts
        ]
        return _aligned(["class", "train: pixels", "pictures", "val: pixels", "pictures"], rows)


def _percent(share: float) -> str:
    return "< 0.01 %" if 0 < share < 0.0001 else f"{100 * share:.2f} %"


def _aligned(titles: list[str], rows: list[list[str]]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, title in enumerate(titles):
        table.add_column(title, justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
