import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from segship.benchmarks.bench_table import fitting
from segship.benchmarks.compare_runs import (
    RowComparison,
    compare_benches,
    has_regressed,
    plain_comparison,
)
from segship.benchmarks.compare_table import comparison_markdown, comparison_notes, comparison_tables
from segship.benchmarks.record import Accuracy, Bench, BenchError, Entry, Failure, Latency, Memory, Subject
from segship.runtime.backends import EngineInfo

ENGINE = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2)
SUBJECT = Subject("nets/a.onnx", "ab" * 32, "unet", "ort", ENGINE, (48, 64), 1)
ACCURACY = Accuracy("demo, validation", 100, 0.65, 0.9, {})


def latency(day: int, *, picture_ms: float = 20.0, network_ms: float = 12.0, runs: int = 200) -> Latency:
    rng = np.random.default_rng(day)
    stages = {"picture": picture_ms, "network": network_ms}
    return Latency(
        {name: tuple((1e6 * ms * rng.lognormal(0, 0.05, runs)).astype(int).tolist()) for name, ms in stages.items()}, 10
    )


def entry(day: int = 1, **facts: Any) -> Entry:
    named = {field.name for field in dataclasses.fields(Subject)}
    subject = dataclasses.replace(SUBJECT, **{name: fact for name, fact in facts.items() if name in named})
    rest = {name: fact for name, fact in facts.items() if name not in named}
    return dataclasses.replace(Entry(subject, latency(day)), **rest)


def bench(*entries: Entry, **facts: Any) -> Bench:
    machine = {"CPU": "of some kind", "load before": "0.1"}
    made = Bench("2026-11-21T12:00:00Z", "seg-bench", False, "noise", machine, {"numpy": "2.4"}, 90, entries)
    return dataclasses.replace(made, **facts)


def compared(old: Entry, new: Entry) -> RowComparison:
    (row,) = compare_benches(bench(old), bench(new))
    return row


def shown(rows: tuple[RowComparison, ...], width: int = 160) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for part in (part for table in comparison_tables(rows) for part in (table.title or "", *fitting(table, width))):
            console.print(part)
    return "\n".join([capture.get(), *comparison_notes(rows)])


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_verdict_stands_beside_its_figures(width: int) -> None:
    model = "street-fastscnn-of-last-november-360x480-int8.onnx"
    facts = {"model": model, "accuracy": ACCURACY}
    old = bench(entry(1, memory=Memory(1, 2, 200_000_000), **facts), entry(1, batch=4))
    slow = latency(2, picture_ms=2000, network_ms=15)
    rows = compare_benches(
        old, bench(entry(2, latency=slow, memory=Memory(1, 2, 250_000_000), **facts), entry(2, batch=4))
    )
    lines = shown(rows, width).splitlines()
    assert max(map(len, lines)) <= width
    first = rows[0].picture
    assert first is not None
    ratio = f"{first.ratio.median:.3f} ({first.ratio.low:.3f}…{first.ratio.high:.3f})"
    (line,) = [one for one in lines if one.startswith("picture ") and ratio in one]
    assert line.split()[-1] == "slower"
    assert [one.split()[-1] for one in lines if one.startswith("mIoU ")] == ["difference"]
    assert any(one.strip() == f"{model}, ort, fp32, cpu, 48×64" for one in lines)
    starts = {one.index(" ms  ") for one in lines if one.startswith("network ")}
    assert len(starts) == 1  # figures of all rows stand below each other


def test_the_same_on_another_day_is_no_difference_and_warns_of_nothing() -> None:
    row = compared(entry(1, accuracy=ACCURACY), entry(2, accuracy=ACCURACY))
    assert row.picture is not None
    assert row.network is not None
    assert row.miou is not None
    assert (row.picture.verdict, row.network.verdict, row.miou.verdict) == ("no difference",) * 3
    assert row.only_in is None
    assert row.warnings == ()
    assert not has_regressed([row])


def test_a_tenth_more_time_of_one_stage_is_slower() -> None:
    row = compared(entry(1), entry(2, latency=latency(2, network_ms=13.2)))
    assert row.picture is not None
    assert row.network is not None
    assert (row.picture.verdict, row.network.verdict) == ("no difference", "slower")
    assert row.network.old_ms == pytest.approx(12, rel=0.02)
    assert row.network.new_ms == pytest.approx(13.2, rel=0.02)
    assert row.network.ratio.median == row.network.new_ms / row.network.old_ms
    assert has_regressed([row])


def test_a_tenth_is_found_and_nothing_is_not_on_nearly_every_pair_of_days() -> None:
    days = [(latency(2 * day), latency(2 * day + 1), latency(2 * day + 1, picture_ms=22)) for day in range(200)]
    slower = [compared(entry(latency=old), entry(latency=new)).has_regressed for old, _, new in days]
    same = [compared(entry(latency=old), entry(latency=new)).has_regressed for old, new, _ in days]
    assert sum(slower) >= 0.95 * len(days)
    assert sum(same) <= 0.05 * len(days)


def test_faster_is_no_regression() -> None:
    row = compared(entry(1), entry(2, latency=latency(2, picture_ms=15)))
    assert row.picture is not None
    assert row.picture.verdict == "faster"
    assert not has_regressed([row])


def test_the_margin_says_what_does_not_matter() -> None:
    old, new = bench(entry(1)), bench(entry(2, latency=latency(2, picture_ms=22)))
    assert has_regressed(compare_benches(old, new, margin=0.05))
    assert not has_regressed(compare_benches(old, new, margin=0.2))


@pytest.mark.parametrize(
    ("miou", "tolerance", "verdict"),
    [(0.64, 0.005, "worse"), (0.646, 0.005, "no difference"), (0.66, 0.005, "better"), (0.64, 0.02, "no difference")],
)
def test_accuracy_may_fall_within_its_tolerance(miou: float, tolerance: float, verdict: str) -> None:
    old = bench(entry(1, accuracy=ACCURACY))
    new = bench(entry(2, accuracy=dataclasses.replace(ACCURACY, miou=miou)))
    rows = compare_benches(old, new, tolerance=tolerance)
    assert rows[0].miou is not None
    assert rows[0].miou.verdict == verdict
    assert has_regressed(rows) == (verdict == "worse")


@pytest.mark.parametrize("accuracy", [None, dataclasses.replace(ACCURACY, images=50)])
def test_accuracy_on_other_pictures_is_not_compared_and_said(accuracy: Accuracy | None) -> None:
    row = compared(entry(1, accuracy=ACCURACY), entry(2, accuracy=accuracy))
    assert row.miou is None
    assert any(warning.startswith("accuracy: demo, validation, 100 pictures → ") for warning in row.warnings)


@pytest.mark.parametrize(("old", "new", "are_others"), [("ab", "cd", True), ("ab", "ab", False), ("", "cd", False)])
def test_as_many_other_pictures_are_other_pictures(old: str, new: str, are_others: bool) -> None:
    before, after = (dataclasses.replace(ACCURACY, names_digest=names) for names in (old, new))
    row = compared(entry(1, accuracy=before), entry(2, accuracy=after))
    assert (row.miou is None) == are_others
    assert row.warnings == (("accuracy: demo, validation has other pictures than before",) if are_others else ())


def test_a_picture_of_a_record_that_does_not_tell_is_no_other_one() -> None:
    rows = compare_benches(bench(entry(1)), bench(entry(2), picture_digest="cd"))
    assert rows[0].warnings == ()


def test_memory_is_compared_where_both_have_it() -> None:
    row = compared(entry(1, memory=Memory(1, 2, 300, 40)), entry(2, memory=Memory(1, 2, 400)))
    assert row.peak_rss_bytes == (300, 400)
    assert row.device_bytes is None
    assert compared(entry(1, memory=Memory(1, 2, 3, 4)), entry(2, memory=Memory(1, 2, 3, 5))).device_bytes == (4, 5)
    assert compared(entry(1), entry(2, memory=Memory(1, 2, 3))).peak_rss_bytes is None


@pytest.mark.parametrize(
    "other",
    [
        {"model": "nets/b.onnx"},
        {"arch": "fastscnn"},
        {"asked": "ort:threads=1"},
        {"engine": dataclasses.replace(ENGINE, precision="fp16")},
        {"engine": dataclasses.replace(ENGINE, device="cuda:0")},
        {"size": (64, 64)},
        {"batch": 4},
    ],
)
def test_rows_of_one_record_alone_are_told_and_not_compared(other: dict[str, Any]) -> None:
    rows = compare_benches(bench(entry(1), entry(1, **other)), bench(entry(2)))
    assert [row.only_in for row in rows] == [None, "old"]
    rows = compare_benches(bench(entry(1)), bench(entry(2, **other), entry(2)))
    assert [row.only_in for row in rows] == [None, "new"]
    assert rows[1].picture is None
    assert "only in new" in shown(rows)
    assert not has_regressed(rows)


def test_rows_of_one_name_belong_together_by_their_folders_first() -> None:
    here, there = {"model": "here/a.onnx", "sha256": "11"}, {"model": "there/a.onnx", "sha256": "22"}
    rows = compare_benches(bench(entry(1, **here), entry(1, **there)), bench(entry(2, **there), entry(2, **here)))
    assert [row.sha256 for row in rows] == [("11", "11"), ("22", "22")]
    moved = compare_benches(bench(entry(1, **here)), bench(entry(2, model="elsewhere/a.onnx", sha256="33")))
    assert moved[0].sha256 == ("11", "33")
    assert "another" in shown(moved)


def test_what_ran_once_and_fails_now_is_a_regression() -> None:
    failure = Failure("elsewhere/b.onnx", "ort", "does not run: it is damaged")
    rows = compare_benches(bench(entry(1), entry(1, model="b.onnx")), bench(entry(2), failures=(failure,)))
    assert has_regressed(rows)
    assert "failed" in shown(rows)
    assert "b.onnx, ort, fp32, cpu, 48×64: does not run: it is damaged" in shown(rows)
    alone = compare_benches(bench(entry(1, model="b.onnx")), bench(failures=(failure,)))
    assert has_regressed(alone)


@pytest.mark.parametrize(
    "error", ["does not run: no", "batch 4 does not run: no", "batch 4 failed while it was timed: no"]
)
def test_a_row_is_failed_only_if_that_very_batch_did_not_run(error: str) -> None:
    failure = Failure("nets/a.onnx", "ort", error)
    rows = compare_benches(bench(entry(1), entry(1, batch=4)), bench(entry(2), failures=(failure,)))
    assert rows[1].failure == (error if error.startswith("batch 4") else "")
    assert has_regressed(rows) == error.startswith("batch 4")


@pytest.mark.parametrize("what", ["throughput, 8 at once", "batch 40 does not run", "cold start"])
def test_a_row_that_was_not_asked_for_is_not_failed_by_something_else(what: str) -> None:
    failure = Failure("nets/a.onnx", "ort", f"{what}: out of memory")
    rows = compare_benches(bench(entry(1), entry(1, batch=4)), bench(entry(2), failures=(failure,)))
    assert [row.failure for row in rows] == ["", ""]


def test_a_failure_is_of_its_own_path_where_several_files_have_one_name() -> None:
    here, there = {"model": "here/a.onnx"}, {"model": "there/a.onnx"}
    failure = Failure("there/a.onnx", "ort", "does not run: it is damaged")
    old = bench(entry(1), entry(1, **here), entry(1, **there))
    rows = compare_benches(old, bench(entry(2), failures=(failure,)))
    assert [row.failure for row in rows] == ["", "", "does not run: it is damaged"]
    assert [row.name.partition(",")[0] for row in rows] == ["nets/a.onnx", "here/a.onnx", "there/a.onnx"]


def test_accuracy_that_was_measured_once_and_fails_now_is_a_regression() -> None:
    old, new = bench(entry(1, accuracy=ACCURACY)), entry(2)
    failed = Failure("elsewhere/a.onnx", "ort", "accuracy: a.onnx has other classes")
    rows = compare_benches(old, bench(new, failures=(failed,)))
    assert has_regressed(rows)
    assert "a.onnx, ort, fp32, cpu, 48×64: accuracy: a.onnx has other classes" in shown(rows)
    for unrelated in (
        (),
        (dataclasses.replace(failed, error="throughput: no"),),
        (dataclasses.replace(failed, asked="x"),),
    ):
        assert not has_regressed(compare_benches(old, bench(new, failures=unrelated)))
    assert not has_regressed(compare_benches(bench(entry(1)), bench(new, failures=(failed,))))


def test_records_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(BenchError, match=r"no row in common; the old one has a\.onnx.* the new one b\.onnx"):
        compare_benches(bench(entry()), bench(entry(model="b.onnx")))


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        ({"quick": True}, "--quick: of the new record too little was measured"),
        ({"picture": "street.jpg"}, "picture: noise → street.jpg"),
        ({"picture_digest": "cd"}, "picture: noise is another one of the same name"),
        ({"machine": {"CPU": "of another kind"}}, "another machine: CPU: of some kind → of another kind"),
        ({"versions": {"numpy": "2.5"}}, "other versions: numpy: 2.4 → 2.5"),
        ({"versions": {"numpy": "2.4", "onnx": "1.23"}}, "other versions: onnx: untold → 1.23"),
    ],
)
def test_records_that_are_hard_to_compare_say_so_once(facts: dict[str, Any], warning: str) -> None:
    old = bench(entry(1), entry(1, batch=2), picture_digest="ab" if "picture_digest" in facts else "")
    rows = compare_benches(old, bench(entry(2), entry(2, batch=2), **facts))
    assert [row.warnings for row in rows] == [(warning,)] * 2
    assert shown(rows).count(warning) == comparison_markdown(rows).count(f"\n- {warning}\n") == 1


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"threads": 4}, "threads: 2 → 4"),
        ({"streams": 2}, "streams: 1 → 2"),
        ({"engine": "ONNX Runtime 1.30"}, "engine: ONNX Runtime 1.31.1 → ONNX Runtime 1.30"),
        ({"providers": (("CPUExecutionProvider", 9),)}, "nodes of each provider: untold → 9 CPUExecutionProvider"),
    ],
)
def test_rows_that_are_hard_to_compare_say_so_with_their_name(change: dict[str, Any], warning: str) -> None:
    new = entry(2, engine=dataclasses.replace(ENGINE, **change))
    rows = compare_benches(bench(entry(1), entry(1, batch=2)), bench(new, entry(2, batch=2)))
    assert [row.warnings for row in rows] == [(warning,), ()]
    assert f"a.onnx, ort, fp32, cpu, 48×64: {warning}" in shown(rows)


def test_the_load_of_the_moment_makes_no_other_machine() -> None:
    readings = {"load before": "7.5", "load after": "8", "GPU 0 under load": "1980 MHz of its processors"}
    machine = {"CPU": "of some kind"} | readings
    assert compare_benches(bench(entry(1)), bench(entry(2), machine=machine))[0].warnings == ()


def test_a_run_that_drifted_is_named() -> None:
    steady = latency(2).samples_ns
    drifting = tuple(int(sample * (1 + run / 400)) for run, sample in enumerate(steady["network"]))
    row = compared(entry(1), entry(2, latency=Latency(steady | {"network": drifting}, 10)))
    assert row.warnings == ("not stable: network drifted in the new record, or has too few samples there",)


def test_too_few_samples_are_no_verdict() -> None:
    row = compared(entry(1), entry(2, latency=latency(2, picture_ms=90, runs=3)))
    assert not has_regressed([row])
    assert "too few samples" in comparison_markdown([row]).partition("\n- ")[0]
    assert "no difference" not in comparison_markdown([row])


def test_a_stage_of_one_record_alone_is_not_compared_and_said() -> None:
    row = compared(entry(1), entry(2, latency=Latency({"picture": latency(2).samples_ns["picture"]}, 10)))
    assert row.network is None
    assert row.warnings == ("stages: network, picture → picture",)


def test_samples_that_are_no_times_are_refused() -> None:
    with pytest.raises(BenchError, match="above 0"):
        compared(entry(1), entry(2, latency=Latency({"picture": (0,) * 100}, 10)))


def test_plain_values_are_json_without_infinity() -> None:
    old, new = bench(entry(1), entry(1, batch=2)), bench(entry(2, latency=latency(2, runs=3)), entry(2, batch=2))
    short, long = json.loads(json.dumps(plain_comparison(compare_benches(old, new)), allow_nan=False))
    assert (short["picture"]["ratio"]["low"], short["picture"]["ratio"]["high"]) == (0, None)
    assert long["picture"]["ratio"]["high"] > 1
    assert long["has_regressed"] is False


def test_tables_show_each_figure_with_its_unit_and_names_as_they_are() -> None:
    facts = {"model": "[red]|\x1b.onnx", "accuracy": ACCURACY}
    old = entry(1, memory=Memory(1, 2, 200_000_000), **facts)
    new = entry(2, memory=Memory(1, 2, 250_000_000), latency=latency(2, network_ms=15), **facts)
    rows = compare_benches(bench(old), bench(new))
    table, markdown = shown(rows), comparison_markdown(rows)
    for words in ("200 MB", "250 MB", "+50 MB", "0.6500", "+0.0000", "slower", "no difference", " ms", "same"):
        assert words in table
        assert words in markdown
    assert r"[red]|\x1b.onnx, ort" in table
    assert r"### [red]|\x1b.onnx, ort" in markdown
    assert rows[0].network is not None
    assert f"| {rows[0].network.old_ms:.2f} ms | {rows[0].network.new_ms:.2f} ms | " in markdown
