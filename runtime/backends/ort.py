"""ONNX Runtime, on the CPU or through CUDA."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import available_cpus, check_batch, import_onnxruntime
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError, one_line
from segship.runtime.model_file import check_fits

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_FATAL_ONLY: Final = 4
_NEEDS_GPU_BUILD: Final = 'pip uninstall -y onnxruntime; pip install "segship[gpu]"'


class OrtBackend:
    """Runs an ONNX file with ONNX Runtime.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` (CUDA where it really works, else the CPU), ``cpu`` or ``cuda[:N]``.
    """

    def __init__(self, model: Path, card: ModelCard, device: str) -> None:
        check_fits(model, card)
        wants_cuda = device.startswith("cuda")
        self._ort = import_onnxruntime("gpu" if wants_cuda else "cpu")
        self._threads = available_cpus()
        if device not in ("auto", "cpu") and not wants_cuda:
            raise DeviceError(f"the ort backend has no device {device!r}; expected auto, cpu or cuda[:N]")
        number = _cuda_number(device) if wants_cuda else 0
        if wants_cuda or (device == "auto" and self._cuda_may_work()):
            session = self._open_on_cuda(model, number, must=wants_cuda)
        else:
            session = None
        self._session = session or self._open(model, [_CPU])
        running_device = f"cuda:{number}" if session else "cpu"
        self._info = EngineInfo(
            "ort", f"ONNX Runtime {self._ort.__version__}", running_device, card.precision, self._threads
        )
        self._card = card

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them."""
        if self._session is None:
            raise BackendError("this backend is closed")
        check_batch(batch, self._card)
        try:
            return np.asarray(self._session.run([self._card.output_name], {self._card.input_name: batch})[0])
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise BackendError(f"ONNX Runtime failed: {one_line(error)}") from error

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _open(self, model: Path, providers: list[Any]) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads  # a set number also keeps it from pinning threads to cores
        options.log_severity_level = _FATAL_ONLY  # what matters is checked below and said in our own words
        try:
            # Without enable_fallback=0 it goes on with another provider when one fails, in the middle of a run too.
            return self._ort.InferenceSession(os.fspath(model), options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise ModelError(f"{model}: ONNX Runtime cannot load it ({one_line(error)})") from error

    def _open_on_cuda(self, model: Path, number: int, *, must: bool) -> Any:
        """Open a session on CUDA; where that does not work, raise if it ``must``, and otherwise return None."""
        if _CUDA not in self._ort.get_available_providers():
            raise DeviceError(
                f"cuda was asked for, but this ONNX Runtime ({self._ort.__version__}) is built for the CPU; "
                f"use --device cpu, or install the other build: {_NEEDS_GPU_BUILD}"
            )
        if must and not _has_nvidia_driver():
            raise DeviceError("cuda was asked for, but this machine has no NVIDIA driver; use --device cpu or auto")
        self._ort.set_default_logger_severity(_FATAL_ONLY)
        if hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()  # finds the CUDA and cuDNN that pip installed
        options = {"device_id": number, "use_tf32": 0}  # TF32 keeps 10 bits of a float32, and labels flip
        try:
            session = self._open(model, [(_CUDA, options), _CPU])
            cause = "it took the CPU"
        except ModelError as error:
            session, cause = None, str(error)
        if session is not None and session.get_providers()[0] == _CUDA:
            return session
        if must:
            raise DeviceError(
                f"cuda:{number} was asked for, but ONNX Runtime {self._ort.__version__} could not start it ({cause}); "
                'install its CUDA libraries with pip install "segship[gpu]", check nvidia-smi, or use --device cpu'
            )
        return None

    def _cuda_may_work(self) -> bool:
        return _CUDA in self._ort.get_available_providers() and _has_nvidia_driver()


def _cuda_number(device: str) -> int:
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or device.partition(":")[0] != "cuda":
        raise DeviceError(f"the ort backend has no device {device!r}; expected auto, cpu or cuda[:N]")
    return int(number)


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
