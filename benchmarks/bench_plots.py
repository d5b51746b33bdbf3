"""What ``seg-bench`` found, as pictures: accuracy against latency, and how single runs spread."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from segship.benchmarks.distribution import Distribution, percentile
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.record import PICTURE, Bench, Entry, runs_of
from segship.training.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

PARETO: Final = "pareto.png"
LATENCY: Final = "latency.png"

_COLORS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a7a7a")
"""Okabe and Ito's (2008), which those who see red and green alike tell apart."""

_MARKERS: Final = {"fp32": "o", "fp16": "s", "bf16": "D", "int8": "^", "int8 (bf16)": "v", "int8 (fp16)": "<"}
_OTHER_MARKER: Final = "P"
_INK, _FAINT = "#333333", "#d9d9d9"
_BINS: Final = 30
_DRAWN: Final = 1.5
"""Runs that took longer than this times the 99th percentile are told of, and not drawn to scale."""

_ROW_IN: Final = 0.95
_OFFSETS: Final = tuple(
    (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
    for radius, angle in itertools.product((10, 18, 30, 46, 66), (20, 160, -20, -160, 90, -90, 50, 130, -50, -130))
)
"""Where a label may be, in points from its point, best first."""


def draw_pareto(bench: Bench, path: Path) -> bool:
    """Draw the mIoU of each row against the median time of a picture, and the front that none beats in both.

    Returns:
        Whether there was anything to draw: accuracy of a row.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    points = [(_median_ms(entry), entry.accuracy.miou, entry) for entry in bench.entries if entry.accuracy]
    if not points:
        return False
    figure = new_figure(8.4, 5.4)
    axes: Axes = figure.subplots()
    places = [(latency_ms, miou) for latency_ms, miou, _ in points]
    _set_limits(axes, places)
    _draw_front(axes, places)
    colors = _colors_of([entry for *_, entry in points])
    for latency_ms, miou, entry in points:
        marker = _MARKERS.get(entry.subject.precision, _OTHER_MARKER)
        color = colors[_engine(entry)]
        axes.plot(latency_ms, miou, marker, color=color, markersize=9, markeredgecolor="white", zorder=3)
    _add_legend(axes, colors, [entry for *_, entry in points])
    accuracy = next(entry.accuracy for *_, entry in points if entry.accuracy)
    axes.set_xlabel("median time of a picture, file to mask, in ms (logarithmic)", color=_INK)
    axes.set_ylabel(f"mIoU, {accuracy.images} pictures of {_text(accuracy.data)}", color=_INK)
    axes.set_title(f"Accuracy against latency{_quick(bench)}", loc="left", color=_INK, fontweight="bold")
    figure.draw_without_rendering()  # makes the layout, in which labels find their places
    _label(axes, places, _short_names([entry for *_, entry in points]))
    save_figure(path, figure)
    return True


def draw_latency(bench: Bench, path: Path) -> bool:
    """Draw how long single runs took: all rows on one axis, and beside it each by itself.

    Returns:
        Whether there was anything to draw.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    entries = bench.entries
    if not entries:
        return False
    figure = new_figure(10.5, 1.3 + _ROW_IN * max(2, len(entries)))
    grid = figure.add_gridspec(len(entries), 2, width_ratios=(1, 1.15), wspace=0.06)
    colors = _colors_of(entries)
    _draw_together(figure.add_subplot(grid[:, 0]), entries, colors)
    for number, entry in enumerate(entries):
        axes = figure.add_subplot(grid[number, 1])
        _draw_alone(axes, entry, colors[_engine(entry)])
        if not number:
            axes.set_title("each by itself, in ms", loc="left", color=_INK, fontsize=10, pad=20)
    runs = runs_of([entry.latency for entry in entries])
    title = f"Time of a run, a picture's bytes to its mask's: {runs}, none left out{_quick(bench)}"
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontweight="bold", fontsize=11)
    save_figure(path, figure)
    return True


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (latency, accuracy) that no other one beats in one without losing in the other, by latency."""
    front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((latency, accuracy))
    return front


def _set_limits(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    latencies, accuracies = [point[0] for point in points], [point[1] for point in points]
    middle, reach = math.sqrt(min(latencies) * max(latencies)), math.sqrt(max(latencies) / min(latencies))
    reach = max(2.2, reach * 1.35)  # one point alone has an axis, too
    axes.set_xscale("log")
    axes.set_xlim(middle / reach, middle * reach)
    margin = max(0.01, 0.18 * (max(accuracies) - min(accuracies)))
    axes.set_ylim(max(-0.01, min(accuracies) - margin), min(1.01, max(accuracies) + margin))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_FAINT, linewidth=0.6)
    _unframe(axes)


def _draw_front(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    x, y = _steps(axes, points)
    axes.fill_between(x, y, y[0], color="#f3f6f9", zorder=0)
    axes.plot(x, y, color="#8c9aa8", linewidth=1.4, zorder=1, label="front: none is better in both")


def _steps(axes: "Axes", points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the corners of the front's line, from the floor of the axes up to their right edge."""
    front = pareto_front(points)
    x = [point[0] for point in front for _ in range(2)] + [axes.get_xlim()[1]]
    y = [axes.get_ylim()[0]] + [point[1] for point in front for _ in range(2)]
    return x, y


def _add_legend(axes: "Axes", colors: Mapping[str, str], entries: Sequence[Entry]) -> None:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white", "markersize": 8}
    handles: list[Artist] = [
        Line2D([], [], marker="o", color=color, label=_text(name), **style) for name, color in colors.items()
    ]
    precisions = dict.fromkeys(entry.subject.precision for entry in entries)
    handles += [
        Line2D([], [], linestyle="none", label=""),
        *(
            Line2D([], [], marker=_MARKERS.get(name, _OTHER_MARKER), color=_INK, label=name, **style)
            for name in precisions
        ),
        Line2D([], [], linestyle="none", label=""),
    ]
    handles += axes.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)


def _label(axes: "Axes", points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write a text to each point, where it covers neither a point nor another text, and stays inside."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=2.5, foreground="white")]
    taken = [Bbox([dot - 9, dot + 9]) for dot in map(axes.transData.transform, points)]
    corners = [axes.transData.transform(corner) for corner in zip(*_steps(axes, points), strict=True)]
    taken += [
        Bbox([(min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)])
        for a, b in itertools.pairwise(corners)
    ]
    for point, text in zip(points, texts, strict=True):
        style: dict[str, Any] = {"fontsize": 8.5, "color": _INK, "va": "center", "textcoords": "offset points"}
        tried = []
        for rank, (x, y) in enumerate(_OFFSETS):
            side = "center" if abs(x) < 1 else "left" if x > 0 else "right"
            note = axes.annotate(text, point, (x, y), ha=side, **style)
            box = note.get_window_extent().padded(2)
            note.remove()
            tried.append((_covered(box, taken, axes.bbox), rank, side, box))
            if not tried[-1][0]:
                break
        _, rank, side, box = min(tried, key=lambda one: one[:2])
        is_far = math.hypot(*_OFFSETS[rank]) > 20
        arrow = {"arrowstyle": "-", "color": "#9a9a9a", "linewidth": 0.7, "shrinkB": 5} if is_far else None
        axes.annotate(text, point, _OFFSETS[rank], ha=side, arrowprops=arrow, zorder=4, path_effects=halo, **style)
        taken.append(box)


def _covered(box: "Bbox", taken: Sequence["Bbox"], frame: "Bbox") -> float:
    """Return how many dots of a box lie on what is taken, or outside of the frame."""
    from matplotlib.transforms import Bbox

    shared = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, frame)
    area = box.width * box.height
    outside = area - (inside.width * inside.height if inside else 0.0)
    return round(sum(one.width * one.height for one in shared if one) + outside, 3)


def _draw_together(axes: "Axes", entries: Sequence[Entry], colors: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for number, entry in enumerate(entries):
        times, color = Distribution.of(_times_ms(entry)), colors[_engine(entry)]
        axes.plot([times.min, times.p99], [number, number], color=color, linewidth=2, alpha=0.45, solid_capstyle="butt")
        axes.plot(times.p50, number, "o", color=color, markersize=8, label="p50")
        axes.plot(times.p99, number, "|", color=color, markersize=14, markeredgewidth=2)
    lowest = min(min(_times_ms(entry)) for entry in entries)
    highest = max(Distribution.of(_times_ms(entry)).p99 for entry in entries)
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.3, highest * 1.3)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_yticks(range(len(entries)), _long_names(entries), fontsize=9, color=_INK)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title("compared, in ms, logarithmic: fastest – ● p50 – | p99", loc="left", color=_INK, fontsize=10, pad=20)
    _unframe(axes)


def _draw_alone(axes: "Axes", entry: Entry, color: str) -> None:
    samples = _times_ms(entry)
    times = Distribution.of(samples)
    edge = min(times.max, _DRAWN * times.p99)
    beyond = [sample for sample in samples if sample > edge]
    axes.hist([sample for sample in samples if sample <= edge], bins=_BINS, color=color, alpha=0.55)
    axes.axvline(times.p50, color=color, linewidth=1.8)
    axes.axvline(times.p99, color=color, linewidth=1.4, linestyle=(0, (3, 2)))
    text = f"p50 {times.p50:.2f}   p99 {times.p99:.2f}"
    text += f"   {len(beyond)} beyond, up to {times.max:.1f}" if beyond else ""
    axes.text(1, 1.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5, color=_INK)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8, colors=_INK)
    _unframe(axes, "left")


def _unframe(axes: "Axes", *more: str) -> None:
    for side in ("top", "right", *more):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", colors=_INK)


def _colors_of(entries: Sequence[Entry]) -> dict[str, str]:
    names = dict.fromkeys(_engine(entry) for entry in entries)
    return dict(zip(names, itertools.cycle(_COLORS), strict=False))


def _engine(entry: Entry) -> str:
    engine = entry.subject.engine
    return engine.engine if engine.device == "cpu" else f"{engine.engine}, {engine.device}"


def _times_ms(entry: Entry) -> list[float]:
    return [taken / 1e6 for taken in entry.latency.samples_ns[PICTURE]]


def _median_ms(entry: Entry) -> float:
    """Return the median time of a picture, also where several are run at once."""
    return percentile(_times_ms(entry), 0.5) / entry.subject.batch


def _short_names(entries: Sequence[Entry]) -> list[str]:
    names = distinct_names(entry.subject.model for entry in entries)
    batches = [f", batch {entry.subject.batch}" if entry.subject.batch > 1 else "" for entry in entries]
    stems = [PurePath(names[entry.subject.model]).with_suffix("").as_posix() for entry in entries]
    return [_text(stem + batch) for stem, batch in zip(stems, batches, strict=True)]


def _long_names(entries: Sequence[Entry]) -> list[str]:
    names = distinct_names(entry.subject.model for entry in entries)
    return [_text(f"{names[entry.subject.model]}\n{entry.subject.called('').removeprefix(', ')}") for entry in entries]


def _quick(bench: Bench) -> str:
    return " (quick)" if bench.quick else ""


def _text(text: str) -> str:
    """Return text as it is: a dollar sign starts no formula."""
    return text.replace("$", r"\$")
