"""The classic question: one network, one picture at a time; ONNX Runtime against OpenCV against PyTorch.

    python -m segship.benchmarks.latency model.onnx --checkpoint best.safetensors

The engines take turns, one run each, so that whatever else the machine does falls on all of them alike. ``seg-bench``
asks the same and more; this is the whole of it on a page.
"""

import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from segship.benchmarks.bench_picture import noise
from segship.benchmarks.distribution import Distribution
from segship.benchmarks.engine_choice import Choice, check_checkpoint, open_choice
from segship.benchmarks.one_picture import Road
from segship.benchmarks.record import PICTURE, runs_of
from segship.benchmarks.sampling import FULL, sample_all
from segship.runtime.console import run


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of the model: adds PyTorch to the table.")
@click.option("--backend", "backends", multiple=True, default=["ort", "opencv"], show_default=True, help="Engines.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="To measure each engine.")
def latency(model: Path, checkpoint: Path | None, backends: tuple[str, ...], seconds: float) -> None:
    """Measure what MODEL takes for one picture of its own size, on the CPU."""
    choices = [Choice(model, name, "cpu") for name in backends]
    if checkpoint is not None:
        check_checkpoint(model, checkpoint)
        choices.append(Choice(checkpoint, "torch", "cpu"))
    segmenters = [open_choice(choice) for choice in choices]
    picture = noise(segmenters[0].card)
    found = sample_all([Road(each, picture) for each in segmenters], dataclasses.replace(FULL, seconds=seconds))
    height, width = segmenters[0].card.preprocess.size
    table = Table(title=f"one {height}×{width} picture of noise, {runs_of(found)} in turns")
    for column in ("engine", "threads", "network p50 ms", "p99 ms", "file to mask p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for segmenter, one in zip(segmenters, found, strict=True):
        stages = (Distribution.of(one.samples_ns[stage]) for stage in ("network", PICTURE))
        figures = [f"{value / 1e6:.1f}" for stage in stages for value in (stage.p50, stage.p99)]
        table.add_row(segmenter.info.engine, str(segmenter.info.threads), *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    run(latency)
