"""What ``seg-bench`` found, as tables: for a terminal of any width, and as Markdown."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from segship.benchmarks.bench_notes import NOT_KNOWN, UNSTABLE, is_unstable, notes
from segship.benchmarks.distribution import Distribution, paired_ratio
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.operators import operator_table
from segship.benchmarks.record import PICTURE, STAGES, Bench, Entry, Memory, runs_of

_MEGABYTE: Final = 1e6
_TEXTS: Final = {"model", "engine", "device", "precision", "size", "certificate", "note", "class"}
_PADDING: Final = 3  # characters between two columns
Columns = dict[str, Callable[[Entry], str]]


def bench_tables(bench: Bench) -> tuple[Table, ...]:
    """Return all tables of a run, those without figures left out."""
    if not bench.entries:
        return ()
    quick = ", quick" if bench.quick else ""
    runs = runs_of([entry.latency for entry in bench.entries])
    tables = [
        _table(
            f"From a picture's bytes to its mask's, {runs} in turns{quick}",
            bench,
            _main(bench),
        ),
        _table(f"Its stages, p50 in ms{quick}", bench, _stages()),
        _table(f"Latency of a picture, ms{quick}", bench, _latencies()),
        _table(f"Throughput, start and memory{quick}", bench, _costs(bench)),
        _table(f"The network's p50 against the roofline{quick}", bench, _roofline()),
    ]
    tables += [_iou_table(bench)] if any(entry.accuracy for entry in bench.entries) else []
    tables += [operator_table(bench.entries)] if any(entry.operators for entry in bench.entries) else []
    return tuple(table for table in tables if table.columns[-1].header != "engine")  # it has figures


def fitting(table: Table, width: int) -> Iterator[Table]:
    """Yield a table, or parts of its columns one below the other where all do not fit beside each other.

    No cell is cut; one that is wider than all of a line is folded. What stands above and below the table is left out.

    Args:
        table: the table; its first column says in every part whose figures a row holds.
        width: characters in a line.
    """
    first, *widths = [
        max(map(cell_len, (_plain(column.header), *map(_plain, column.cells)))) + _PADDING for column in table.columns
    ]
    part, taken = [0], first
    for index, column_width in enumerate(widths, 1):
        if len(part) > 1 and taken + column_width - _PADDING > width:
            yield _chosen(table, part)
            part, taken = [0], first
        part.append(index)
        taken += column_width
    yield _chosen(table, part)


def empty_table(title: str | Text | None = None) -> Table:
    """Return a table of the form that all have here, without columns so far."""
    return Table(title=title, header_style="", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)


def as_markdown(table: Table) -> str:
    """Return a table as Markdown, its title above it."""
    lines = [f"### {table.title}", ""] if table.title else []
    heads = [_plain(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*([_plain(cell) for cell in column.cells] for column in table.columns), strict=True)
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
    return "\n".join(lines) + "\n"


def bench_markdown(bench: Bench, pictures: Sequence[str] = ()) -> str:
    """Return a whole run as Markdown: tables, what to know of them, figures, machine, versions and command.

    Args:
        bench: the run.
        pictures: names of files beside it that show figures.
    """
    parts = [f"# Benchmark{', quick' if bench.quick else ''}\n", f"{bench.made}\n", f"```shell\n{bench.command}\n```\n"]
    parts += [as_markdown(table) for table in bench_tables(bench)]
    parts += ["".join(f"- {_cell(line)}\n" for line in notes(bench))]
    parts += [f"![{name.partition('.')[0]}]({name})\n" for name in pictures]
    for title, facts in (("Machine", bench.machine), ("Versions", bench.versions)):
        table = Table("", "", title=title)
        for name, value in facts.items():
            table.add_row(Text(name), Text(value))
        parts.append(as_markdown(table))
    return "\n".join(parts)


def _main(bench: Bench) -> Columns:
    first = bench.entries[0]
    return {
        "device": _where_they_differ(bench, lambda entry: entry.subject.engine.device),
        "precision": lambda entry: entry.subject.precision,
        "size": lambda entry: "×".join(map(str, entry.subject.size)),
        "batch": _where_they_differ(bench, lambda entry: str(entry.subject.batch)),
        "mIoU": lambda entry: f"{entry.accuracy.miou:.4f}" if entry.accuracy else "",
        "p50 ms": lambda entry: _ms(_times(entry).p50),
        "p99 ms": lambda entry: _ms(_times(entry).p99),
        "× row 1": lambda entry: "" if entry is first else _ratio(first, entry),
        "images/s": lambda entry: (
            f"{max(one.images_per_s for one in entry.throughput):.1f}" if entry.throughput else ""
        ),
        "MB": lambda entry: f"{entry.memory.model_bytes / _MEGABYTE:.1f}" if entry.memory else "",
        "certificate": lambda entry: entry.subject.certificate or "none",
        "note": lambda entry: UNSTABLE if is_unstable(entry) else "",
    }


def _stages() -> Columns:
    def median(stage: str) -> Callable[[Entry], str]:
        return lambda entry: _ms(_times(entry, stage).p50) if stage in entry.latency.samples_ns else ""

    return {stage: median(stage) for stage in (*STAGES, PICTURE)}


def _latencies() -> Columns:
    def figure(name: str) -> Callable[[Entry], str]:
        return lambda entry: _ms(getattr(_times(entry), name))

    return {name: figure(name) for name in ("p50", "p90", "p95", "p99", "mean", "std", "min", "max")}


def _costs(bench: Bench) -> Columns:
    def images_per_s(concurrency: int) -> Callable[[Entry], str]:
        return lambda entry: "".join(
            f"{one.images_per_s:.1f}" for one in entry.throughput if one.concurrency == concurrency
        )

    def megabytes(of: Callable[[Memory], int | None]) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            taken = None if entry.memory is None else of(entry.memory)
            return "" if taken is None else f"{taken / _MEGABYTE:.0f}"

        return cell

    at_once = sorted({one.concurrency for entry in bench.entries for one in entry.throughput})
    return {
        **{f"images/s, {many} at once": images_per_s(many) for many in at_once},
        "cold start s": lambda entry: f"{statistics.median(entry.cold_start_s):.2f}" if entry.cold_start_s else "",
        "RAM MB, peak": megabytes(lambda memory: memory.peak_rss_bytes),
        "RAM MB above empty": megabytes(lambda memory: memory.peak_rss_bytes - memory.empty_rss_bytes),
        "GPU MB": megabytes(lambda memory: memory.device_bytes),
    }


def _roofline() -> Columns:
    def figure(name: str, form: str) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            if entry.roofline is None:
                return ""
            value = getattr(entry.roofline, name)
            return NOT_KNOWN if value is None else format(value, form)

        return cell

    return {
        "GFLOP": figure("gflop", ".2f"),
        "GB moved": figure("gbyte", ".3f"),
        "peak GFLOP/s": figure("peak_gflop_s", ".0f"),
        "peak GB/s": figure("peak_gbyte_s", ".1f"),
        "share": figure("share", ".0%"),
    }


def _table(title: str, bench: Bench, columns: Columns) -> Table:
    """Return a table of all rows; columns in which no row has anything are left out."""
    names = distinct_names(entry.subject.model for entry in bench.entries)
    keys: Columns = {
        "model": lambda entry: names[entry.subject.model],
        "engine": lambda entry: entry.subject.asked,
    }
    cells = {name: [cell(entry) for entry in bench.entries] for name, cell in (keys | columns).items()}
    filled = {"row": [str(number) for number, _ in enumerate(bench.entries, 1)]}
    filled |= {name: values for name, values in cells.items() if any(values)}
    return _of_columns(title, filled)


def _iou_table(bench: Bench) -> Table:
    """Return the IoU of each class, a column a row of the other tables."""
    measured = {str(number): entry.accuracy for number, entry in enumerate(bench.entries, 1) if entry.accuracy}
    names = list(dict.fromkeys(name for accuracy in measured.values() for name in accuracy.iou))
    columns = {"class": [*names, "pixel accuracy", "mIoU"]}
    for number, accuracy in measured.items():
        figures = [*(accuracy.iou.get(name) for name in names), accuracy.pixel_accuracy, accuracy.miou]
        columns[f"row {number}"] = ["–" if value is None else f"{value:.4f}" for value in figures]
    of = next(iter(measured.values()))
    return _of_columns(f"IoU by class, {of.images} pictures of {of.data}", columns)


def _of_columns(title: str, columns: dict[str, list[str]]) -> Table:
    table = empty_table(title)
    for name in columns:
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _chosen(table: Table, indices: Sequence[int]) -> Table:
    """Return some of a table's columns as a table."""
    part = empty_table()
    for index in indices:
        column = table.columns[index]
        part.add_column(column.header, justify=column.justify, overflow="fold")
    for cells in zip(*(table.columns[index].cells for index in indices), strict=True):
        part.add_row(*cells)
    return part


def _where_they_differ(bench: Bench, cell: Callable[[Entry], str]) -> Callable[[Entry], str]:
    """Return what makes a column's cells; empty ones if all rows have the same, which the notes tell."""
    return cell if len({cell(entry) for entry in bench.entries}) > 1 else lambda _: ""


def _times(entry: Entry, stage: str = PICTURE) -> Distribution:
    """Return the milliseconds that runs took."""
    return Distribution.of([taken / 1e6 for taken in entry.latency.samples_ns[stage]])


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _ratio(first: Entry, entry: Entry) -> str:
    ours, theirs = ([taken / one.subject.batch for taken in one.latency.samples_ns[PICTURE]] for one in (entry, first))
    pairs = min(len(ours), len(theirs))  # the slower one has its seconds after fewer turns
    ratio = paired_ratio(theirs[:pairs], ours[:pairs])
    return f"{ratio.median:.2f} ({ratio.low:.2f}…{ratio.high:.2f})"


def _plain(cell: object) -> str:
    return _cell(cell.plain if isinstance(cell, Text) else str(cell))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
