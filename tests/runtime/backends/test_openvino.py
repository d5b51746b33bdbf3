"""What is OpenVINO's alone."""

from pathlib import Path

import numpy as np
import pytest

from segship.runtime.backends.common import import_openvino
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.openvino import OpenVINOBackend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import BackendError, DeviceError
from segship.runtime.model_file import read_card

openvino = import_openvino()


def test_by_itself_it_computes_what_the_file_says(tiny_model: Path) -> None:
    backend = OpenVINOBackend(tiny_model, read_card(tiny_model), "auto")
    assert backend.info.precision == "fp32"
    assert backend.info.threads == available_cpus()
    assert backend.info.engine == f"OpenVINO {openvino.__version__.partition('-')[0]}"
    backend.close()


def test_where_it_may_choose_the_info_says_what_it_chose(tiny_model: Path) -> None:
    compiled = openvino.Core().compile_model(str(tiny_model), "CPU")
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    backend = OpenVINOBackend(tiny_model, read_card(tiny_model), "cpu", EngineOptions(precision="engine"))
    assert backend.info.precision == {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[chosen]
    exact = OpenVINOBackend(tiny_model, read_card(tiny_model), "cpu")
    batch = np.random.default_rng(0).standard_normal((1, 3, 48, 64), np.float32)
    assert (backend.run(batch) != exact.run(batch)).any() == (chosen != "f32")
    backend.close()
    exact.close()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "npu", "CPU", ""])
def test_it_has_the_cpu_only(tiny_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=r"was asked for.*expected auto or cpu; use --device cpu, or --backend ort"):
        OpenVINOBackend(tiny_model, read_card(tiny_model), device)


def test_a_model_from_the_cache_computes_the_same_in_each_precision(tiny_model: Path, tmp_path: Path) -> None:
    card, batch = read_card(tiny_model), np.random.default_rng(0).standard_normal((1, 3, 48, 64), np.float32)
    outputs: dict[str, list[np.ndarray]] = {"file": [], "engine": []}
    for cache in (None, str(tmp_path), str(tmp_path)):
        for precision in ("file", "engine"):
            options = EngineOptions(precision=precision, cache=cache)  # type: ignore[arg-type]
            backend = OpenVINOBackend(tiny_model, card, "cpu", options)
            outputs[precision].append(backend.run(batch))
            backend.close()
    assert list(tmp_path.glob("*.blob"))
    for first, *later in outputs.values():
        for one in later:
            np.testing.assert_array_equal(one, first)


def test_several_streams_run_at_once_and_the_info_says_so(tiny_model: Path) -> None:
    streams = available_cpus()
    backend = OpenVINOBackend(tiny_model, read_card(tiny_model), "cpu", EngineOptions(streams=streams))
    assert (backend.info.streams, backend.info.threads) == (streams, available_cpus())
    backend.close()


def test_more_streams_than_threads_are_refused(tiny_model: Path) -> None:
    with pytest.raises(BackendError, match="2 streams were asked for, but OpenVINO runs 1 on 1 threads"):
        OpenVINOBackend(tiny_model, read_card(tiny_model), "cpu", EngineOptions(threads=1, streams=2))
