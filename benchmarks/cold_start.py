"""How long until the first mask lies there? From the start of the process to its end, everything cold but the disk.

    python -m segship.benchmarks.cold_start model.onnx picture.jpg --runs 11

What is run takes turns with what it can be compared with: the bare interpreter, ``--help``, and the imports alone.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from segship.benchmarks.processes import SEG_INFER, installed_environment, run_own
from segship.runtime.console import run

LOAD: Final = (
    "import sys; from segship.runtime import Segmenter; Segmenter(sys.argv[1], backend=sys.argv[2], device='cpu')"
)
_LIMIT_S: Final = 600.0


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
            "seg-infer --help": ["-c", SEG_INFER, "--help"],
            "import segship.runtime": ["-c", "import segship.runtime"],
            "from segship.runtime import Segmenter": ["-c", "from segship.runtime import Segmenter"],
            "Segmenter(MODEL)": ["-c", LOAD, str(model), backend],
            "seg-infer MODEL PICTURE": ["-c", SEG_INFER, str(model), str(picture), "--backend", backend, *out],
        }
        environment = installed_environment(Path(folder) / "bytecode")
        times_s: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(runs + 1):
            for name, program in programs.items():
                start = time.perf_counter()
                run_own(program, _LIMIT_S, name=name, environment=environment)
                if turn:  # the first one compiles Python's modules, as an installation does
                    times_s[name].append(time.perf_counter() - start)
    table = Table(title=f"from start to exit, {runs} runs each, in turns")
    for column in ("process", "median s", "fastest s", "slowest s"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, seconds_each in times_s.items():
        figures = (statistics.median(seconds_each), min(seconds_each), max(seconds_each))
        table.add_row(name, *(f"{value:.3f}" for value in figures))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(cold_start)
