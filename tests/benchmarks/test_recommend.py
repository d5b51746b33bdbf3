import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from segship.benchmarks import settings_search
from segship.benchmarks.accuracy import measure_accuracy
from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.halving import Contender
from segship.benchmarks.recommend import Wish, ranked, recommend, recommendation_lines, recommendation_table
from segship.benchmarks.record import Accuracy, BenchError
from segship.benchmarks.sampling import Rules
from segship.benchmarks.settings_search import WHOLE, Search
from segship.benchmarks.wishes import Tried
from segship.runtime.backends import EngineInfo
from segship.runtime.cli import main
from segship.runtime.segmenter import Segmenter
from segship.training.data import Dataset

FIRST = "val_0000, the first of demo, validation"
LONG_S = 1e6
"""So that no machine is too slow."""

TRIED = Tried("a.onnx", "ort", 1, EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2), None, 100, 8.0, 10.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs and one number of threads: what is measured is not looked at."""
    for name in ("SECOND_SCREEN", "WHOLE"):
        monkeypatch.setattr(settings_search, name, replace(WHOLE, warm_ups=0, runs=3 if name == "WHOLE" else 2))
    monkeypatch.setattr(settings_search, "THROUGHPUT_S", 0.0)


def test_the_answer_runs_as_it_was_found(
    tiny_model: Path,
    photo: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short: None,
) -> None:
    found = recommend([tiny_model], Wish(1e6, None), backends=["opencv"], device="cpu", threads=1, seconds=LONG_S)
    assert found.best is not None
    assert (found.best.asked, found.best.engine.threads, found.best.runs, found.best.lacks) == ("opencv", 1, 3, ())
    assert found.best.certificate is not None
    assert "one frame in twenty may take longer" in found.why
    assert "nothing else was tried" in found.why
    Image.fromarray(photo).save(tmp_path / "photo.png")
    words = [str(tmp_path / "photo.png") if word == "PICTURES" else word for word in shlex.split(found.command)]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "out"), "--save", "mask", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    with Segmenter(tiny_model, backend="opencv") as segmenter, Image.open(tmp_path / "out/mask/photo.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), segmenter(photo).labels)
    lines = recommendation_lines(found)
    assert found.command in lines
    assert any(line.startswith("its certificate: exact") for line in lines)


def test_accuracy_is_measured_once_for_each_file_engine_and_precision(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    measured: list[tuple[str, str]] = []

    def noted(segmenter: Segmenter, dataset: Dataset, data_name: str) -> Accuracy:
        measured.append((segmenter.model.name, segmenter.info.backend))
        return measure_accuracy(segmenter, dataset, data_name)

    monkeypatch.setattr(settings_search, "measure_accuracy", noted)
    wish, backends = Wish(None, 0.0, min_images_per_s=1e-6), ["opencv", "ort"]
    models = [tiny_model, Path(shutil.copy(tiny_model, tmp_path / "again.onnx"))]
    found = recommend(models, wish, backends=backends, threads=2, data="demo", limit=2, seconds=LONG_S)
    assert sorted(measured) == sorted((model.name, backend) for model in models for backend in ("opencv", "ort"))
    assert found.best is not None
    assert found.best.miou is not None
    assert found.best.images_per_s is not None
    assert all(one.miou is not None for one in found.tried if not one.lacks)
    assert {one.asked for one in found.tried} == {"ort", "ort:streams=2", "opencv"}


def test_where_nothing_fits_it_says_what_comes_nearest_and_measures_no_accuracy(tiny_model: Path, short: None) -> None:
    wish = Wish(1e-6, 0.5)
    found = recommend([tiny_model], wish, backends=["ort", "opencv"], threads=1, data="demo", limit=2, seconds=LONG_S)
    assert (found.best, found.command, found.python) == (None, "", "")
    assert list(found.nearest) == ["max_latency_ms"]
    assert found.nearest["max_latency_ms"].p95_ms == min(one.p95_ms for one in found.tried)
    assert all(one.miou is None and "its fastest of 5 runs took" in one.lacks[0] for one in found.tried)
    assert found.why == "none of 2 tried fulfils: p95 ≤ 1e-06 ms, mIoU ≥ 0.5"
    assert any(line.startswith("nearest to p95: tiny.onnx, ") for line in recommendation_lines(found))


def test_a_model_that_takes_far_too_long_is_not_tried_with_other_settings(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    monkeypatch.setattr("segship.benchmarks.candidates.available_cpus", lambda: 2)
    found = recommend([tiny_model], Wish(1e-6, None), backends=["opencv"], seconds=LONG_S)
    assert len(found.tried) == 1
    assert [one.name for one in found.untried] == ["tiny.onnx, opencv, 1 other settings"]


def test_what_is_not_right_enough_says_how_right_it_is(tiny_model: Path, short: None) -> None:
    found = recommend([tiny_model], Wish(None, 1.0), backends=["ort"], threads=1, data="demo", limit=2, seconds=LONG_S)
    nearest = found.nearest["min_miou"]
    assert found.best is None
    assert nearest.lacks == (f"mIoU {nearest.miou:.4g}, less than 1",)


def test_memory_is_that_of_a_process(tiny_model: Path, short: None) -> None:
    wish = Wish(None, None, max_memory_mb=1.0)
    (one,) = recommend([tiny_model], wish, backends=["opencv"], threads=1, seconds=LONG_S).tried
    assert one.memory_mb is not None
    assert one.memory_mb > 10
    assert one.lacks == (f"peak memory {one.memory_mb:.4g} MB, more than 1",)


def test_without_time_one_is_tried_and_the_rest_is_told(tiny_model: Path) -> None:
    found = recommend([tiny_model], Wish(1e6, None), backends=["ort", "opencv"], threads=1, seconds=0)
    assert found.best is None
    assert [(one.asked, one.runs, one.lacks) for one in found.tried] == [("ort", 5, ("time ran out after 5 runs",))]
    assert [(one.name, one.why) for one in found.untried] == [("tiny.onnx, opencv, 1 thread", "time ran out")]
    assert found.why.endswith("as far as that was measured in time; give more of it")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take lines that a search tells: its time is up once everything is timed."""
    now = 0.0

    def tell(line: str) -> None:
        nonlocal now
        if line.startswith("timing") and line.endswith("3 runs of each"):
            now = 2 * LONG_S

    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(settings_search, "time", clock)
    return tell


def test_however_little_time_is_left_one_is_measured_in_all_that_is_asked_for(
    tiny_model: Path, late: Callable[[str], None], short: None
) -> None:
    wish, options = Wish(1e6, 0.0, min_images_per_s=1e-6), {"data": "demo", "limit": 2, "seconds": LONG_S}
    found = recommend([tiny_model], wish, backends=["ort", "opencv"], threads=1, tell=late, **options)
    first, second = found.tried
    assert found.best == first
    assert first.images_per_s is not None
    assert first.miou is not None
    assert second.lacks == ("time ran out: throughput not measured",)


def test_what_there_was_no_time_for_is_no_proof_that_nothing_fits(
    tiny_model: Path, late: Callable[[str], None], short: None
) -> None:
    wish, options = Wish(1e6, None, min_images_per_s=1e12), {"data": "demo", "limit": 2, "seconds": LONG_S}
    found = recommend([tiny_model], wish, backends=["ort", "opencv"], threads=1, tell=late, **options)
    assert found.best is None
    assert found.why == f"none of 2 tried fulfils: {wish}, as far as that was measured in time; give more of it"
    found = recommend([tiny_model], wish, backends=["opencv"], threads=1, tell=late, **options)
    assert found.best is None
    assert found.why == f"none of 1 tried fulfils: {wish}"


def test_more_is_begun_only_if_there_is_time_to_run_it(tiny_model: Path, short: None) -> None:
    search = Search([tiny_model], Wish(1e6, None), 100.0, lambda _: None, data=None, limit=None, picture=None)
    choice = Choice(tiny_model, "opencv", "cpu", threads=1)
    first, second, third = (Contender(choice, replace(TRIED, p50_ms=p50)) for p50 in (1.0, 2.0, 3.0))
    first.run_s, second.run_s, third.run_s = 1.0, 16.0, 1.0
    rules = Rules(warm_ups=0, runs=3, seconds=0.0)
    assert search._sample([third, second, first], rules, 0.4) == [first, third]
    assert second.tried.lacks == ("time ran out after 100 runs",)
    assert first.run_s > first.fastest_ms / 1000
    first.run_s = 16.0
    assert search._sample([first], rules, 0.4) == [first]


def test_an_engine_that_fails_while_it_is_timed_is_left_and_the_rest_goes_on(
    tiny_model: Path, opencv_fails_at: Callable[..., Any], short: None
) -> None:
    opencv_fails_at(9)
    found = recommend([tiny_model], Wish(1e6, None), backends=["opencv", "ort"], threads=1, data="demo", seconds=LONG_S)
    assert found.best is not None
    assert found.best.asked == "ort"
    failed = found.tried[-1]
    assert (failed.asked, failed.is_screened) == ("opencv", True)
    assert failed.lacks == ("failed while it was timed beside the others: out of memory, on purpose",)


def test_what_was_slower_than_an_engine_that_fails_gets_another_chance(
    tiny_model: Path, opencv_fails_at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    note = Contender.note

    def opencv_is_faster(self: Contender, *arguments: Any, **more: Any) -> None:
        note(self, *arguments, **more)
        self.tried = replace(self.tried, p50_ms=1.0 if self.choice.backend == "opencv" else 1e5)

    monkeypatch.setattr(Contender, "note", opencv_is_faster)
    opencv_fails_at(9)
    found = recommend([tiny_model], Wish(1e6, None), backends=["opencv", "ort"], threads=1, seconds=LONG_S)
    assert found.best is not None
    assert (found.best.asked, found.best.runs) == ("ort", 3)
    opencv_fails_at(float("inf"))
    found = recommend([tiny_model], Wish(1e6, None), backends=["opencv", "ort"], threads=1, seconds=LONG_S)
    assert found.best is not None
    assert found.best.asked == "opencv"
    assert found.tried[1].lacks == ("slower than others, after 5 runs",)


def test_an_engine_that_fails_while_it_is_screened_is_a_failure(
    tiny_model: Path, opencv_fails_at: Callable[..., Any], short: None
) -> None:
    opencv_fails_at(5)
    found = recommend([tiny_model], Wish(1e6, None), backends=["opencv", "ort"], threads=1, seconds=LONG_S)
    assert [one.asked for one in found.tried] == ["ort"]
    assert [(one.asked, one.error) for one in found.failures] == [("opencv", "out of memory, on purpose")]


def test_a_batch_of_the_settings_that_may_do_most_is_tried_where_a_rate_is_asked_for(
    open_model: Path, short: None
) -> None:
    wish = Wish(None, None, min_images_per_s=1e-6)
    found = recommend([open_model], wish, backends=["ort"], device="cpu", threads=2, seconds=LONG_S)
    batched = [one for one in found.tried if one.batch > 1]
    assert [one.batch for one in batched] == [4]
    single = [one for one in found.tried if one.batch == 1]
    assert [one.asked for one in sorted(single, key=lambda one: one.asked)] == ["ort", "ort:streams=2"]
    assert batched[0].asked in {one.asked for one in single}


def test_the_picture_is_the_one_asked_for_or_the_first_of_the_data(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    for options, name in (({}, "noise"), ({"data": "demo"}, FIRST), ({"data": "demo", "picture": path}, "photo.png")):
        assert recommend([tiny_model], Wish(1e6, None), backends=["ort"], seconds=0, **options).picture == name
    with pytest.raises(BenchError, match=r"cannot read nosuch\.png"):
        recommend([tiny_model], Wish(1e6, None), picture=Path("nosuch.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"wish": Wish(None, 0.6)}, "a mIoU of 0.6 can only be found with pictures and their truth; give --data"),
        ({"backends": ["nosuch"]}, "no engine runs models here .*nosuch"),
        ({"backends": ["opencv:nosuch=1"]}, "nosuch"),
    ],
)
def test_what_cannot_be_searched_is_an_error(tiny_model: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        recommend([tiny_model], **({"wish": Wish(20, None)} | arguments))


def test_data_of_other_classes_are_refused_before_anything_is_measured(binary_model: Path) -> None:
    with pytest.raises(BenchError, match="has the 2 classes rest, object"):
        recommend([binary_model], Wish(20, 0.5), data="demo")


def test_the_most_accurate_one_is_the_best_and_of_equal_ones_the_fastest() -> None:
    accurate, equal, fast = (replace(TRIED, miou=miou, p95_ms=ms) for miou, ms in ((0.71, 15), (0.7095, 12), (0.6, 5)))
    slow = replace(TRIED, p95_ms=30.0, lacks=("p95 30 ms, more than 20",))
    assert ranked(Wish(20, 0.5), [slow, fast, accurate, equal]) == [equal, accurate, fast, slow]
    assert ranked(Wish(None, 0.5), [fast, accurate, equal]) == [fast, equal, accurate]


def test_the_table_and_the_document_hold_every_figure(tiny_model: Path, short: None) -> None:
    wish = Wish(1e6, 0.0)
    found = recommend([tiny_model], wish, backends=["ort", "opencv"], threads=1, data="demo", limit=2, seconds=LONG_S)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["best"]["p95_ms"] == found.tried[0].p95_ms
    assert [one["asked"] for one in document["tried"]] == [one.asked for one in found.tried]
    console = Console(width=200, record=True)
    console.print(recommendation_table(found))
    text = console.export_text()
    assert all(f"{one.p95_ms:.2f}" in text and f"{one.miou:.4f}" in text for one in found.tried)
    assert "asked for: p95 ≤ 1e+06 ms, mIoU ≥ 0" in text
