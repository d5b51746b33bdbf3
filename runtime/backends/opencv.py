"""OpenCV's DNN module: no engine to install beside OpenCV itself."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError, one_line
from segship.runtime.model_file import check_fits


class OpenCVBackend:
    """Runs an ONNX file with OpenCV DNN, versions 4 and 5.

    The engine is chosen, never left to OpenCV: version 5's new engine runs on the CPU only and, asked for another
    target, warns and runs on the CPU all the same; so CUDA gets the classic one.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` or ``cpu``; ``cuda[:0]`` where OpenCV was built with CUDA.
    """

    def __init__(self, model: Path, card: ModelCard, device: str) -> None:
        check_fits(model, card)  # OpenCV runs a graph on inputs of other sizes than its own, and returns something
        self._dnn: Any = cv2.dnn  # what it holds differs between the versions
        if device in ("cuda", "cuda:0"):
            self._require_cuda()
            self._net = self._read(model, "ENGINE_CLASSIC")
            self._net.setPreferableBackend(self._dnn.DNN_BACKEND_CUDA)
            self._net.setPreferableTarget(self._dnn.DNN_TARGET_CUDA)
            running_device = "cuda:0"
        elif device in ("auto", "cpu"):
            self._net = self._read(model, "ENGINE_NEW")
            running_device = "cpu"
        else:
            raise DeviceError(f"the opencv backend has no device {device!r}; expected auto, cpu or cuda")
        self._info = EngineInfo(
            "opencv", f"OpenCV {cv2.__version__}", running_device, card.precision, cv2.getNumThreads()
        )
        self._input, self._output = card.input_name, card.output_name

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input (1, C, H, W) to its output."""
        if self._net is None:
            raise BackendError("this backend is closed")
        try:
            self._net.setInput(batch, self._input)
            return np.array(self._net.forward(self._output))  # a copy: the net writes its next output to the same place
        except cv2.error as error:
            raise BackendError(f"OpenCV failed: {one_line(error)}") from error

    def close(self) -> None:
        """Free the net."""
        self._net = None

    def _require_cuda(self) -> None:
        if self._dnn.DNN_TARGET_CUDA not in self._dnn.getAvailableTargets(self._dnn.DNN_BACKEND_CUDA):
            raise DeviceError(
                f"cuda was asked for, but this OpenCV ({cv2.__version__}) runs networks on the CPU only, as all builds "
                "from the package index do; use --device cpu, or --backend ort"
            )

    def _read(self, model: Path, engine: str) -> Any:
        logging: Any = cv2.utils.logging
        level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # it prints what it also raises
        chosen = [getattr(self._dnn, engine)] if hasattr(self._dnn, engine) else []  # OpenCV 4 has one engine only
        try:
            return self._dnn.readNetFromONNX(str(model), *chosen)
        except cv2.error as error:
            raise ModelError(f"{model}: OpenCV {cv2.__version__} cannot load it ({one_line(error)})") from error
        finally:
            logging.setLogLevel(level)
