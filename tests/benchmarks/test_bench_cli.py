import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from segship.benchmarks import bench as bench_module
from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.bench import run_bench
from segship.benchmarks.bench_files import check_folder, write_run
from segship.benchmarks.bench_options import BenchOptions, choices
from segship.benchmarks.cli import seg_bench
from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.record import Bench, BenchError, Entry, Failure, Throughput, read_bench, write_bench
from segship.benchmarks.wishes import Wish
from segship.runtime.errors import BackendError, OutputError
from segship.runtime.model_file import read_card, write_card

Command = Callable[..., tuple[int, str, str]]

HEAVY = {"numpy", "cv2", "PIL", "torch", "onnx", "onnxruntime", "rich", "matplotlib"}
HELP = """
import sys
heavy = set(sys.argv[1:])
sys.argv = ["seg-bench", "--help"]
from segship.benchmarks.cli import main
try:
    main()
except SystemExit as stopped:
    sys.exit(f"status {stopped.code}, imported {sorted(heavy & set(sys.modules))}")
"""


@pytest.fixture
def bench(command: Command) -> Command:
    """Run ``seg-bench``; return exit status, stdout and stderr."""
    return lambda *arguments: command(seg_bench, *arguments)


@pytest.fixture(scope="session")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of one network on the demo's classes, the second of which is less right than the first."""
    folder = tmp_path_factory.mktemp("models")
    card = dataclasses.replace(read_card(tiny_model), certificate=None)
    write_card(tiny_model, card, output=folder / "plain.onnx")
    graph = onnx.load(folder / "plain.onnx")
    for weights in graph.graph.initializer:
        array = numpy_helper.to_array(weights)
        if array.dtype.kind == "f" and array.ndim == 1:
            weights.CopyFrom(numpy_helper.from_array(array[::-1].copy(), weights.name))
    onnx.save(graph, folder / "turned.onnx")
    write_card(folder / "turned.onnx", card)
    dataset, name = held_out("demo", 2)
    right = {}
    for path in (folder / "plain.onnx", folder / "turned.onnx"):
        with open_choice(Choice(path, "ort", "cpu")) as segmenter:
            right[measure_accuracy(segmenter, dataset, name).miou] = path
    assert len(right) == 2
    return right[max(right)], right[min(right)]


@pytest.fixture(scope="session")
def run(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run with everything: a model and its worse successor in an engine that is there, and one that is not."""
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = [*map(str, models), "--backend", "ort", "--backend", "nosuch", "--device", "cpu", "--threads", "1"]
    arguments += ["--quick", "--profile", "--concurrency", "1", "--data", "demo", "--limit", "2", "--json"]
    return CliRunner().invoke(seg_bench, [*arguments, "--out", str(out)], standalone_mode=False), out


@pytest.fixture
def record(run: tuple[Result, Path]) -> Bench:
    return read_bench(run[1] / "bench.json")


def slower(bench: Bench, times: float) -> Bench:
    """The record of a machine on which everything takes so many times as long."""

    def row(entry: Entry) -> Entry:
        samples = {stage: tuple(round(times * one) for one in all_) for stage, all_ in entry.latency.samples_ns.items()}
        return dataclasses.replace(entry, latency=dataclasses.replace(entry.latency, samples_ns=samples))

    return dataclasses.replace(bench, entries=tuple(map(row, bench.entries)))


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *HEAVY], capture_output=True, text=True, check=False)
    assert done.stderr == "status 0, imported []\n"
    assert "--recommend" in done.stdout


def test_a_run_measures_everything_that_is_asked_for(record: Bench, models: tuple[Path, Path]) -> None:
    assert [Path(entry.subject.model) for entry in record.entries] == list(models)
    assert record.quick
    assert record.picture == "val_0000, the first of demo, validation"
    assert {"CPU", "usable threads", "load before", "load after"} <= record.machine.keys()
    assert {"segship", "Python", "numpy"} <= record.versions.keys()
    assert record.overhead_ns > 0
    for entry in record.entries:
        assert entry.subject.engine.threads == 1
        assert len(entry.latency.samples_ns["picture"]) >= 20
        assert {"decode", "preprocess", "network", "postprocess", "encode"} <= entry.latency.samples_ns.keys()
        assert [one.concurrency for one in entry.throughput] == [1]
        assert len(entry.cold_start_s) == 1
        assert entry.memory is not None
        assert entry.memory.peak_rss_bytes > entry.memory.empty_rss_bytes
        assert entry.accuracy is not None
        assert (entry.accuracy.data, entry.accuracy.images) == ("demo, validation", 2)
        assert entry.roofline is not None
        assert entry.roofline.share is not None
        assert "Conv" in {one.kind for one in entry.operators}


def test_what_cannot_run_is_a_failure_with_its_reason(run: tuple[Result, Path], record: Bench) -> None:
    assert [failed.asked for failed in record.failures] == ["nosuch", "nosuch"]
    assert all("no backend is called 'nosuch'" in failed.error for failed in record.failures)
    assert run[0].stderr.count("error: ") == 2
    assert run[0].return_value == 3


def test_a_run_writes_record_tables_and_figures(run: tuple[Result, Path], models: tuple[Path, Path]) -> None:
    result, out = run
    names = {path.name for path in out.iterdir()}
    assert {"bench.json", "bench.md", "pareto.png", "latency.png", "update.json", "update.md"} <= names
    assert json.loads(result.stdout) == json.loads((out / "bench.json").read_text())
    assert result.stderr.startswith(f"loading {models[0].name} into ort …\n")
    text = (out / "bench.md").read_text()
    for part in (*(model.name for model in models), "quick", "![pareto](pareto.png)", "![latency](latency.png)"):
        assert part in text


@pytest.fixture
def measured(record: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A run as if it had just been measured, without what failed and without its update."""
    bench = dataclasses.replace(record, failures=(), update=None)
    monkeypatch.setattr("segship.benchmarks.bench.run_bench", lambda *_: bench)
    return bench


ON_DATA = ("--backend", "ort", "--device", "cpu", "--threads", "1", "--data", "demo", "--limit", "2")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("tolerance", "is_worse"), [("0", True), ("100%", False), (None, False)])
def test_a_new_model_may_lose_as_much_as_is_tolerated(
    bench: Command, models: tuple[Path, Path], tolerance: str | None, is_worse: bool
) -> None:
    status, out, err = bench(*models, *ON_DATA, *(() if tolerance is None else ("--tolerance", tolerance)))
    assert status == is_worse
    assert "mIoU -" in out
    step, _, finding = err.partition("\n")
    assert step == "comparing both models in ort …"
    assert finding.startswith("error: ") == is_worse
    assert ("points of mIoU; --tolerance allows 0\n" in finding) == is_worse


@pytest.mark.usefixtures("measured")
def test_two_models_are_compared_only_where_somebody_sees_it(
    bench: Command, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = bench(*models, *ON_DATA, "--json", "-q")
    update = json.loads(out)["update"]
    assert status == 0
    assert update["old"].startswith(models[0].name)
    assert update["new_miou"] < update["old_miou"]
    monkeypatch.setattr("segship.benchmarks.bench_update.compare_models", None)  # calling it would be an error
    assert bench(*models, *ON_DATA, "-q") == (0, "", "")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("more", "status"), [((), 3), (("--tolerance", "100%"), 1)])
def test_a_comparison_that_fails_is_a_failure_beside_what_was_measured(
    bench: Command,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    status: int,
) -> None:
    def fail(*_: object) -> None:
        raise BenchError("no memory is left for two")

    monkeypatch.setattr("segship.benchmarks.bench_update.compare_models", fail)
    found, out, err = bench(*models, *ON_DATA, *more)
    assert found == status
    assert "p50 ms" in out
    assert f"error: {models[1]}, ort: comparison with {models[0]}: no memory is left for two\n" in err


def test_models_of_which_one_does_not_fit_the_data_are_not_compared(
    bench: Command, measured: Bench, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = measured.entries
    failed = Failure(str(models[1]), "ort", "accuracy: it has other classes")
    half = dataclasses.replace(
        measured, entries=(first, dataclasses.replace(second, accuracy=None)), failures=(failed,)
    )
    monkeypatch.setattr("segship.benchmarks.bench.run_bench", lambda *_: half)
    monkeypatch.setattr("segship.benchmarks.bench_update.compare_models", None)
    status, _, err = bench(*models, *ON_DATA, "--json", "-q")
    assert (status, err) == (3, f"error: {models[1]}, ort: accuracy: it has other classes\n")
    assert bench(*models, *ON_DATA, "-q", "--tolerance", "100%")[0] == 1


def test_only_two_models_with_data_are_an_update(models: tuple[Path, Path]) -> None:
    assert BenchOptions(models, ("torch", "ort"), data="demo").engine_of_update == "ort"
    assert BenchOptions(models, ("ort",)).engine_of_update is None
    assert BenchOptions(models[:1], ("ort",), data="demo").engine_of_update is None
    assert BenchOptions(models, ("torch",), data="demo").engine_of_update is None


def test_a_run_in_which_nothing_runs_fails(bench: Command, models: tuple[Path, Path]) -> None:
    status, out, err = bench(models[0], "--backend", "nosuch", "-q")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1


def test_a_folder_that_is_there_is_left_alone(bench: Command, models: tuple[Path, Path], tmp_path: Path) -> None:
    status, _, err = bench(models[0], "--out", tmp_path)
    assert (status, err) == (1, f"error: {tmp_path} is there already; add --overwrite, or choose another name\n")


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        (("--picture", "nosuch.jpg"), "cannot read nosuch.jpg: No such file or directory"),
        (("--out", __file__, "--overwrite"), f"{__file__} is no folder; choose another name"),
        (("--out", f"{__file__}/out"), f"cannot write into {__file__}/out: Not a directory"),
    ],
)
def test_what_would_spoil_every_row_is_told_before_any(
    bench: Command, models: tuple[Path, Path], options: tuple[str, ...], finding: str
) -> None:
    assert bench(models[0], *options) == (1, "", f"error: {finding}\n")


def test_what_was_measured_is_printed_where_it_cannot_be_written(
    bench: Command, record: Bench, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segship.benchmarks.bench.run_bench", lambda *_: record)
    (tmp_path / "bench.json").mkdir()
    status, out, err = bench(models[0], "--out", tmp_path, "--overwrite")
    assert status == 1
    assert "p50 ms" in out
    assert "cannot write" in err


def test_a_folder_is_tried_and_not_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", overwrite=False)
    check_folder(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_left_where_a_new_one_cannot_be_written(
    record: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("bench.json", "bench.md", "pareto.png", "update.json", "update.png")
    for name in names:
        (tmp_path / name).write_text("earlier")

    def full(*_: object) -> None:
        raise OutputError("no space left on device")

    monkeypatch.setattr("segship.benchmarks.bench_files.write_bench", full)
    with pytest.raises(OutputError, match="no space left"):
        write_run(dataclasses.replace(record, update=None), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "earlier")


def test_nothing_of_an_earlier_run_is_left(
    bench: Command, record: Bench, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = dataclasses.replace(
        record, entries=tuple(dataclasses.replace(entry, accuracy=None) for entry in record.entries), update=None
    )
    monkeypatch.setattr("segship.benchmarks.bench.run_bench", lambda *_: bare)
    for name in ("pareto.png", "update.json", "update.md", "update.png", "mine.txt"):
        (tmp_path / name).write_text("earlier")
    assert bench(models[0], "--out", tmp_path, "--overwrite", "-q")[0] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md", "latency.png", "mine.txt"}


def options_of(model: Path, engine: str, **more: object) -> BenchOptions:
    return dataclasses.replace(BenchOptions((model,), (engine,), "cpu", threads=1, quick=True), **more)


@pytest.fixture
def only_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes processes of its own."""
    monkeypatch.setattr(bench_module, "cold_starts", lambda *_: ())
    monkeypatch.setattr(bench_module, "memory_of", lambda *_: None)
    monkeypatch.setattr("segship.benchmarks.bench_options.available_cpus", lambda: 2)


@pytest.mark.usefixtures("only_throughput")
def test_runs_at_once_that_an_engine_lacks_are_a_failure_only_where_they_were_asked_for(tiny_model: Path) -> None:
    found = run_bench(options_of(tiny_model, "opencv", profile=True), lambda _: None)
    assert found.failures == ()
    assert [one.concurrency for one in found.entries[0].throughput] == [1]
    first, second = found.entries[0].lacks
    assert first.startswith("throughput, 2 at once: 2 streams were asked for, but the opencv backend runs one at a")
    assert second.startswith("operators: opencv is not profiled")
    asked = run_bench(options_of(tiny_model, "opencv", concurrency=2), lambda _: None)
    assert [one.concurrency for one in asked.entries[0].throughput] == [1]
    assert asked.entries[0].lacks == ()
    assert asked.failures[0].error.startswith("throughput, 2 at once: 2 streams were asked for")


@pytest.mark.usefixtures("only_throughput")
def test_an_engine_that_fails_with_several_runs_at_once_is_a_failure(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: Choice, __: bytes, runs: tuple[int, ...], ___: float) -> tuple[Throughput, ...]:
        if runs != (1,):
            raise BackendError("it ran out of memory")
        return (Throughput(1, 20, 1.0),)

    monkeypatch.setattr(bench_module, "measure_throughput", measured)
    found = run_bench(options_of(tiny_model, "opencv"), lambda _: None)
    assert [failed.error for failed in found.failures] == ["throughput, 2 at once: it ran out of memory"]
    assert [one.concurrency for one in found.entries[0].throughput] == [1]
    assert found.entries[0].lacks == ()


@pytest.mark.parametrize(("tolerance", "status"), [((), 3), (("--tolerance", "100%"), 1)])
def test_models_of_which_one_does_not_run_are_not_compared(
    bench: Command,
    record: Bench,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tolerance: tuple[str, ...],
    status: int,
) -> None:
    half = dataclasses.replace(
        record, entries=record.entries[:1], failures=(Failure("gone.onnx", "ort", "it is gone"),), update=None
    )
    monkeypatch.setattr("segship.benchmarks.bench.run_bench", lambda *_: half)
    found, _, err = bench(
        models[0], "gone.onnx", "--backend", "ort", "--data", "demo", "--limit", "2", "-q", *tolerance
    )
    assert found == status
    assert err.startswith("error: gone.onnx, ort: it is gone\n")
    assert ("cannot be compared" in err) == (status == 1)
    assert "cannot read" not in err


def test_a_record_has_not_regressed_against_itself(bench: Command, run: tuple[Result, Path]) -> None:
    status, out, _ = bench("--compare", *[run[1] / "bench.json"] * 2)
    assert status == 0
    assert "no difference" in out


def test_a_comparison_that_found_a_regression_says_so(bench: Command, record: Bench, tmp_path: Path) -> None:
    write_bench(record, tmp_path / "old.json")
    write_bench(slower(record, 50), tmp_path / "new.json")
    arguments = ("--compare", tmp_path / "old.json", tmp_path / "new.json")
    status, out, _ = bench(*arguments)
    assert status == 1
    assert "slower" in out
    assert bench(*arguments, "--margin", "10000%")[0] == 0
    rows = json.loads(bench(*arguments, "--json")[1])
    assert rows[0]["network"]["verdict"] == "slower"
    assert bench(*arguments, "-q", "--out", tmp_path / "out")[:2] == (1, "")
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == rows
    assert "| slower |" in (tmp_path / "out/comparison.md").read_text()
    refused = f"error: {tmp_path / 'out'} is there already; add --overwrite, or choose another name\n"
    assert bench(*arguments, "--out", tmp_path / "out") == (1, "", refused)


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        ((), "Missing argument 'MODEL...'"),
        (("m.onnx", "--compare", "a.json", "b.json"), "leave out the models"),
        (("--compare", "a.json", "b.json", "--quick"), "--compare has no use for --quick"),
        (("m.onnx", "--margin", "3%"), "measuring has no use for --margin"),
        (("m.onnx", "--recommend", "--max-latency", "20"), "'20' is none; expected one such as 20ms"),
        (("m.onnx", "--recommend", "--batch", "2"), "--recommend has no use for --batch"),
        (("m.onnx", "--recommend", "--max-memory", "9 kg"), "'9 kg' is none; expected one such as 500"),
        (("m.onnx", "--min-rate", "9"), "measuring has no use for --min-rate"),
        (("m.onnx", "--max-latency", "20ms"), "measuring has no use for --max-latency"),
        (("m.onnx", "--tolerance", "-1%"), "'-1%' is none; expected one such as 5%"),
        (("m.onnx", "--tolerance", "nan"), "'nan' is none"),
        (("m.onnx", "--tolerance", "1"), "'1' alone would be 100%; write 1%, or 100%"),
        (("--compare", "a.json", "b.json", "--margin", "5"), "'5' alone would be 500%; write 5%, or 500%"),
        (("m.onnx", "--tolerance", "1%"), "--tolerance is of two models"),
        (("m.onnx", "--limit", "3"), "--limit is of the pictures of --data"),
        (("m.onnx", "--backend", "torch"), "--backend torch and --checkpoint FILE go together"),
        (("m.onnx", "--checkpoint", "c.safetensors"), "--backend torch and --checkpoint FILE go together"),
    ],
)
def test_wrong_use_is_refused(bench: Command, arguments: tuple[str, ...], finding: str) -> None:
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert finding in err


def test_a_checkpoint_is_measured_once_and_only_of_a_model_that_was_made_of_it(
    tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other, card = tmp_path / "other.onnx", read_card(tiny_model)
    provenance = dataclasses.replace(card.provenance, checkpoint_sha256="0" * 64)
    write_card(tiny_model, dataclasses.replace(card, provenance=provenance), output=other)
    options = BenchOptions((other, tiny_model), ("ort", "torch"), checkpoint=tiny_checkpoint)
    assert [(choice.model, choice.asked, graph) for choice, graph in choices(options)] == [
        (other, "ort", other),
        (tiny_model, "ort", tiny_model),
        (tiny_checkpoint, "torch", tiny_model),
    ]
    with pytest.raises(BenchError, match="was exported from a checkpoint of sha-256 0000"):
        choices(dataclasses.replace(options, models=(other,)))


def test_rows_come_in_the_order_asked_for() -> None:
    options = BenchOptions((Path("a"), Path("b")), ("opencv", "ort"), batches=(1, 4))
    found = [(str(choice.model), choice.asked, choice.batch) for choice, _ in choices(options)]
    assert found == [(m, engine, batch) for m in "ab" for engine in ("opencv", "ort") for batch in (1, 4)]


@pytest.mark.parametrize(("most", "expected"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_runs_at_once_are_powers_of_two_and_the_most(most: int, expected: tuple[int, ...]) -> None:
    assert BenchOptions((), (), concurrency=most).concurrencies == expected


def test_a_recommendation_that_nothing_fulfils_is_an_exit_status(bench: Command, models: tuple[Path, Path]) -> None:
    limits = ("--recommend", "--backend", "ort", "--threads", "1", "--device", "cpu", "--time-limit", "1m", "-q")
    assert bench(models[0], *limits, "--max-latency", "0.001ms")[:2] == (1, "")
    assert bench(models[0], *limits, "--max-latency", "1h")[:2] == (0, "")


def test_limits_are_what_was_typed(bench: Command, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wish] = []

    def noted(_: object, wish: Wish, **__: object) -> None:
        asked.append(wish)
        raise BenchError("enough")

    monkeypatch.setattr("segship.benchmarks.recommend.recommend", noted)
    limits = ("--max-latency", "20ms", "--min-miou", "0.6", "--min-rate", "30/s", "--max-memory", "1.5GB")
    bench(models[0], "--recommend", "--data", "demo", *limits)
    bench(models[0], "--recommend", "--max-memory", "500", "--min-rate", "2.5")
    assert asked == [Wish(20.0, 0.6, 30.0, 1500.0), Wish(None, None, 2.5, 500.0)]
