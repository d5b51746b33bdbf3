"""The confusion matrix as a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.training.metrics import ConfusionMatrix
from segship.training.plots import class_label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES_WITH_NUMBERS: Final = 25
MOST_LABELS: Final = 150
"""With more classes than this, only every second, third, … gets its name."""

ABSENT_COLOR: Final = "0.88"


def draw_confusion(path: Path, matrix: ConfusionMatrix, card: ModelCard) -> None:
    """Draw where the pixels of each class went: rows are the true classes, columns the predicted ones.

    Each row is divided by its number of pixels. The row of a class that the truth does not have is grey, and so is its
    name. Up to 25 classes, each cell that holds any pixel says how many per cent.
    """
    with np.errstate(invalid="ignore"):
        shares = matrix.counts / matrix.counts.sum(axis=1, keepdims=True)  # NaN where the truth lacks the class
    absent = np.isnan(shares).any(axis=1)
    num_classes = len(shares)
    has_numbers = num_classes <= MOST_CLASSES_WITH_NUMBERS
    side = min(24.0, 2 + num_classes * (0.5 if has_numbers else 0.2))

    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    figure = new_figure(side + 2.5, side + 1.5)
    axes = figure.add_subplot()
    colors = colormaps["Blues"].with_extremes(bad=ABSENT_COLOR)
    norm = PowerNorm(0.5, 0, 1)  # or the confusions, which are the point, would all be white
    image = axes.imshow(np.ma.masked_invalid(shares), cmap=colors, norm=norm, interpolation="nearest")
    if has_numbers:
        _write_numbers(axes, shares)
    _name_classes(figure, axes, card, absent)
    title = "share of each true class's pixels, in %" + ("; grey: not in the truth" if absent.any() else "")
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "10", "25", "50", "75", "100"])
    save_figure(path, figure)


def _write_numbers(axes: "Axes", shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share > 0:  # not where the truth lacks the class, either
            text = "<1" if share < 0.005 else f"{100 * share:.0f}"
            color = "white" if share > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def _name_classes(figure: "Figure", axes: "Axes", card: ModelCard, absent: NDArray[np.bool_]) -> None:
    """Put names at rows and columns, each behind a square of the class's colour."""
    from matplotlib.transforms import offset_copy

    shown = np.arange(0, card.num_classes, math.ceil(card.num_classes / MOST_LABELS))
    labels = [class_label(int(class_id), card.class_names[class_id]) for class_id in shown]
    axes.set_xticks(shown, labels, rotation=90, fontsize=8)
    axes.set_yticks(shown, labels, fontsize=8)
    axes.tick_params(length=0, pad=12)
    for class_id, *ticks in zip(shown, axes.get_xticklabels(), axes.get_yticklabels(), strict=True):
        for tick in ticks:
            tick.set_color("0.6" if absent[class_id] else "black")
    axes.autoscale(enable=False)
    edge = np.zeros(len(shown))
    left = offset_copy(axes.get_yaxis_transform(), figure, x=-7, units="points")
    below = offset_copy(axes.get_xaxis_transform(), figure, y=-7, units="points")
    for x, y, place in ((edge, shown, left), (shown, edge, below)):
        squares = axes.scatter(x, y, s=36, c=np.array(card.palette)[shown] / 255, marker="s", transform=place)
        squares.set(edgecolor="0.5", linewidth=0.5, clip_on=False)
