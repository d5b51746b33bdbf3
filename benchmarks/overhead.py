"""What ``seg-infer`` costs on top of the network: the whole command against the forward passes alone.

    python -m segship.benchmarks.overhead model.onnx PICTURES

The command is timed as a process, from its start to its exit, reading files and writing files; the forward passes run
in this process, with the same engine and settings, on the same pictures, already prepared. The two take turns, and the
ratio is taken pair by pair.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from segship.runtime.backends import load_backend
from segship.runtime.console import run
from segship.runtime.images import read_image
from segship.runtime.model_file import read_card
from segship.runtime.source_files import find_images


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--backend", default="ort", show_default=True, help="Engine.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Number of pictures.")
@click.option("--save", default="mask,overlay", show_default=True, help="What the command writes.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Pairs to measure.")
def overhead(model: Path, pictures: Path, backend: str, limit: int, save: str, rounds: int) -> None:
    """Measure seg-infer with MODEL on PICTURES against its forward passes alone."""
    paths = [file.path for file in find_images([pictures])][:limit]
    card = read_card(model)
    form = card.preprocess
    batches = [form(read_image(path, channels=form.channels, depth=form.depth)) for path in paths]
    ratios: list[float] = []
    for _ in range(rounds):
        whole_s = _time_command(model, paths, backend, save)
        engine = load_backend(backend, model, card, "cpu")
        for batch in batches[:3]:
            engine.run(batch)
        start = time.perf_counter()
        for batch in batches:
            engine.run(batch)
        alone_s = time.perf_counter() - start
        engine.close()
        ratios.append(whole_s / alone_s)
        click.echo(
            f"seg-infer {whole_s:.2f} s ({whole_s / len(paths) * 1000:.1f} ms a picture), forward passes alone "
            f"{alone_s:.2f} s ({alone_s / len(paths) * 1000:.1f} ms): ratio {ratios[-1]:.3f}"
        )
    click.echo(
        f"{len(paths)} pictures, {backend}, writes {save}: ratio median {np.median(ratios):.3f}, "
        f"smallest {min(ratios):.3f}, largest {max(ratios):.3f}"
    )


def _time_command(model: Path, paths: list[Path], backend: str, save: str) -> float:
    program = "from segship.runtime.cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--backend", backend, "--device", "cpu", "--out", folder, "--save", save, "-q"]
        command = [sys.executable, "-c", program, str(model), *map(str, paths), *options]
        start = time.perf_counter()
        subprocess.run(command, check=True)  # noqa: S603  # our own command on the user's own files
        return time.perf_counter() - start


if __name__ == "__main__":
    run(overhead)
