"""The classic question: one network, one picture at a time; ONNX Runtime against OpenCV against PyTorch.

    python -m segship.benchmarks.latency model.onnx --checkpoint best.safetensors

The engines take turns, one run each, so that whatever else the machine does falls on all of them alike.
"""

import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from segship.runtime.console import run
from segship.runtime.preprocess import FULL_SCALE
from segship.runtime.segmenter import Segmenter

WARM_UPS = 3


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of the model: adds PyTorch to the table.")
@click.option("--backend", "backends", multiple=True, default=["ort", "opencv"], show_default=True, help="Engines.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="To measure each engine.")
def latency(model: Path, checkpoint: Path | None, backends: tuple[str, ...], seconds: float) -> None:
    """Measure what MODEL takes for one picture of its own size, on the CPU."""
    segmenters = [Segmenter(model, backend=name, device="cpu") for name in backends]
    if checkpoint is not None:
        segmenters.append(Segmenter(checkpoint, backend="torch", device="cpu"))
    form = segmenters[0].card.preprocess
    rng = np.random.default_rng(0)
    picture = rng.integers(0, FULL_SCALE[form.depth], (*form.size, form.channels), form.depth)
    for _ in range(WARM_UPS):
        for segmenter in segmenters:
            segmenter(picture)
    network_ms: list[list[float]] = [[] for _ in segmenters]
    whole_ms: list[list[float]] = [[] for _ in segmenters]
    end = time.perf_counter() + seconds * len(segmenters)
    while time.perf_counter() < end:
        for i, segmenter in enumerate(segmenters):
            start = time.perf_counter()
            result = segmenter(picture)
            whole_ms[i].append((time.perf_counter() - start) * 1000)
            network_ms[i].append(result.timings["network_ms"])
    table = Table(title=f"latency of one {form.size[0]}×{form.size[1]} picture, {len(whole_ms[0])} runs each, in turns")
    for column in ("engine", "threads", "network p50 ms", "p90 ms", "picture to labels p50 ms"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for segmenter, network, whole in zip(segmenters, network_ms, whole_ms, strict=True):
        figures = (np.median(network), np.percentile(network, 90), np.median(whole))
        table.add_row(segmenter.info.engine, str(segmenter.info.threads), *(f"{value:.1f}" for value in figures))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(latency)
