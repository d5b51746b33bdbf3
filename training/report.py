"""What a training run shows: metrics.csv, learning curves and sample sheets."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import require
from segship.runtime.files import replacing, write_text
from segship.runtime.render import RgbImage, color_image, contact_sheet, displayable, write_rgb
from segship.training.data import Dataset, spread_evenly
from segship.training.metrics import Scores
from segship.training.validate import predict_labels

SHEET_SAMPLES = 4


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to.

    Attributes:
        epoch: counted from 1.
        learning_rate: at its end.
        train_loss: mean over its batches.
        scores: of the validation part after it.
        seconds: it took, validation included.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    scores: Scores
    seconds: float


def write_metrics(path: Path, records: list[EpochRecord], class_names: tuple[str, ...]) -> None:
    """Write one row an epoch: loss, the figures over all classes, and each class's IoU, accuracy and F1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    per_class = {"iou": "IoU", "class_accuracy": "accuracy", "f1": "F1"}
    header = ["epoch", "learning_rate", "train_loss", *records[0].scores.summary(), "seconds"]
    writer.writerow(header + [f"{title} {name}" for title in per_class.values() for name in class_names])
    for record in records:
        figures: list[Any] = [record.epoch, f"{record.learning_rate:.6g}", f"{record.train_loss:.6f}"]
        figures += [f"{value:.6f}" for value in record.scores.summary().values()] + [f"{record.seconds:.1f}"]
        for attribute in per_class:
            figures += [f"{value:.6f}" for value in getattr(record.scores, attribute)]
        writer.writerow(figures)
    write_text(path, text.getvalue())


def draw_curves(path: Path, records: list[EpochRecord], class_names: tuple[str, ...]) -> None:
    """Draw loss, accuracy and each class's IoU over the epochs."""
    require("matplotlib", extra="train", purpose="drawing curves")
    from matplotlib.figure import Figure

    epochs = [record.epoch for record in records]
    figure = Figure(figsize=(14, 4), layout="constrained")
    loss, accuracy, classes = figure.subplots(1, 3)
    loss.plot(epochs, [record.train_loss for record in records], marker=".")
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    for name in records[0].scores.summary():
        accuracy.plot(epochs, [record.scores.summary()[name] for record in records], marker=".", label=name)
    accuracy.set(title="validation", xlabel="epoch", ylim=(0, 1))
    accuracy.legend(fontsize="small", loc="lower right")
    ious = np.stack([record.scores.iou for record in records])
    for class_id, name in enumerate(class_names):
        classes.plot(epochs, ious[:, class_id], marker=".", label=name)
    classes.set(title="validation IoU of each class", xlabel="epoch", ylim=(0, 1))
    classes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(class_names) // 17)
    for axes in (loss, accuracy, classes):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_samples(path: Path, network: nn.Module, card: ModelCard, dataset: Dataset, device: torch.device) -> None:
    """Draw a few validation pictures, spread over the dataset: photo | truth | prediction."""
    rows: list[list[RgbImage]] = []
    for index in spread_evenly(len(dataset), SHEET_SAMPLES):
        sample = dataset[index]
        prediction = predict_labels(network, card, sample.image, device)
        rows.append([displayable(sample.image), color_image(sample.labels, card), color_image(prediction, card)])
    write_rgb(path, contact_sheet(rows, ["photo", "truth", "prediction"]))
