import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from segship.benchmarks.bench_notes import notes
from segship.benchmarks.bench_table import as_markdown, bench_markdown, bench_tables, fitting
from segship.benchmarks.record import (
    Accuracy,
    Bench,
    Entry,
    Failure,
    Latency,
    Memory,
    Operator,
    Roofline,
    Subject,
    Throughput,
)
from segship.runtime.backends import EngineInfo

ORT = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2)
OPENVINO = EngineInfo("openvino", "OpenVINO 2026.4.1", "cpu", "bf16", 2)
STEADY = tuple(10_000_000 + 1_000 * number for number in range(100))


def entry(asked: str, engine: EngineInfo, *, times: int = 1, batch: int = 1, steady: bool = True, **more: Any) -> Entry:
    """A row whose runs take 10 ms, or so many times as long."""
    picture = tuple(times * taken * (1 if steady or number < 70 else 2) for number, taken in enumerate(STEADY))
    subject = Subject("models/road.onnx", "ab" * 32, "fastscnn", asked, engine, (360, 480), batch, "exact")
    samples = {"decode": STEADY, "network": picture, "picture": picture}
    return Entry(subject, Latency(samples, 10), **more)


FIRST = entry(
    "ort",
    ORT,
    throughput=(Throughput(1, 100, 1.0), Throughput(2, 300, 2.0)),
    cold_start_s=(0.5, 0.7, 0.9),
    memory=Memory(4_500_000, 65_000_000, 133_000_000),
    accuracy=Accuracy("camvid, validation", 101, 0.6125, 0.9, {"sky": 0.93, "pole": None}),
    roofline=Roofline(1.15, 0.091, 150.0, 20.0, 0.42),
    operators=(Operator("Conv", "CPUExecutionProvider", 45, 7.3, 0.958),),
)
SECOND = entry("openvino:precision=engine", OPENVINO, times=3)
BENCH = Bench(
    *("2026-11-21T18:00:00+00:00", "seg-bench road.onnx | cat", False, "noise, 360×480"),
    *({"CPU": "Zen 5"}, {"numpy": "2.4"}, 1000, (FIRST, SECOND)),
)
Change = Callable[..., Bench]


def column(table: Table, name: str) -> list[str]:
    found = next(one for one in table.columns if one.header == name)
    return [str(cell) for cell in found.cells]


def titled(bench: Bench, begin: str) -> Table:
    return next(table for table in bench_tables(bench) if str(table.title).startswith(begin))


def shown(table: Table, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        for part in fitting(table, width):
            console.print(part)
    return capture.get().splitlines()


def test_the_first_table_holds_what_one_chooses_by() -> None:
    table = titled(BENCH, "From a picture's bytes")
    expected = {
        "model": ["road.onnx", "road.onnx"],
        "engine": ["ort", "openvino:precision=engine"],
        "precision": ["fp32", "bf16"],
        "mIoU": ["0.6125", ""],
        "p50 ms": ["10.05", "30.15"],
        "p99 ms": ["10.10", "30.29"],
        "× row 1": ["", "3.00 (3.00…3.00)"],
        "images/s": ["150.0", ""],
        "MB": ["4.5", ""],
        "certificate": ["exact", "exact"],
    }
    assert {name: column(table, name) for name in expected} == expected
    assert "batch" not in [one.header for one in table.columns]  # all rows have the same


def test_each_figure_has_its_table() -> None:
    stages = titled(BENCH, "Its stages")
    assert [one.header for one in stages.columns[3:]] == ["decode", "network", "picture"]
    assert column(stages, "decode") == ["10.05", "10.05"]
    costs = titled(BENCH, "Throughput")
    assert column(costs, "images/s, 1 at once") == ["100.0", ""]
    assert column(costs, "images/s, 2 at once") == ["150.0", ""]
    assert column(costs, "cold start s") == ["0.70", ""]
    assert column(costs, "RAM MB, peak") == ["133", ""]
    assert column(costs, "RAM MB above empty") == ["68", ""]
    assert "GPU MB" not in [one.header for one in costs.columns]
    roof = titled(BENCH, "The network's p50")
    assert (column(roof, "GFLOP"), column(roof, "share")) == (["1.15", ""], ["42%", ""])
    assert column(titled(BENCH, "Operators"), "operator") == ["Conv"]


def test_the_spread_of_a_pictures_time_is_shown_whole() -> None:
    table = titled(BENCH, "Latency of a picture, ms")
    names = ["p50", "p90", "p95", "p99", "mean", "std", "min", "max"]
    assert [one.header for one in table.columns[3:]] == names
    assert [column(table, name)[1] for name in names] == [
        *("30.15", "30.27", "30.28", "30.29"),
        *("30.15", "0.09", "30.00", "30.30"),
    ]


@pytest.mark.parametrize(("share", "is_told"), [(1.004, False), (1.1, True), (None, False)])
def test_a_share_above_all_is_explained(share: float | None, is_told: bool) -> None:
    high = dataclasses.replace(FIRST, roofline=Roofline(1.15, 0.091, 150.0, 20.0, share))
    found = [note for note in notes(dataclasses.replace(BENCH, entries=(FIRST, high))) if "above 100 %" in note]
    assert bool(found) == is_told
    assert all("(row 2): " in note and "Winograd" in note for note in found)


@pytest.mark.parametrize(("precision", "device"), [("fp16", "cpu"), ("fp32", "cuda:0")])
def test_a_roof_that_is_not_known_is_said_with_its_reason(precision: str, device: str) -> None:
    engine = dataclasses.replace(ORT, precision=precision, device=device)
    bare = entry("ort", engine, roofline=Roofline(1.15, 0.091, None, None, None))
    bench = dataclasses.replace(BENCH, entries=(FIRST, bare))
    table = titled(bench, "The network's p50")
    assert [column(table, name)[1] for name in ("GFLOP", "peak GFLOP/s", "share")] == ["1.15", "n/a", "n/a"]
    (reason,) = [note for note in notes(bench) if note.startswith("n/a")]
    assert reason.startswith(f"n/a (row 2): no peak of {precision} on {device} is known; peaks are measured on the CPU")
    assert not any(note.startswith("n/a") for note in notes(BENCH))


def test_the_rate_is_said_to_be_of_less_than_the_title_tells() -> None:
    said = "images/s: of decoded pictures to labels, at the fastest number of runs at once."
    assert said in notes(BENCH)
    assert f"- {said}\n" in bench_markdown(BENCH)
    assert said not in notes(dataclasses.replace(BENCH, entries=(SECOND,)))


def test_files_of_one_name_keep_their_folders() -> None:
    other = dataclasses.replace(SECOND, subject=dataclasses.replace(SECOND.subject, model="old/road.onnx"))
    bench = dataclasses.replace(BENCH, entries=(FIRST, other))
    assert column(titled(bench, "From"), "model") == ["models/road.onnx", "old/road.onnx"]


def test_an_int8_file_is_called_so_whatever_the_engine_makes_of_the_rest() -> None:
    other = dataclasses.replace(SECOND, subject=dataclasses.replace(SECOND.subject, file_precision="int8"))
    bench = dataclasses.replace(BENCH, entries=(FIRST, other))
    assert column(titled(bench, "From"), "precision") == ["fp32", "int8 (bf16)"]


def test_what_an_engine_does_not_have_is_told() -> None:
    bare = dataclasses.replace(SECOND, lacks=("throughput, 2 at once: it runs one at a time",))
    told = notes(dataclasses.replace(BENCH, entries=(FIRST, bare)))
    assert told[-1] == "Left out of row 2: throughput, 2 at once: it runs one at a time."


def test_the_table_of_classes_tells_a_class_that_is_nowhere_from_one_at_zero() -> None:
    table = titled(BENCH, "IoU by class, 101 pictures of camvid, validation")
    assert column(table, "class") == ["sky", "pole", "pixel accuracy", "mIoU"]
    assert column(table, "row 1") == ["0.9300", "–", "0.9000", "0.6125"]


def test_what_was_not_measured_has_no_table() -> None:
    bare = dataclasses.replace(BENCH, entries=(SECOND,))
    assert [str(table.title).split(",")[0] for table in bench_tables(bare)] == [
        "From a picture's bytes to its mask's",
        "Its stages",
        "Latency of a picture",
    ]
    assert bench_tables(dataclasses.replace(BENCH, entries=())) == ()


def test_the_title_says_how_many_runs_there_are() -> None:
    assert "100 runs of each in turns" in str(bench_tables(BENCH)[0].title)
    few = {stage: samples[:40] for stage, samples in SECOND.latency.samples_ns.items()}
    mixed = dataclasses.replace(BENCH, entries=(FIRST, dataclasses.replace(SECOND, latency=Latency(few, 10))))
    assert "40 to 100 runs of each in turns" in str(bench_tables(mixed)[0].title)


def test_quick_is_said_in_titles() -> None:
    assert not any("quick" in str(table.title) for table in bench_tables(BENCH))
    quick = bench_tables(dataclasses.replace(BENCH, quick=True))
    assert all(str(table.title).endswith(", quick") for table in quick[:5])


def test_a_row_that_drifts_is_marked_and_explained() -> None:
    drifting = dataclasses.replace(BENCH, entries=(FIRST, entry("ort", ORT, steady=False)))
    assert column(titled(drifting, "From"), "note") == ["", "unstable"]
    assert any(note.startswith("unstable: ") for note in notes(drifting))
    assert not any(note.startswith("unstable: ") for note in notes(BENCH))


def test_batches_are_compared_by_the_picture() -> None:
    bench = dataclasses.replace(BENCH, entries=(FIRST, entry("ort", ORT, times=4, batch=4)))
    table = titled(bench, "From")
    assert column(table, "batch") == ["1", "4"]
    assert column(table, "× row 1")[1].startswith("1.00 ")
    assert any("of a batch of 4" in note for note in notes(bench))


@pytest.mark.parametrize(("overhead_ns", "is_told"), [(99_000, False), (120_000, True)])
def test_what_measuring_adds_is_told_from_one_percent_on(overhead_ns: int, is_told: bool) -> None:
    found = [note for note in notes(dataclasses.replace(BENCH, overhead_ns=overhead_ns)) if "Measuring itself" in note]
    assert bool(found) == is_told
    if is_told:
        assert "120 µs" in found[0]
        assert "1.2%" in found[0]


def test_what_failed_and_what_ran_is_in_the_notes() -> None:
    told = notes(dataclasses.replace(BENCH, failures=(Failure("road.onnx", "tensorrt", "no GPU"),)))
    assert told[-1] == "Not measured: road.onnx, tensorrt: no GPU"
    assert "Row 1: ort (ONNX Runtime 1.31.1) on cpu in fp32, 2 CPU threads." in told
    assert "Picture: noise, 360×480." in told


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_width_cuts_a_cell(width: int) -> None:
    for table in bench_tables(BENCH):
        lines = shown(table, width)
        assert max(map(len, lines)) <= width
        words = {word for line in lines for word in line.split()}
        cells = [str(cell) for one in table.columns for cell in one.cells]
        assert {word for cell in cells for word in cell.split()} <= words
        assert not any("…" in line and "(" not in line for line in lines)  # but that of an interval


def test_a_cell_wider_than_the_line_is_folded_and_whole() -> None:
    table = Table("row", "certificate")
    table.add_row("1", "x" * 100)
    assert "".join(re.findall("x", "".join(shown(table, 40)))) == "x" * 100


def test_parts_of_a_wide_table_name_their_rows() -> None:
    parts = list(fitting(titled(BENCH, "From"), 60))
    assert len(parts) > 1
    assert all(column(part, "row") == ["1", "2"] for part in parts)
    names = [one.header for part in parts for one in part.columns[1:]]
    assert names == [one.header for one in titled(BENCH, "From").columns[1:]]


def test_markdown_holds_every_table_and_where_it_was_made() -> None:
    text = bench_markdown(BENCH, ["latency.png"])
    assert text.count("\n### ") == len(bench_tables(BENCH)) + 2
    for part in ("| CPU | Zen 5 |", "| numpy | 2.4 |", "seg-bench road.onnx | cat", "![latency](latency.png)"):
        assert part in text
    assert "| 1 | road.onnx | ort | fp32 | 360×480 | 0.6125 | 10.05 | 10.10 |" in text


def test_names_of_files_neither_break_markdown_nor_are_markup(tmp_path: Path) -> None:
    subject = dataclasses.replace(FIRST.subject, model="a|b[bold].onnx")
    bench = dataclasses.replace(BENCH, entries=(dataclasses.replace(FIRST, subject=subject),))
    table = titled(bench, "From")
    assert r"| a\|b[bold].onnx |" in as_markdown(table)
    assert any("a|b[bold].onnx" in line for line in shown(table, 120))
