import json
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.errors import EngineCrashError, ImageError, ModelError, OutputError, SegshipError
from segship.runtime.infer_report import InferReport, Style
from segship.runtime.source_item import SourceItem
from segship.runtime.sources import FileSource

WHAT = {"model": "model.onnx", "classes": ["road", "car"]}
ITEMS = [SourceItem(Path(f"{name}.png"), f"{name}.png", Path(f"{name}.png")) for name in ("a", "b", "ü \udce9")]
TIMINGS = {"network_ms": 2.0, "decode_ms": 1.0}


class Live(FileSource):
    """Pictures that did not wait."""

    is_live = True
    dropped = 7
    reconnections = 2


def entry(name: str = "a.png", **shares: float) -> dict[str, Any]:
    areas = {name: {"pixels": round(share * 100), "share": share} for name, share in shares.items()}
    return {"source": name, "height": 10, "width": 20, "areas": areas}


def told_of(index: int) -> dict[str, Any]:
    """Return all that is told of a picture that :func:`told` shows."""
    return {"index": index, **entry(road=0.25, car=0.75), "timings_ms": {"network": 2.0, "decode": 1.0}}


def told(
    capsys: pytest.CaptureFixture[str],
    style: Style,
    *,
    done: int = 2,
    skipped: int = 0,
    source: FileSource | None = None,
    out: Path | None = None,
    left_out: int = 0,
) -> tuple[str, str]:
    """Return stdout and stderr of a job of so many pictures."""
    with InferReport(WHAT, "what runs", source or FileSource(ITEMS), style=style) as report:
        for item in ITEMS[:skipped]:
            report.skip(item, ImageError(f"{item.name.encode(errors='backslashreplace').decode()}: damaged"))
        for _ in range(done):
            report.show(entry(road=0.25, car=0.75), TIMINGS)
        report.end(out, left_out=left_out)
        assert (report.done, report.skipped) == (done, skipped)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_line_a_picture_tells_the_largest_class_first(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = told(capsys, "lines", out=Path("out"))
    first, *pictures, last = out.splitlines()
    assert (first, err) == ("what runs", "")
    assert pictures == ["a.png  20×10  car 75.0%  road 25.0%"] * 2
    assert last.startswith("2 pictures in ")
    assert last.endswith(" → out/")


def test_classes_that_are_not_there_are_not_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with InferReport(WHAT, "what runs", FileSource(ITEMS), style="lines") as report:
        report.show(entry(road=0, car=1))
    assert capsys.readouterr().out.splitlines()[1] == "a.png  20×10  car 100.0%"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"done": 1}, "1 picture in "),
        ({"done": 0, "left_out": 3}, "0 pictures, 3 there already in "),
        ({"done": 2, "skipped": 1}, "2 pictures, 1 skipped in "),
        ({"source": Live(ITEMS)}, "2 pictures, 7 dropped for newer ones, reconnected 2 times in "),
    ],
)
def test_the_last_line_counts(capsys: pytest.CaptureFixture[str], job: dict[str, Any], words: str) -> None:
    out, _ = told(capsys, "lines", **job)
    assert out.splitlines()[-1].startswith(words)


def test_nothing_done_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert "→" not in told(capsys, "lines", done=0, out=Path("out"))[0]


def test_of_many_pictures_medians_and_bottleneck_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "median" not in told(capsys, "lines", done=9)[0]
    *_, medians, bottleneck = told(capsys, "lines", done=10)[0].splitlines()
    assert medians.startswith("median (busy): decode 1.0 ms (")
    assert bottleneck.startswith("bottleneck: ")


@pytest.mark.parametrize(("done", "skipped"), [(0, 0), (1, 0), (0, 1), (2, 3)])
def test_json_is_one_document_of_all(capsys: pytest.CaptureFixture[str], done: int, skipped: int) -> None:
    out, err = told(capsys, "json", done=done, skipped=skipped, left_out=4)
    document = json.loads(out)
    assert document["model"] == "model.onnx"
    assert document["images"] == [told_of(number) for number in range(done)]
    assert [one["source"] for one in document["skipped"]] == [item.name for item in ITEMS[:skipped]]
    assert (document["done"], document["left_out"]) == (done, 4)
    assert "dropped" not in document
    assert document["seconds"] > 0
    if done:
        assert document["stages"]["network"]["median_ms"] == 2
    assert err.count("skipped: ") == skipped


def test_jsonl_is_a_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = told(capsys, "jsonl", done=2, skipped=1, source=Live(ITEMS))
    job, skipped, *pictures, end = [json.loads(line) for line in out.splitlines()]
    assert job == {"job": WHAT}
    assert skipped == {"source": "a.png", "error": "a.png: damaged"}
    assert pictures == [told_of(0), told_of(1)]
    assert {key: end["end"][key] for key in ("done", "skipped", "dropped", "reconnections")} == {
        "done": 2,
        "skipped": 1,
        "dropped": 7,
        "reconnections": 2,
    }
    assert err == "skipped: a.png: damaged\n"


def test_quiet_tells_of_what_was_skipped_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "quiet", skipped=1) == ("", "skipped: a.png: damaged\n")


@pytest.mark.parametrize("error", [ImageError("damaged"), EngineCrashError("the engine died")])
def test_an_error_of_one_picture_is_told(error: SegshipError) -> None:
    with InferReport(WHAT, "what runs", FileSource(ITEMS), style="quiet") as report:
        report.skip(ITEMS[0], error)
        assert report.skipped == 1


@pytest.mark.parametrize("error", [ModelError("bad weights"), OutputError("the disk is full")])
def test_an_error_that_the_next_picture_would_meet_too_ends_the_job(error: SegshipError) -> None:
    with (
        InferReport(WHAT, "what runs", FileSource(ITEMS), style="quiet") as report,
        pytest.raises(type(error), match=str(error)),
    ):
        report.skip(ITEMS[0], error)


@pytest.mark.parametrize(
    ("style", "count", "terminals", "has_bar"),
    [
        ("json", 3, ("stderr",), True),
        ("lines", 3, ("stderr",), True),
        ("lines", 3, ("stderr", "stdout"), False),
        ("quiet", 3, ("stderr",), False),
        ("json", 1, ("stderr",), False),
        ("json", 3, (), False),
    ],
)
def test_a_bar_is_drawn_where_somebody_watches_and_nothing_scrolls(
    style: Style, count: int, terminals: tuple[str, ...], has_bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda is_one=name in terminals: is_one)
    with InferReport(WHAT, "what runs", FileSource(ITEMS[:count]), style=style) as report:
        assert (report._bar is not None) == has_bar
        report.show(entry(road=1))
        if report._bar is not None:
            assert [(task.completed, task.total) for task in report._bar.tasks] == [(1, 3)]
