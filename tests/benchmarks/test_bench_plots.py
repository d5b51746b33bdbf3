import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from segship.benchmarks import bench_plots
from segship.benchmarks.bench_plots import draw_latency, draw_pareto, pareto_front
from segship.benchmarks.distribution import Distribution
from segship.benchmarks.record import Accuracy, Bench, Entry, Latency, Subject
from segship.runtime.backends import EngineInfo


def entry(model: str, backend: str, precision: str, median_ms: float, miou: float | None = None) -> Entry:
    samples = np.random.default_rng(0).gamma(8, median_ms / 8, 60) * 1e6
    engine = EngineInfo(backend, f"{backend} 1.0", "cpu", precision, 2)
    accuracy = None if miou is None else Accuracy("camvid, validation", 101, miou, 0.9, {"sky": 0.9})
    picture = {"picture": tuple(samples.astype(int).tolist())}
    return Entry(Subject(model, "00", None, backend, engine, (360, 480), 1), Latency(picture, 5), accuracy=accuracy)


ENTRIES = (
    entry("road$1.onnx", "ort", "fp32", 13, 0.633),
    entry("road$1.onnx", "openvino", "fp32", 12, 0.633),
    entry("road$1.onnx", "openvino", "bf16", 7, 0.632),
    entry("road_int8.onnx", "ort", "int8", 8, 0.626),
    entry("_lake.onnx", "opencv", "fp64", 110, 0.664),
)
BENCH = Bench("2026-11-21", "seg-bench", False, "noise", {}, {}, 0, ENTRIES)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on."""
    drawn: list[Figure] = []
    new_figure = bench_plots.new_figure

    def kept(width_in: float, height_in: float) -> Figure:
        drawn.append(new_figure(width_in, height_in))
        return drawn[-1]

    monkeypatch.setattr(bench_plots, "new_figure", kept)
    return drawn


def colors(path: Path) -> int:
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def test_the_front_is_what_nothing_beats_in_one_without_losing_in_the_other() -> None:
    points = [(13.0, 0.63), (7.0, 0.62), (8.0, 0.61), (110.0, 0.66), (7.0, 0.60), (13.0, 0.63)]
    assert pareto_front(points) == [(7.0, 0.62), (13.0, 0.63), (110.0, 0.66)]


def test_accuracy_against_latency_shows_every_row_with_its_name(tmp_path: Path, figures: list[Figure]) -> None:
    assert draw_pareto(BENCH, tmp_path / "pareto.png")
    assert colors(tmp_path / "pareto.png") > 50
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    texts = [note.get_text() for note in axes.texts]
    assert texts == [r"road\$1", r"road\$1", r"road\$1", "road_int8", "_lake"]
    legend = axes.get_legend()
    assert legend is not None
    assert {"ort 1.0", "openvino 1.0", "opencv 1.0", "fp32", "bf16", "int8"} <= {
        text.get_text() for text in legend.get_texts()
    }


def test_points_stand_at_the_median_that_tables_show() -> None:
    samples = {"picture": (10_000_000, 10_000_000, 20_000_000, 20_000_000)}
    one = dataclasses.replace(ENTRIES[0], latency=Latency(samples, 5))
    assert bench_plots._median_ms(one) == Distribution.of([10, 10, 20, 20]).p50


def test_names_of_points_cover_neither_each_other_nor_a_point(tmp_path: Path, figures: list[Figure]) -> None:
    near = tuple(entry(f"network_{number}.onnx", "ort", "fp32", 10 + 0.2 * number, 0.6) for number in range(6))
    assert draw_pareto(dataclasses.replace(BENCH, entries=near), tmp_path / "pareto.png")
    (axes,) = figures[0].axes
    boxes = [Text.get_window_extent(note) for note in axes.texts]  # without its line to the point
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert axes.bbox.containsx(box.x0)
        assert axes.bbox.containsx(box.x1)
        for one in near:
            x, y = axes.transData.transform((bench_plots._median_ms(one), 0.6))
            assert not box.contains(x, y)


def test_without_accuracy_there_is_no_front(tmp_path: Path) -> None:
    bare = tuple(dataclasses.replace(one, accuracy=None) for one in ENTRIES)
    assert not draw_pareto(dataclasses.replace(BENCH, entries=bare), tmp_path / "pareto.png")
    assert not draw_latency(dataclasses.replace(BENCH, entries=()), tmp_path / "latency.png")
    assert list(tmp_path.iterdir()) == []


def test_one_point_alone_is_drawn(tmp_path: Path) -> None:
    assert draw_pareto(dataclasses.replace(BENCH, entries=ENTRIES[:1]), tmp_path / "pareto.png")


def test_runs_are_drawn_together_and_each_row_by_itself(tmp_path: Path, figures: list[Figure]) -> None:
    assert draw_latency(BENCH, tmp_path / "latency.png")
    together, *alone = figures[0].axes
    assert len(alone) == len(ENTRIES)
    names = [label.get_text() for label in together.get_yticklabels()]
    assert names[0] == "road\\$1.onnx\nort, fp32"
    for axes, one in zip(alone, ENTRIES, strict=True):
        times_ms = sorted(taken / 1e6 for taken in one.latency.samples_ns["picture"])
        assert f"p50 {times_ms[29]:.2f}   p99 {times_ms[59]:.2f}" in axes.texts[0].get_text()


def test_files_of_one_name_are_told_apart(tmp_path: Path, figures: list[Figure]) -> None:
    both = (entry("a/net.onnx", "ort", "fp32", 10, 0.6), entry("b/net.onnx", "ort", "fp32", 14, 0.61))
    bench = dataclasses.replace(BENCH, entries=both)
    assert draw_pareto(bench, tmp_path / "pareto.png")
    assert draw_latency(bench, tmp_path / "latency.png")
    assert [note.get_text() for note in figures[0].axes[0].texts] == ["a/net", "b/net"]
    names = [label.get_text() for label in figures[1].axes[0].get_yticklabels()]
    assert names == ["a/net.onnx\nort, fp32", "b/net.onnx\nort, fp32"]


def test_a_run_far_beyond_the_others_is_told_of(tmp_path: Path, figures: list[Figure]) -> None:
    samples = {"picture": (*range(10_000_000, 10_000_300), 95_000_000)}
    far = dataclasses.replace(ENTRIES[0], latency=Latency(samples, 5))
    assert draw_latency(dataclasses.replace(BENCH, entries=(far,), quick=True), tmp_path / "latency.png")
    together, alone = figures[0].axes
    assert "1 beyond, up to 95.0" in alone.texts[0].get_text()
    assert alone.get_xlim()[1] < 20
    assert together.get_xlim()[1] < 20
    assert "(quick)" in figures[0].get_suptitle()
