"""The same network in several precisions or engines: how many times as fast as the first one is each other one?

    python -m segship.benchmarks.precision fp32.onnx int8.onnx [fp16.onnx ...] --seconds 20
    python -m segship.benchmarks.precision fp32.onnx --engine ort --engine openvino --engine openvino:precision=engine

Each file on each engine takes turns, one run each, and each run is compared with the first one's run of the same turn,
so that whatever else the machine does falls on all of them alike. ``accuracy.py`` measures what they lose.
"""

import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from segship.runtime.console import run
from segship.runtime.knobs import read_knobs
from segship.runtime.preprocess import FULL_SCALE
from segship.runtime.segmenter import Segmenter

WARM_UPS = 3


@click.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--engine",
    "engines",
    metavar="NAME[:KEY=VALUE,…]",
    multiple=True,
    default=["ort"],
    show_default=True,
    help="Engine that runs them, with options of it.",
)
@click.option("--threads", type=click.IntRange(1), help="Of each engine.  [default: the CPUs there are]")
@click.option("--seconds", type=click.FloatRange(0.1), default=20.0, show_default=True, help="To measure all of them.")
def precision(models: tuple[Path, ...], engines: tuple[str, ...], threads: int | None, seconds: float) -> None:
    """Measure the networks of MODELS alone, on one picture of noise each, on the CPU."""
    segmenters = [_open(model, engine, threads) for engine in engines for model in models]
    pictures = [_noise(segmenter) for segmenter in segmenters]
    for _ in range(WARM_UPS):
        for segmenter, picture in zip(segmenters, pictures, strict=True):
            segmenter(picture)
    network_ms: list[list[float]] = [[] for _ in segmenters]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for times, segmenter, picture in zip(network_ms, segmenters, pictures, strict=True):
            times.append(segmenter(picture).timings["network_ms"])
    ratios = np.asarray(network_ms[0]) / np.asarray(network_ms)
    table = Table(title=f"{len(network_ms[0])} turns")
    texts = ("engine", "file", "precision")
    for column in (*texts, "threads", "MB", "network p50 ms", "times as fast, p10", "p50", "p90"):
        table.add_column(column, justify="left" if column in texts else "right")
    for segmenter, times, ratio in zip(segmenters, network_ms, ratios, strict=True):
        low, middle, high = np.percentile(ratio, (10, 50, 90))
        table.add_row(
            segmenter.info.engine,
            segmenter.model.name,
            segmenter.info.precision,
            str(segmenter.info.threads),
            f"{segmenter.model.stat().st_size / 1e6:.1f}",
            f"{np.median(times):.1f}",
            *(f"{value:.2f}" for value in (low, middle, high)),
        )
    Console(width=130).print(table)


def _open(model: Path, engine: str, threads: int | None) -> Segmenter:
    """Load a model into the engine that a text such as ``openvino:precision=engine`` names."""
    backend, _, settings = engine.partition(":")
    options = read_knobs(settings.split(",") if settings else (), threads=threads).engine
    return Segmenter(model, backend=backend, device="cpu", options=options)


def _noise(segmenter: Segmenter) -> "np.ndarray[tuple[int, ...], np.dtype[np.integer]]":
    form = segmenter.card.preprocess
    size = segmenter.card.frame or form.size
    return np.random.default_rng(0).integers(0, FULL_SCALE[form.depth], (*size, form.channels), form.depth)


if __name__ == "__main__":
    run(precision)
