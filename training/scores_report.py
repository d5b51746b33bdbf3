"""What a measurement came to: a table for people, ``report.json`` for programs and ``confusion.png`` for the eye."""

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.cells import cell_len

import segship
from segship.runtime.card import ModelCard
from segship.runtime.files import write_text
from segship.training.confusion import draw_confusion
from segship.training.metrics import TOTALS, ConfusionMatrix

REPORT: Final = "report.json"
CONFUSION: Final = "confusion.png"

Fact = str | int | float | None

_TITLES: Final = {
    "pixel_accuracy": "pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "miou": "mIoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_f1": "mean F1",
}
_ABSENT: Final = "–"


def write_report(folder: Path, matrix: ConfusionMatrix, card: ModelCard, facts: Mapping[str, Fact]) -> None:
    """Write ``report.json`` and ``confusion.png``.

    Args:
        folder: is made if it is missing.
        matrix: what was counted.
        card: of the network that was measured; gives the classes.
        facts: what was measured, on what and with what, such as checkpoint, sha-256, data, pictures, device, seconds.
    """
    write_text(folder / REPORT, _json(report_of(matrix, card, facts)))
    draw_confusion(folder / CONFUSION, matrix, card)


def report_of(matrix: ConfusionMatrix, card: ModelCard, facts: Mapping[str, Fact]) -> dict[str, Any]:
    """Return what ``report.json`` holds, as plain values."""
    return {
        "task": card.task,
        "facts": dict(facts),
        "totals": {name: figure for name, figure in matrix.scores().to_dict().items() if name in TOTALS},
        "pixels": int(matrix.counts.sum()),
        "classes": _classes(matrix, card),
        "confusion_matrix": matrix.counts.tolist(),
        "versions": package_versions(),
    }


def table(matrix: ConfusionMatrix, card: ModelCard) -> str:
    """Return the figures as lines of text: one for each class, sorted by id, and those over all classes last."""
    rows = [["id", "class", "IoU", "accuracy", "precision", "F1", "pixels", "share"]]
    for entry in _classes(matrix, card):
        figures = [_decimal(entry[name]) for name in ("iou", "accuracy", "precision", "f1")]
        name, pixels = " ".join(entry["name"].split()), str(entry["true_pixels"])
        rows.append([str(entry["id"]), name, *figures, pixels, _decimal(entry["true_share"])])
    totals = matrix.scores().to_dict()
    width = max(map(len, _TITLES.values()))
    return "\n".join(
        [*_aligned(rows), "", *(f"{title:<{width}}  {_decimal(totals[name])}" for name, title in _TITLES.items())]
    )


def package_versions() -> dict[str, str]:
    """Return the versions of Python, segship and the packages that its figures depend on, where installed."""
    versions = {"python": platform.python_version(), "segship": segship.__version__}
    for package in ("torch", "numpy", "opencv-python-headless", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _classes(matrix: ConfusionMatrix, card: ModelCard) -> list[dict[str, Any]]:
    """Every class with its figures; None where the pictures do not tell."""
    scores = matrix.scores().to_dict()
    true, predicted = matrix.counts.sum(axis=1), matrix.counts.sum(axis=0)
    total = max(int(matrix.counts.sum()), 1)
    return [
        {
            "id": class_id,
            "name": name,
            "color": list(card.palette[class_id]),
            "iou": scores["iou"][class_id],
            "accuracy": scores["class_accuracy"][class_id],
            "precision": scores["precision"][class_id],
            "f1": scores["f1"][class_id],
            "true_pixels": int(true[class_id]),
            "true_share": float(true[class_id] / total),
            "predicted_pixels": int(predicted[class_id]),
            "predicted_share": float(predicted[class_id] / total),
        }
        for class_id, name in enumerate(card.class_names)
    ]


def _json(report: Mapping[str, Any]) -> str:
    """As JSON with a line for each class and each row of the matrix."""

    def text(value: object) -> str:
        plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return plain.encode(
            errors="backslashreplace"
        ).decode()  # of a file's name that is no Unicode, JSON's own escape

    parts = []
    for name, value in report.items():
        if isinstance(value, list):
            lines = ",\n".join(f"    {text(item)}" for item in value)
            parts.append(f"  {text(name)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {text(name)}: {text(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _decimal(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.4f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    columns = [_padded(column, to_the_left=index == 1) for index, column in enumerate(zip(*rows, strict=True))]
    return ["  ".join(cells) for cells in zip(*columns, strict=True)]


def _padded(cells: tuple[str, ...], *, to_the_left: bool) -> list[str]:
    """Bring cells to one width, as a terminal counts it."""
    width = max(map(cell_len, cells))
    spaces = [" " * (width - cell_len(cell)) for cell in cells]
    return [cell + space if to_the_left else space + cell for cell, space in zip(cells, spaces, strict=True)]
