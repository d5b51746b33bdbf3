"""The folder that ``seg-bench --out`` names: what a run writes there, and a comparison."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from segship.benchmarks.bench_plots import LATENCY, PARETO, draw_latency, draw_pareto
from segship.benchmarks.bench_table import bench_markdown
from segship.benchmarks.compare_runs import RowComparison, plain_comparison
from segship.benchmarks.compare_table import comparison_markdown
from segship.benchmarks.model_update import write_update
from segship.benchmarks.record import Bench, write_bench
from segship.runtime.errors import OutputError
from segship.runtime.files import write_text
from segship.runtime.render import RgbImage

RUN: Final = ("bench.json", "bench.md", PARETO, LATENCY, "update.json", "update.md", "update.png")
"""What is in the folder of a run: of one without data some are missing."""


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, before anything is measured; what is not there is not made.

    Raises:
        OutputError: if it is there and must not be written over, is no folder, or nothing can be written into it.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out} is there already; add --overwrite, or choose another name")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is no folder; choose another name")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for folder in made:
            folder.rmdir()
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}") from error


def write_run(bench: Bench, out: Path, sheet: RgbImage | None = None) -> None:
    """Write a run's record, tables and plots, each file whole; then remove what only an earlier run wrote.

    Args:
        bench: the run.
        out: the folder; it is made if it is missing.
        sheet: the pictures that changed most, of a run with an update.

    Raises:
        OutputError: if a file cannot be written, or one of an earlier run not be removed.
    """
    write_bench(bench, out / "bench.json")
    drawn = [name for name, draw in ((PARETO, draw_pareto), (LATENCY, draw_latency)) if draw(bench, out / name)]
    write_text(out / "bench.md", bench_markdown(bench, drawn))
    written = {"bench.json", "bench.md", *drawn}
    if bench.update is not None:
        written |= write_update(bench.update, sheet, out)
    for path in (out / name for name in RUN if name not in written):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {path}, of an earlier run: {error.strerror}") from error


def write_comparison(rows: Sequence[RowComparison], out: Path) -> None:
    """Write ``comparison.json`` and ``comparison.md``.

    Raises:
        OutputError: if a file cannot be written.
    """
    write_text(out / "comparison.json", comparison_json(rows))
    write_text(out / "comparison.md", comparison_markdown(rows))


def comparison_json(rows: Sequence[RowComparison]) -> str:
    """Return a comparison as a JSON document."""
    return json.dumps(plain_comparison(rows), ensure_ascii=False)
