"""What became of each row of two records, for a terminal of any width and as Markdown."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from segship.benchmarks.bench_table import as_markdown, empty_table
from segship.benchmarks.compare_runs import RowComparison, TimeChange
from segship.benchmarks.record import NETWORK, PICTURE

_COLUMNS: Final = ("compared", "old", "new", "new / old", "verdict")
_COLORS: Final = {"slower": "red", "worse": "red", "failed": "red", "faster": "green", "better": "green"}


def comparison_tables(rows: Sequence[RowComparison]) -> tuple[Table, ...]:
    """Return a table of each row, under its name: so the verdict stands beside its figures in 80 characters, too."""
    every = [list(_lines(row)) for row in rows]
    # All are as wide as one, so that figures stand below each other.
    widths = [
        max(len(cells[place]) for cells in (_COLUMNS, *itertools.chain(*every))) for place in range(len(_COLUMNS))
    ]
    tables = []
    for row, lines in zip(rows, every, strict=True):
        table = empty_table(Text(row.name))
        for name, width in zip(_COLUMNS, widths, strict=True):
            table.add_column(name.ljust(width), overflow="fold")
        for cells in lines:
            table.add_row(*map(Text, cells[:-1]), Text(cells[-1], _COLORS.get(cells[-1], "")))
        tables.append(table)
    return tuple(tables)


def comparison_notes(rows: Sequence[RowComparison]) -> list[str]:
    """Return every warning once: by itself where all compared rows have it, else with the row's name."""
    compared = [row for row in rows if row.only_in is None]
    told = dict.fromkeys(warning for row in compared for warning in row.warnings)
    common = [warning for warning in told if all(warning in row.warnings for row in compared)]
    single = [f"{row.name}: {warning}" for row in compared for warning in row.warnings if warning not in common]
    return [*common, *single, *(f"{row.name}: {row.failure}" for row in rows if row.failure)]


def comparison_markdown(rows: Sequence[RowComparison]) -> str:
    """Return rows as Markdown tables, with the warnings as a list below them."""
    notes = "".join(f"- {note}\n" for note in comparison_notes(rows))
    return "\n".join(["# Comparison\n", *map(as_markdown, comparison_tables(rows)), *([notes] if notes else [])])


def _lines(row: RowComparison) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the cells of a row's lines, one for each thing that was compared."""
    if row.only_in is not None:
        verdict = "failed" if row.failure else f"only in {row.only_in}"
        yield ("row", *(("there", "–") if row.only_in == "old" else ("–", "there")), "", verdict)
        return
    if row.sha256 is not None:
        old, new = row.sha256
        yield "model", f"{old[:8]}…", f"{new[:8]}…", "", "same" if old == new else "another"
    for stage, time in ((PICTURE, row.picture), (NETWORK, row.network)):
        if time is not None:
            yield stage, f"{time.old_ms:.2f} ms", f"{time.new_ms:.2f} ms", *_ratio_cells(time)
    if row.miou is not None:
        old_miou, new_miou = row.miou.old, row.miou.new
        yield "mIoU", f"{old_miou:.4f}", f"{new_miou:.4f}", f"{new_miou - old_miou:+.4f}", row.miou.verdict
    for what, sizes in (("peak memory", row.peak_rss_bytes), ("GPU memory", row.device_bytes)):
        if sizes is not None:
            old_mb, new_mb = (size / 1e6 for size in sizes)
            yield what, f"{old_mb:.0f} MB", f"{new_mb:.0f} MB", f"{new_mb - old_mb:+.0f} MB", ""


def _ratio_cells(time: TimeChange) -> tuple[str, str]:
    ratio = time.ratio
    if math.isinf(ratio.high):
        return f"{ratio.median:.3f}", "too few samples"
    return f"{ratio.median:.3f} ({ratio.low:.3f}…{ratio.high:.3f})", time.verdict
