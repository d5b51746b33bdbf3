from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from segship.benchmarks import operators
from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.operators import SLOWEST, no_profile_of, operator_table, operators_of
from segship.benchmarks.operators import profile_operators as profile
from segship.benchmarks.record import Entry, Latency, Operator, Subject
from segship.runtime.backends import EngineInfo

CPU = "CPUExecutionProvider"
ENGINE = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 2)


def node(ts: int, dur: int, name: str, kind: str) -> dict[str, Any]:
    arguments = {"op_name": kind, "provider": CPU}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": arguments}


def run_event(ts: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 90, "args": {}}


def entry_of(operators: tuple[Operator, ...]) -> Entry:
    subject = Subject("nets/a.onnx", "ab" * 32, "unet", "ort", ENGINE, (48, 64), 1)
    return Entry(subject, Latency({"network": (5,)}, 1), operators=operators)


@pytest.fixture(scope="module")
def encoded(photo: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", photo)[1])


def test_times_are_medians_of_the_runs_that_count() -> None:
    events = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 50, "args": {}}]
    for start, conv, resize in ((100, 9_000, 9_000), (200, 2_000, 1_000), (300, 4_000, 1_000), (400, 30_000, 1_000)):
        events += [node(start + 1, conv, "a", "Conv"), node(start + 2, 1_000, "b", "Conv")]
        events += [node(start + 3, resize, "c", "Resize"), run_event(start)]  # runs are written when they end
    assert operators_of(events, 1) == (
        Operator("Conv", CPU, 2, 5.0, pytest.approx(5 / 6)),
        Operator("Resize", CPU, 1, 1.0, pytest.approx(1 / 6)),
    )


def test_a_network_is_profiled_on_a_picture(tiny_model: Path, encoded: bytes) -> None:
    before = set(Path().iterdir())
    found = profile(Choice(tiny_model, threads=1), encoded, 2)
    assert {"Conv", "ConvTranspose"} <= {operator.kind for operator in found}
    assert {operator.provider for operator in found} == {CPU}
    assert sum(operator.share for operator in found) == pytest.approx(1)
    assert [one.ms for one in found] == sorted((one.ms for one in found), reverse=True)
    assert set(Path().iterdir()) == before  # the profile's own file is gone


def test_the_profile_is_of_the_batch_and_the_options_that_were_chosen(
    open_model: Path, encoded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[tuple[int, ...]] = []
    run = operators._profiled
    monkeypatch.setattr(
        operators,
        "_profiled",
        lambda choice, feed, runs: fed.extend(x.shape for x in feed.values()) or run(choice, feed, runs),
    )
    choice = Choice(open_model, "ort:graph_optimization=none", batch=3, threads=1)
    profiled = {operator.kind: operator.nodes for operator in profile(choice, encoded, 1)}
    kinds = [node.op_type for node in onnx.load(open_model).graph.node if node.op_type != "Constant"]
    assert profiled == {kind: kinds.count(kind) for kind in kinds}  # unoptimised, it is the file's own graph
    assert fed == [(3, 3, 48, 64)]


def test_other_engines_and_gpus_have_no_profile_and_say_why(tiny_model: Path, encoded: bytes) -> None:
    choice = Choice(tiny_model, "opencv", threads=1)
    assert profile(choice, encoded, 1) == ()
    assert "opencv is not profiled" in no_profile_of(EngineInfo("opencv", "OpenCV 5", "cpu", "fp32", 2))
    assert "starting work" in no_profile_of(EngineInfo("ort", "ONNX Runtime 1.31.1", "cuda:0", "fp32", 2))
    assert not no_profile_of(ENGINE)


def test_the_table_shows_the_slowest_and_the_rest_as_one() -> None:
    kinds = tuple(Operator(f"Kind{number}", CPU, 2, 10.0 - number, 0.1) for number in range(SLOWEST + 2))
    table = operator_table([entry_of(kinds), entry_of(()), entry_of(kinds[:1])])
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert len(rows) == SLOWEST + 1 + 1
    assert rows[0] == ("a.onnx", "ort", "Kind0", "CPU", "2", "10.00", "10.0%")
    assert rows[-2] == ("a.onnx", "ort", "2 others", "", "4", "3.00", "20.0%")
