from dataclasses import replace
from pathlib import Path

import pytest

from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.halving import Contender, survivors
from segship.benchmarks.record import PICTURE, Latency
from segship.benchmarks.wishes import Tried, Wish
from segship.runtime.backends import EngineInfo

TRIED = Tried("a.onnx", "ort", 1, EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2), None, 5, 8.0, 10.0)


def contender(p50_ms: float, *, model: str = "a.onnx", batch: int = 1) -> Contender:
    tried = replace(TRIED, p50_ms=p50_ms, batch=batch)
    return Contender(Choice(Path(model), batch=batch), tried, fastest_ms=p50_ms)


def test_figures_are_of_the_newest_stage() -> None:
    one = contender(8.0)
    one.note(Latency({PICTURE: (4_000_000, 2_000_000, 9_000_000)}, 0), 0.5)
    assert (one.fastest_ms, one.tried.p50_ms, one.tried.p95_ms, one.tried.runs) == (2.0, 4.0, 9.0, 3)
    assert one.run_s == pytest.approx(0.505)  # its own mean, and what lies between two runs


def test_of_what_has_the_same_accuracy_the_faster_half_goes_on() -> None:
    pool = [contender(p50) for p50 in (5.0, 3.0, 4.0)] + [contender(9.0, model="b.onnx")]
    assert [one.tried.p50_ms for one in survivors(pool, Wish(None, 0.5), by_accuracy=True)] == [3.0, 4.0, 9.0]
    pool = [contender(p50) for p50 in (5.0, 3.0)] + [contender(9.0, model="b.onnx")]
    assert [one.tried.p50_ms for one in survivors(pool, Wish(None, None), by_accuracy=False)] == [3.0, 5.0]


def test_what_does_most_pictures_stays_where_a_rate_is_asked_for() -> None:
    pool = [contender(3.0), contender(8.0, batch=4)]
    assert survivors(pool, Wish(None, None, min_images_per_s=1.0), by_accuracy=False) == pool
    assert survivors(pool, Wish(None, None), by_accuracy=False) == pool[:1]


def test_what_is_far_too_slow_is_out() -> None:
    pool = [contender(15.0), contender(15.1)]
    assert survivors(pool, Wish(10.0, None), by_accuracy=True) == pool[:1]
    assert pool[1].tried.lacks == ("its fastest of 5 runs took 15.10 ms",)
