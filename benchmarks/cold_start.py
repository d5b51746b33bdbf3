"""How long until the first mask lies there? From the start of the process to its end, everything cold but the disk.

    python -m segship.benchmarks.cold_start model.onnx picture.jpg --runs 11

What is run takes turns with what it can be compared with: the bare interpreter, ``--help``, and the imports alone.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from segship.benchmarks.processes import installed_environment
from segship.runtime.console import run

COMMAND = "from segship.runtime.cli import main; main()"
LOAD = "import sys; from segship.runtime import Segmenter; Segmenter(sys.argv[1], backend=sys.argv[2], device='cpu')"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--backend", default="ort", show_default=True, help="Engine.")
@click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Of each program, in turns.")
def cold_start(model: Path, picture: Path, backend: str, runs: int) -> None:
    """Measure what seg-infer takes to write the mask of one PICTURE with MODEL, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/out", "--save", "mask", "--overwrite", "--quiet"]
        programs = {
            "python": ["-c", "pass"],
            "seg-infer --help": ["-c", COMMAND, "--help"],
            "import segship.runtime": ["-c", "import segship.runtime"],
            "from segship.runtime import Segmenter": ["-c", "from segship.runtime import Segmenter"],
            "Segmenter(MODEL)": ["-c", LOAD, str(model), backend],
            "seg-infer MODEL PICTURE": ["-c", COMMAND, str(model), str(picture), "--backend", backend, *out],
        }
        environment = installed_environment(Path(folder) / "bytecode")
        times_s: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(runs + 1):
            for name, program in programs.items():
                seconds = _time(program, environment)
                if turn:  # the first one compiles Python's modules, as an installation does
                    times_s[name].append(seconds)
    table = Table(title=f"from start to exit, {runs} runs each, in turns")
    for column in ("process", "median s", "fastest s", "slowest s"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, seconds_each in times_s.items():
        figures = (statistics.median(seconds_each), min(seconds_each), max(seconds_each))
        table.add_row(name, *(f"{value:.3f}" for value in figures))
    Console(width=100).print(table)


def _time(program: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    command = [sys.executable, *program]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)  # noqa: S603  # our own command
    return time.perf_counter() - start


if __name__ == "__main__":
    run(cold_start)
