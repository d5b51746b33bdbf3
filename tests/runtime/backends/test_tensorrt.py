"""TensorRT where it is not: what is asked of it is refused in one line that says what to do."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.backends import load_backend, tensorrt
from segship.runtime.backends.options import EngineOptions
from segship.runtime.backends.tensorrt import TensorRTBackend, is_prepared, require_prepared
from segship.runtime.check import installable_backends
from segship.runtime.errors import BackendError, DeviceError, ModelError
from segship.runtime.model_file import read_card

WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")


def test_it_is_one_of_the_engines() -> None:
    assert "tensorrt" in installable_backends()


@WITHOUT_GPU
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:3"])
def test_where_it_cannot_run_it_is_one_line_and_leaves_nothing_behind(
    device: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card, options = read_card(tiny_model), EngineOptions(cache=str(tmp_path / "cache"))
    for ask in (TensorRTBackend, is_prepared, require_prepared):
        with pytest.raises(DeviceError, match=r"tensorrt was asked for, but this .*use --backend ort") as caught:
            ask(tiny_model, card, device, options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("asked", [{"tf32": True}, {"memory_limit_mb": 500}], ids=str)
def test_an_engine_is_kept_apart_from_those_that_were_built_otherwise(
    asked: dict[str, Any], precision: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever precision the file has; GPU and TensorRT are made up, as only their names matter."""
    for name, answer in {
        "_check_provider": None,
        "load_cuda_libraries": [],
        "load_tensorrt": "10.13.3",
        "cuda_gpu": ("NVIDIA L4", "8.9"),
        "driver_version": "580.95",
    }.items():
        monkeypatch.setattr(tensorrt, name, lambda *_, answer=answer: answer)
    card = dataclasses.replace(read_card(tiny_model), precision=precision)
    plain, other = (
        tensorrt._Setup(tiny_model, card, "auto", options).key for options in (EngineOptions(), EngineOptions(**asked))
    )
    assert plain.name != other.name


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "opencl", ""])
def test_it_has_gpus_only(device: str, tiny_model: Path) -> None:
    with pytest.raises(DeviceError, match=r"the tensorrt backend has no device .*; expected auto or cuda\[:N\]"):
        load_backend("tensorrt", tiny_model, read_card(tiny_model), device)


def test_a_card_of_another_model_is_refused_first(tiny_model: Path) -> None:
    card = dataclasses.replace(read_card(tiny_model), input_name="pixels")
    with pytest.raises(ModelError, match="'pixels'"):
        load_backend("tensorrt", tiny_model, card, "auto")


def test_a_recorded_cuda_graph_takes_one_stream_and_bound_memory(tiny_model: Path) -> None:
    card = read_card(tiny_model)
    with pytest.raises(BackendError, match="2 streams were asked for, but the tensorrt backend runs one at a time"):
        load_backend("tensorrt", tiny_model, card, "auto", EngineOptions(cuda_graph=True, streams=2))
    with pytest.raises(BackendError, match="takes a graph of fixed shapes and io_binding"):
        load_backend("tensorrt", tiny_model, card, "auto", EngineOptions(cuda_graph=True, io_binding=False))
