"""A new model in place of an old one: what becomes right, what becomes wrong, and whether it is chance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from segship.benchmarks.accuracy import check_classes
from segship.benchmarks.bench_table import as_markdown, empty_table
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.record import BenchError
from segship.benchmarks.update_counts import RESAMPLES, PictureCounts, ious, miou_interval
from segship.benchmarks.update_facts import ClassUpdate, Flips, ImageUpdate, ModelUpdate
from segship.benchmarks.update_sheet import change_row, change_sheet
from segship.runtime.files import write_text
from segship.runtime.render import RgbImage, write_rgb
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.training.data import Dataset

__all__ = ["ModelUpdate", "compare_models", "update_sheet", "update_table", "write_update"]

MOST_CHANGED: Final = 8
"""Pictures that are drawn."""


def compare_models(old: Segmenter, new: Segmenter, dataset: Dataset) -> ModelUpdate:
    """Run two models on the same pictures, and compare both with the truth and with each other.

    Pictures of one scene, such as frames of a video, are not independent of each other, and the interval of such ones
    is too narrow (:func:`segship.benchmarks.update_counts.miou_interval`).

    Args:
        old: what runs now.
        new: what is to take its place.
        dataset: pictures with their truth; each is read once.

    Raises:
        BenchError: if models and dataset do not have the same classes, or no pixel has a truth.
        DatasetError: if a picture or its mask cannot be read.
        ImageError: if a picture is none that a model takes.
    """
    _check_models(old, new)
    check_classes(old.model, old.card, dataset)
    num_classes = old.card.num_classes

    def count(result: Result) -> tuple[str, PictureCounts]:
        sample, before = result.tag
        return sample.name, PictureCounts.of(sample.labels, before, result.labels, num_classes)

    samples = (dataset[index] for index in range(len(dataset)))
    first = old.stream(((sample.image, sample) for sample in samples), then=lambda result: (result.tag, result.labels))
    # The pictures flow on into the second model, each with its truth and what the first one says of it.
    both = new.stream(((sample.image, (sample, before)) for sample, before in first), then=count)
    return _summary(old, new, list(both))


def update_table(update: ModelUpdate) -> Table:
    """Return the update as a table: in all, then each class."""
    table = _table(_COLUMNS, _rows(update))
    table.title, table.caption = Text(f"old: {update.old}\nnew: {update.new}"), _sentence(update)
    return table


def update_sheet(update: ModelUpdate, dataset: Dataset, old: Segmenter, new: Segmenter) -> RgbImage | None:
    """Draw the pictures that changed most; None if none did.

    Args:
        update: what :func:`compare_models` returned of the rest.
        dataset: the pictures.
        old: what ran them.
        new: likewise.
    """
    shown = update.most_changed(MOST_CHANGED)
    if not shown:
        return None
    rows, ids = [], set[int]()
    for image in shown:
        sample = dataset[image.index]
        before, after = old(sample.image).labels, new(sample.image).labels
        titles = [
            image.name,
            "truth",
            f"old: {_percent(image.old_accuracy, 1)} right",
            f"new: {_percent(image.new_accuracy, 1)} right",
            f"{_percent(image.flips.share, 1)} changed",
        ]
        rows.append(change_row(sample, before, after, old.card, titles))
        ids |= set(np.unique(np.stack([sample.labels, before, after])).tolist())
    return change_sheet(rows, old.card, sorted(ids & set(range(len(update.classes)))))


def write_update(update: ModelUpdate, sheet: RgbImage | None, out: Path) -> set[str]:
    """Write ``update.json``, ``update.md`` and, of the pictures that changed most, ``update.png`` into a folder.

    Args:
        update: what :func:`compare_models` returned.
        sheet: what :func:`update_sheet` did.
        out: the folder; it is made if it is missing.

    Returns:
        The names of the files that were written.

    Raises:
        OutputError: if a file cannot be written.
    """
    write_text(out / "update.json", json.dumps(update.to_dict(), ensure_ascii=False, indent=1))
    if sheet is not None:
        write_rgb(out / "update.png", sheet)
    write_text(out / "update.md", _markdown(update, () if sheet is None else update.most_changed(MOST_CHANGED)))
    return {"update.json", "update.md", *([] if sheet is None else ["update.png"])}


def _markdown(update: ModelUpdate, shown: Sequence[ImageUpdate]) -> str:
    lines = ["# Model update", "", f"- old: {update.old}", f"- new: {update.new}", f"- pictures: {len(update.images)}"]
    lines += ["", _sentence(update), "", as_markdown(_table(_COLUMNS, _rows(update)))]
    lines += ["Changed pixels are counted at the class of their truth; void pixels count nowhere."]
    if shown:
        columns = ("picture", "changed", "right before", "right now")
        cells = [
            (image.name, *(_percent(share, 2) for share in (image.flips.share, image.old_accuracy, image.new_accuracy)))
            for image in shown
        ]
        lines += ["", "## What changed most", "", as_markdown(_table(columns, cells)), "![changes](update.png)"]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of figures, each row under its name."""
    table = empty_table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


_COLUMNS: Final = (
    "class",
    "IoU old",
    "IoU new",
    "Δ points",
    "changed",
    "right → wrong",
    "wrong → right",
    "other wrong",
)


def _rows(update: ModelUpdate) -> list[tuple[str, ...]]:
    rows = [_row("all (mIoU)", update.old_miou, update.new_miou, update.flips)]
    return rows + [_row(one.name, one.old_iou, one.new_iou, one.flips) for one in update.classes]


def _row(name: str, old: float | None, new: float | None, flips: Flips) -> tuple[str, ...]:
    difference = "n/a" if old is None or new is None else f"{100 * (new - old):+.2f}"
    kinds = (flips.changed, flips.to_wrong, flips.to_right, flips.to_other_wrong)
    shares = [_percent(kind / flips.pixels if flips.pixels else None, 2) for kind in kinds]
    return (name, *("n/a" if iou is None else f"{iou:.4f}" for iou in (old, new)), difference, *shares)


def _sentence(update: ModelUpdate) -> str:
    """Return what comes of it, in one sentence."""
    between = ""
    if update.interval is not None:
        low, high = update.interval
        between = f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f} ({RESAMPLES} resamples of the pictures)"
    return (
        f"mIoU {100 * update.miou_difference:+.2f} points{between}: {update.verdict}; pixel accuracy "
        f"{update.old_pixel_accuracy:.4f} → {update.new_pixel_accuracy:.4f}; "
        f"{_percent(update.flips.share, 2)} of the pixels changed their answer."
    )


def _percent(share: float | None, digits: int) -> str:
    return "n/a" if share is None else f"{100 * share:.{digits}f} %"


def _check_models(old: Segmenter, new: Segmenter) -> None:
    before, after = old.card.class_names, new.card.class_names
    if before == after:
        return
    names = distinct_names([old.model, new.model])
    first, second = names[str(old.model)], names[str(new.model)]
    if sorted(before) == sorted(after):
        place = next(number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
        raise BenchError(
            f"{first} and {second} have the same classes in another order: class {place} is "
            f"{before[place]} and {after[place]}; masks of the new one would be read wrongly, so train it on the same "
            "list of classes"
        )
    raise BenchError(
        f"{first} has the {len(before)} classes {', '.join(before)}, and {second} the {len(after)} "
        f"classes {', '.join(after)}; only models of the same classes can be compared"
    )


def _summary(old: Segmenter, new: Segmenter, pictures: Sequence[tuple[str, PictureCounts]]) -> ModelUpdate:
    counted = [counts for _, counts in pictures]
    total = sum((counts.sums for counts in counted), start=np.zeros((5, old.card.num_classes), np.int64))
    flips = sum((counts.flips for counts in counted), start=np.zeros((3, old.card.num_classes), np.int64))
    pixels = int(total[0].sum())
    if not pixels:
        raise BenchError(f"the dataset has {len(counted)} pictures and no pixel with a class; give data with masks")
    old_iou, new_iou = ious(total)
    names = distinct_names([old.model, new.model])
    classes = [
        ClassUpdate(name, _flips(total[0, i], flips[:, i]), _figure(old_iou[i]), _figure(new_iou[i]))
        for i, name in enumerate(old.card.class_names)
    ]
    return ModelUpdate(
        f"{names[str(old.model)]}, {old.info}",
        f"{names[str(new.model)]}, {new.info}",
        _flips(total[0].sum(), flips.sum(axis=1)),
        float(np.nanmean(old_iou)),
        float(np.nanmean(new_iou)),
        float(total[1].sum() / pixels),
        float(total[3].sum() / pixels),
        miou_interval(counted),
        tuple(classes),
        tuple(_image(i, name, counts) for i, (name, counts) in enumerate(pictures)),
    )


def _image(index: int, name: str, counts: PictureCounts) -> ImageUpdate:
    in_truth, old_right, _, new_right, _ = counts.sums.sum(axis=1)
    old, new = (float(right / in_truth) if in_truth else None for right in (old_right, new_right))
    return ImageUpdate(index, name, _flips(in_truth, counts.flips.sum(axis=1)), old, new)


def _flips(pixels: np.int64, kinds: NDArray[np.int64]) -> Flips:
    to_wrong, to_right, to_other_wrong = (int(count) for count in kinds)
    return Flips(int(pixels), to_wrong, to_right, to_other_wrong)


def _figure(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
