"""What a training run shows: metrics.csv, learning curves and sample sheets."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import CheckpointError
from segship.runtime.files import write_text
from segship.runtime.render import RgbImage, color_image, contact_sheet, displayable, write_rgb
from segship.training.data import Dataset, spread_evenly
from segship.training.metrics import TOTALS, Scores
from segship.training.plots import class_label, new_figure, save_figure
from segship.training.validate import predict_labels

SHEET_SAMPLES: Final = 4
MOST_CLASSES_IN_LEGEND: Final = 51  # three columns; more would leave the curves no room

_PER_CLASS: Final = {"iou": "IoU", "class_accuracy": "accuracy", "f1": "F1"}


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to.

    Attributes:
        epoch: counted from 1.
        step: steps of the optimiser since the run began.
        learning_rate: at its end.
        train_loss: mean over its batches.
        data_wait: share of the training time in which the loader was waited for, 0…1.
        scores: of the validation part after it; None where it was not measured.
        seconds: it took, validation included.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    data_wait: float
    scores: Scores | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, as JSON holds them: every float exactly, NaN as None."""
        scores = None if self.scores is None else self.scores.to_dict()
        return {**dataclasses.asdict(self), "scores": scores}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the record that ``to_dict`` was called on.

        Raises:
            CheckpointError: if keys or values are not those of a record.
        """
        try:
            return cls(
                epoch=int(record["epoch"]),
                step=int(record["step"]),
                learning_rate=float(record["learning_rate"]),
                train_loss=float(record["train_loss"]),
                data_wait=float(record["data_wait"]),
                scores=None if record["scores"] is None else Scores.from_dict(record["scores"]),
                seconds=float(record["seconds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the record of an epoch is damaged ({type(error).__name__}: {error})") from error


def write_metrics(path: Path, records: list[EpochRecord], class_names: tuple[str, ...]) -> None:
    """Write one row an epoch: loss, the figures over all classes, and each class's IoU, accuracy and F1.

    The figures of an epoch without validation are left empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["epoch", "step", "learning_rate", "train_loss", *TOTALS, "seconds", "data_wait"]
    writer.writerow(header + [f"{title} {name}" for title in _PER_CLASS.values() for name in class_names])
    for record in records:
        figures = [str(record.epoch), str(record.step), f"{record.learning_rate:.6g}", f"{record.train_loss:.6f}"]
        totals, per_class = [""] * len(TOTALS), [""] * (len(_PER_CLASS) * len(class_names))
        if record.scores is not None:
            totals = [f"{value:.6f}" for value in record.scores.summary().values()]
            per_class = [f"{value:.6f}" for name in _PER_CLASS for value in getattr(record.scores, name)]
        writer.writerow([*figures, *totals, f"{record.seconds:.1f}", f"{record.data_wait:.3f}", *per_class])
    write_text(path, text.getvalue())


def draw_curves(path: Path, records: list[EpochRecord], class_names: tuple[str, ...]) -> None:
    """Draw loss, accuracy and each class's IoU over the epochs, or over the steps where epochs have several records.

    Accuracy and IoU have points only where there was a validation.
    """
    unit = "epoch" if len({record.epoch for record in records}) == len(records) else "step"
    validated = [(getattr(record, unit), record.scores) for record in records if record.scores is not None]
    places = [place for place, _ in validated]
    figure = new_figure(14, 4)
    loss, accuracy, classes = figure.subplots(1, 3, sharex=True)
    loss.plot([getattr(record, unit) for record in records], [record.train_loss for record in records], marker=".")
    loss.set(title="training loss", yscale="log")
    for name in TOTALS:
        accuracy.plot(places, [scores.summary()[name] for _, scores in validated], marker=".", label=name)
    accuracy.set(title="validation", ylim=(0, 1))
    accuracy.legend(fontsize="small", loc="lower right")
    for class_id, name in enumerate(class_names):
        style = ("-", "--", ":", "-.")[class_id // 10 % 4]  # colours come again after ten
        ious = [scores.iou[class_id] for _, scores in validated]
        classes.plot(places, ious, style, marker=".", label=class_label(class_id, name))
    classes.set(title="validation IoU of each class", ylim=(0, 1))
    if len(class_names) <= MOST_CLASSES_IN_LEGEND:
        columns = math.ceil(len(class_names) / 17)
        classes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
    for axes in (loss, accuracy, classes):
        axes.set_xlabel(unit)
        axes.grid(alpha=0.3)
    save_figure(path, figure)


def draw_samples(path: Path, network: nn.Module, card: ModelCard, dataset: Dataset, device: torch.device) -> None:
    """Draw a few validation pictures, spread over the dataset: photo | truth | prediction."""
    rows: list[list[RgbImage]] = []
    for index in spread_evenly(len(dataset), SHEET_SAMPLES):
        sample = dataset[index]
        prediction = predict_labels(network, card, sample.image, device)
        rows.append([displayable(sample.image), color_image(sample.labels, card), color_image(prediction, card)])
    write_rgb(path, contact_sheet(rows, ["photo", "truth", "prediction"]))
