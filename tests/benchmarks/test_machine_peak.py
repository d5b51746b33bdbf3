import importlib.util
from pathlib import Path

import pytest

from segship.benchmarks.machine_peak import Peaks, _least_seconds, _products, measure_peaks


def test_products_and_a_copy_are_measured_on_the_cpu() -> None:
    from segship.runtime.backends.common import import_openvino

    peaks = measure_peaks(2, side=64, copied_bytes=1001, seconds=0)
    has_bf16 = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert set(peaks.gflop_s) == {"fp32", "int8"} | ({"bf16"} if has_bf16 else set())
    assert all(rate > 0 for rate in peaks.gflop_s.values())
    assert peaks.gbyte_s is not None
    assert peaks.gbyte_s > 0
    assert not peaks.notes


def test_no_peak_of_a_gpu_is_made_up() -> None:
    peaks = measure_peaks(2, "cuda:1")
    assert (peaks.gflop_s, peaks.gbyte_s) == ({}, None)
    assert "no peak of cuda:1" in peaks.notes[0]


def test_without_an_engine_there_is_a_copy_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    peaks = measure_peaks(1, side=8, copied_bytes=1000, seconds=0)
    assert peaks == Peaks({}, peaks.gbyte_s, peaks.notes)
    assert peaks.gbyte_s
    assert "neither ort nor openvino" in peaks.notes[0]


def test_the_int8_product_is_calculated_in_int8(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    ort.InferenceSession(_products(64)["int8"][0], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds == ["QLinearMatMul"]


def test_a_peak_is_the_best_of_several_runs_after_one_that_warms_up() -> None:
    runs: list[int] = []
    assert _least_seconds(lambda: runs.append(len(runs)), 0) < 60
    assert len(runs) == 4
