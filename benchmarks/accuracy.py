"""The accuracy of what ships: the exported file, through the real runtime, on a dataset's validation part.

python -m segship.benchmarks.accuracy model.onnx --data camvid:DIR --checkpoint best.safetensors
"""

import math
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from segship.benchmarks.record import Accuracy, BenchError, digest
from segship.runtime.card import ModelCard
from segship.runtime.console import run
from segship.runtime.palettes import ClassTable
from segship.runtime.preprocess import Depth
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.training.data import IGNORE_INDEX, Dataset, Sample, open_dataset, spread_evenly
from segship.training.metrics import ConfusionMatrix


def measure_accuracy(segmenter: Segmenter, dataset: Dataset, data_name: str) -> Accuracy:
    """Measure how right a model is, through the runtime that ships.

    Args:
        segmenter: the model in its engine.
        dataset: pictures with their truth.
        data_name: what the dataset is called in the record: ``camvid, validation``.

    Raises:
        BenchError: if model and dataset do not have the same classes, or no pixel has a truth.
        DatasetError: if a picture or its mask cannot be read.
        ImageError: if a picture is none that the model takes.
    """
    names: list[str] = []
    scores = confusion_matrix(segmenter, dataset, names.append).scores()
    if math.isnan(scores.miou):
        raise BenchError(f"{data_name} has {len(dataset)} pictures and no pixel with a class; give data with masks")
    iou = [None if math.isnan(value) else float(value) for value in scores.iou]
    return Accuracy(
        data_name,
        len(dataset),
        scores.miou,
        scores.pixel_accuracy,
        dict(zip(segmenter.card.class_names, iou, strict=True)),
        digest("\0".join(names).encode(errors="backslashreplace")),
    )


def confusion_matrix(segmenter: Segmenter, dataset: Dataset, tick: Callable[[str], object]) -> ConfusionMatrix:
    """Count what a model makes of each pixel with a truth; pictures are read and counted beside the network.

    Args:
        segmenter: the model in its engine.
        dataset: pictures with their truth.
        tick: called after each picture, in their order, with its name.

    Raises:
        BenchError: if model and dataset do not have the same classes.
    """
    check_classes(segmenter.model, segmenter.card, dataset)
    total = ConfusionMatrix(segmenter.card.num_classes, IGNORE_INDEX)

    def count(result: Result) -> tuple[str, NDArray[np.int64]]:
        name, labels = result.tag
        matrix = ConfusionMatrix(total.num_classes, IGNORE_INDEX)
        matrix.add(labels, result.labels)
        return name, matrix.counts

    samples = (dataset[index] for index in range(len(dataset)))
    tagged = ((sample.image, (sample.name, sample.labels)) for sample in samples)
    for name, counts in segmenter.stream(tagged, then=count):
        total.counts += counts
        tick(name)
    return total


def check_classes(model: Path, card: ModelCard, dataset: Dataset) -> None:
    """Refuse a dataset whose classes are not the model's, in their order.

    Raises:
        BenchError: naming both.
    """
    found, expected = card.class_names, dataset.classes.names
    if found != expected:
        raise BenchError(
            f"{model.name} has the {len(found)} classes {', '.join(found)}, and the dataset has the "
            f"{len(expected)} classes {', '.join(expected)}; give data with the classes that the model was trained on"
        )


def held_out(data: str, limit: int | None = None) -> tuple[Dataset, str]:
    """Open the validation part of a dataset.

    Args:
        data: ``KIND[:DIR]``, as seg-train takes it.
        limit: take so many pictures of it, spread evenly; None: all.

    Returns:
        The pictures, and what they are called in a record, without folders.

    Raises:
        DatasetError: if there is no such dataset.
    """
    dataset: Dataset = open_dataset(data).val
    name = f"{data.partition(':')[0]}, validation"
    return (dataset, name) if limit is None or limit >= len(dataset) else (_Chosen(dataset, limit), name)


class _Chosen:
    """Some pictures of a dataset, spread evenly over it."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._dataset, self._indices = dataset, spread_evenly(len(dataset), count)

    @property
    def classes(self) -> ClassTable:
        return self._dataset.classes

    @property
    def channels(self) -> int:
        return self._dataset.channels

    @property
    def depth(self) -> Depth:
        return self._dataset.depth

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="KIND[:DIR]", help="Dataset, as seg-train takes it.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of the model: adds PyTorch to the table.")
@click.option("--backend", "backends", multiple=True, default=["ort", "opencv"], show_default=True, help="Engines.")
def accuracy(model: Path, data: str, checkpoint: Path | None, backends: tuple[str, ...]) -> None:
    """Measure MODEL on the validation part of a dataset with every engine named."""
    dataset, name = held_out(data)
    runs = [(model, backend) for backend in backends] + ([(checkpoint, "torch")] if checkpoint else [])
    figures = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for path, backend in runs:
            with Segmenter(path, backend=backend, device="cpu") as segmenter:
                pictures = progress.add_task(segmenter.info.engine, total=len(dataset))
                matrix = confusion_matrix(segmenter, dataset, _advancing(progress, pictures))
                figures.append((segmenter.info.engine, segmenter.card.class_names, matrix.scores()))
    table = Table(title=f"{model.name} on {len(dataset)} pictures of {name}")
    table.add_column("")
    for engine, _, _ in figures:
        table.add_column(engine, justify="right")
    for total in figures[0][2].summary():
        table.add_row(total, *(f"{scores.summary()[total]:.5f}" for _, _, scores in figures))
    for class_id, class_name in enumerate(figures[0][1]):
        table.add_row(f"IoU {class_name}", *(f"{scores.iou[class_id]:.5f}" for _, _, scores in figures))
    Console(width=100).print(table)


def _advancing(progress: Progress, task: TaskID) -> Callable[[str], None]:
    return lambda _: progress.advance(task)


if __name__ == "__main__":
    run(accuracy)
