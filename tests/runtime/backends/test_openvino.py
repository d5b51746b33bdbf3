"""What is OpenVINO's alone."""

from pathlib import Path

import numpy as np
import pytest

from segship.runtime.backends.common import available_cpus, import_openvino
from segship.runtime.backends.openvino import OpenVINOBackend
from segship.runtime.errors import DeviceError
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
    backend = OpenVINOBackend(tiny_model, read_card(tiny_model), "cpu", precision="engine")
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
