import dataclasses
import json
from pathlib import Path

import pytest

from segship.benchmarks.record import (
    Accuracy,
    Bench,
    BenchError,
    Entry,
    Failure,
    Latency,
    Memory,
    Operator,
    Roofline,
    Subject,
    Throughput,
    digest,
    read_bench,
    write_bench,
)
from segship.benchmarks.update_facts import ClassUpdate, Flips, ImageUpdate, ModelUpdate
from segship.runtime.backends import EngineInfo

ENGINE = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2, 1, (("CPUExecutionProvider", 12),))
BENCH = Bench(
    made="2026-11-21T12:00:00Z",
    command="seg-bench model.onnx",
    quick=True,
    picture="noise",
    machine={"cpu": "of some kind"},
    versions={"numpy": "2.4"},
    overhead_ns=90,
    entries=(
        Entry(
            Subject("nets/a.onnx", "ab" * 32, "unet", "ort", ENGINE, (48, 64), 2, "exact"),
            Latency({"network": (5, 6), "picture": (7, 8)}, 10),
            (Throughput(1, 20, 0.5),),
            (0.5, 0.6),
            Memory(10, 20, 30),
            Accuracy("demo, validation", 3, 0.5, 0.75, {"road": 0.5, "sky": None}),
            Roofline(1.5, 0.25, None, 10.0, None),
            (Operator("Conv", "CPUExecutionProvider", 9, 1.5, 0.75),),
        ),
        Entry(Subject("b.onnx", "cd" * 32, None, "opencv", ENGINE, (48, 64), 1), Latency({"network": (5,)}, 10)),
    ),
    failures=(Failure("c.onnx", "openvino", "it is not installed"),),
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_bench(BENCH, tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == BENCH


def test_a_record_of_before_there_were_digests_is_read(tmp_path: Path) -> None:
    write_bench(BENCH, tmp_path / "bench.json")
    values = json.loads((tmp_path / "bench.json").read_text())
    del values["picture_digest"], values["update"]
    for row in values["entries"]:
        del row["subject"]["file_precision"]
    del values["entries"][0]["accuracy"]["names_digest"]
    (tmp_path / "bench.json").write_text(json.dumps(values))
    assert read_bench(tmp_path / "bench.json") == BENCH


def test_an_update_is_part_of_a_record(tmp_path: Path) -> None:
    flips = Flips(9, 1, 2, 3)
    classes, images = (ClassUpdate("road", flips, 0.5, None),), (ImageUpdate(0, "a", flips, None, 0.5),)
    update = ModelUpdate("a", "b", flips, 0.5, 0.6, 0.7, 0.8, (-0.1, 0.2), classes, images)
    bench = dataclasses.replace(BENCH, update=update, picture_digest=digest(b"a picture"))
    write_bench(bench, tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == bench


@pytest.mark.parametrize(
    ("file", "engine", "arithmetic", "shown"),
    [
        ("", "bf16", "bf16", "bf16"),
        ("fp32", "bf16", "bf16", "bf16"),
        ("int8", "int8", "int8", "int8"),
        ("int8", "bf16", "int8", "int8 (bf16)"),
    ],
)
def test_the_precision_is_the_engines_but_that_of_int8_files(
    file: str, engine: str, arithmetic: str, shown: str
) -> None:
    info = dataclasses.replace(ENGINE, precision=engine)
    subject = dataclasses.replace(BENCH.entries[1].subject, engine=info, file_precision=file)
    assert (subject.arithmetic, subject.precision) == (arithmetic, shown)
    assert subject.name == f"b.onnx, opencv, {shown}"


def test_rows_and_rates_have_names_and_units() -> None:
    first, second = BENCH.entries
    assert (first.subject.name, second.subject.name) == ("a.onnx, ort, fp32, batch 2", "b.onnx, opencv, fp32")
    assert first.throughput[0].images_per_s == 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "no JSON document"),
        ("[" * 100_000, "no JSON document"),
        ("[]", "expected an object"),
        ('{"format": 2}', "update segship"),
        ('{"format": 1}', "lacks"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(BenchError, match=words):
        read_bench(tmp_path / "bench.json")


def test_a_record_with_a_wrong_value_says_where(tmp_path: Path) -> None:
    write_bench(BENCH, tmp_path / "bench.json")
    values = json.loads((tmp_path / "bench.json").read_text())
    values["entries"][0]["latency"]["samples_ns"]["network"][1] = "x"
    (tmp_path / "bench.json").write_text(json.dumps(values))
    with pytest.raises(BenchError, match=r"entries\[0\]\.latency\.samples_ns\.network\[1\]"):
        read_bench(tmp_path / "bench.json")


def test_a_record_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        read_bench(tmp_path / "none.json")
