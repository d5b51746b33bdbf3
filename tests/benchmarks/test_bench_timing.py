import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segship.benchmarks import bench_timing
from segship.benchmarks.bench import run_bench
from segship.benchmarks.bench_options import BenchOptions
from segship.benchmarks.bench_timing import About, time_in_turns
from segship.benchmarks.record import Memory
from segship.benchmarks.sampling import Rules
from segship.runtime.errors import ModelError

STATE = "1980, 2619, 1980, 512.5, 700.0, 55"


def options_of(model: Path, *engines: str) -> BenchOptions:
    return BenchOptions((model,), engines, "cpu", threads=1, quick=True, concurrency=1)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "QUICK", Rules(warm_ups=5, runs=20, seconds=0.0))


def test_an_engine_that_fails_while_it_is_timed_is_a_failure_and_the_others_are_measured(
    tiny_model: Path, opencv_fails_at: Callable[..., Any]
) -> None:
    engine = opencv_fails_at(9)
    about = About(lambda _: None)
    timed, overhead_ns = time_in_turns(options_of(tiny_model, "opencv", "ort"), None, about)
    assert engine.runs == 9
    assert engine.still_open == []
    assert [(row.choice.asked, len(latency.samples_ns["picture"])) for row, latency in timed] == [("ort", 20)]
    failed = [(one.model, one.asked, one.error) for one in about.failures]
    assert failed == [(str(tiny_model), "opencv", "failed while it was timed: out of memory, on purpose")]
    assert overhead_ns > 0
    assert about.under_load == {}


def test_an_engine_whose_subject_cannot_be_told_is_closed(
    tiny_model: Path, opencv_fails_at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("on purpose")

    monkeypatch.setattr(bench_timing, "subject_of", refuse)
    engine, about = opencv_fails_at(float("inf")), About(lambda _: None)
    assert time_in_turns(options_of(tiny_model, "opencv"), None, about) == ([], 0)
    assert [one.error for one in about.failures] == ["does not run: on purpose"]
    assert (engine.runs, engine.still_open) == (1, [])


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for nvidia-smi")
def test_a_gpu_is_looked_at_while_it_works_and_memory_that_is_not_told_is_said(
    tiny_model: Path, opencv_fails_at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, sleep = tmp_path / "nvidia-smi", shutil.which("sleep")
    script.write_text(
        f"#!{shutil.which('sh')}\ncase $1 in --query-gpu=clocks.sm*) {sleep} 0.1; echo '{STATE}';; *) exit 1;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("segship.benchmarks.bench.cold_starts", lambda *_: ())
    monkeypatch.setattr("segship.benchmarks.bench.memory_of", lambda *_: Memory(1, 2, 3))
    engine = opencv_fails_at(float("inf"), "cuda:0")
    found = run_bench(options_of(tiny_model, "opencv"), lambda _: None)
    assert found.failures == ()
    assert found.machine["GPU 0 under load"].startswith("1980 MHz of its processors, ")
    assert engine.runs > 26  # once to load, 5 to warm up, 20 that are timed, and more while the GPU is looked at
    assert "memory of the GPU: nvidia-smi does not tell it of this process" in found.entries[0].lacks
