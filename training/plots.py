"""What the drawn figures share: names that are text and no markup, and whole files."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segship.runtime.errors import require
from segship.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_LABEL: Final = 24
DOTS_PER_INCH: Final = 110


def new_figure(width_in: float, height_in: float) -> "Figure":
    """Return an empty figure of a size in inches; it needs no display.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    require("matplotlib", extra="train", purpose="drawing figures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def class_label(class_id: int, name: str) -> str:
    """Return how a figure calls a class: by id and name, shortened, a dollar sign being no start of a formula.

    The id also tells classes apart whose script the font lacks, and matplotlib hides labels that start with "_".
    """
    text = f"{class_id} {' '.join(name.split())}"
    text = text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
    return text.replace("$", r"\$")


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG."""
    with warnings.catch_warnings(), replacing(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn, beside the class's id
        figure.savefig(temporary, dpi=DOTS_PER_INCH)
