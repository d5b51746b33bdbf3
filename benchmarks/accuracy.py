"""The accuracy of what ships: the exported file, through the real runtime, on a dataset's validation part.

python -m segship.benchmarks.accuracy model.onnx --data camvid:DIR --checkpoint best.safetensors
"""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from segship.runtime.console import run
from segship.runtime.segmenter import Segmenter
from segship.training.data import Dataset, open_dataset
from segship.training.metrics import ConfusionMatrix, Scores


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="KIND[:DIR]", help="Dataset, as seg-train takes it.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of the model: adds PyTorch to the table.")
@click.option("--backend", "backends", multiple=True, default=["ort", "opencv"], show_default=True, help="Engines.")
def accuracy(model: Path, data: str, checkpoint: Path | None, backends: tuple[str, ...]) -> None:
    """Measure MODEL on the validation part of a dataset with every engine named."""
    dataset = open_dataset(data).val
    runs = [(model, backend) for backend in backends] + ([(checkpoint, "torch")] if checkpoint else [])
    figures = []
    for path, backend in runs:
        with Segmenter(path, backend=backend, device="cpu") as segmenter:
            figures.append((segmenter.info.engine, segmenter.card.class_names, _measure(segmenter, dataset)))
    table = Table(title=f"{model.name} on {len(dataset)} validation pictures of {data.partition(':')[0]}")
    table.add_column("")
    for engine, _, _ in figures:
        table.add_column(engine, justify="right")
    for name in figures[0][2].summary():
        table.add_row(name, *(f"{scores.summary()[name]:.5f}" for _, _, scores in figures))
    for class_id, name in enumerate(figures[0][1]):
        table.add_row(f"IoU {name}", *(f"{scores.iou[class_id]:.5f}" for _, _, scores in figures))
    Console(width=100).print(table)


def _measure(segmenter: Segmenter, dataset: Dataset) -> Scores:
    matrix = ConfusionMatrix(segmenter.card.num_classes, segmenter.card.ignore_index)
    for index in track(range(len(dataset)), segmenter.info.engine, console=Console(stderr=True), transient=True):
        sample = dataset[index]
        matrix.add(sample.labels, segmenter(sample.image).labels)
    return matrix.scores()


if __name__ == "__main__":
    run(accuracy)
