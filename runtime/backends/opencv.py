"""OpenCV's DNN module: no engine to install beside OpenCV itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import check_batch, input_dtype
from segship.runtime.card import ModelCard, Shape
from segship.runtime.errors import BackendError, DeviceError, ModelError, one_line
from segship.runtime.model_file import check_fits

_ENGINE: Final = f"OpenCV {cv2.__version__}"
_IS_5: Final = cv2.__version__.startswith("5.")


class OpenCVBackend:
    """Runs an ONNX file with OpenCV DNN, versions 4 and 5.

    The engine is chosen, never left to OpenCV: version 5's new engine runs on the CPU only and, asked for another
    target, warns and runs on the CPU all the same; so CUDA gets the classic one. What an engine lacks, it says of some
    graphs while it runs them, and of others never; so blank pictures go through the graph before it counts as loaded.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` or ``cpu``; ``cuda[:0]`` where OpenCV was built with CUDA.
    """

    def __init__(self, model: Path, card: ModelCard, device: str) -> None:
        check_fits(model, card)  # OpenCV runs a graph on inputs of other sizes than its own, and returns something
        self._dnn: Any = cv2.dnn  # what it holds differs between the versions
        self._card = card
        if device not in ("auto", "cpu", "cuda", "cuda:0"):
            raise DeviceError(f"the opencv backend has no device {device!r}; expected auto, cpu or cuda")
        on_cuda = device.startswith("cuda")
        if on_cuda:
            self._require_cuda()
        running_device = "cuda:0" if on_cuda else "cpu"
        self._info = EngineInfo("opencv", _ENGINE, running_device, card.precision, cv2.getNumThreads())
        try:
            with _silence():
                self._net = self._read(model, on_cuda=on_cuda)
                self._try()
        except (cv2.error, BackendError) as error:
            raise ModelError(
                f"{model}: {_ENGINE} cannot run this graph ({one_line(error)}); {_advice(card)}"
            ) from error

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them; OpenCV 4 returns labels as float32."""
        if self._net is None:
            raise BackendError("this backend is closed")
        check_batch(batch, self._card)
        self._check_sides(batch)
        try:
            self._net.setInput(batch, self._card.input_name)
            # A copy: the net writes its next output to the same place.
            return np.array(self._net.forward(self._card.output_name))
        except cv2.error as error:
            raise BackendError(f"OpenCV failed: {one_line(error)}") from error

    def close(self) -> None:
        """Free the net."""
        self._net = None

    def _check_sides(self, batch: NDArray[Any]) -> None:
        """Refuse sides that shrink to one pixel: OpenCV 5 reads past the end of such a map where a graph resizes it.

        A graph of fixed size repeats the pixel instead, which one of open size cannot foresee.
        """
        least = 2 * self._card.stride
        sides = batch.shape[1:3] if self._card.input_form == "pixels" else batch.shape[2:]
        if _IS_5 and "size" in self._card.dynamic and min(sides) < least:
            raise BackendError(
                f"{_ENGINE} takes no sides below {least} pixels of this model, and got {sides}; use --backend ort"
            )

    def _require_cuda(self) -> None:
        if self._dnn.DNN_TARGET_CUDA not in self._dnn.getAvailableTargets(self._dnn.DNN_BACKEND_CUDA):
            raise DeviceError(
                f"cuda was asked for, but this OpenCV ({cv2.__version__}) runs networks on the CPU only, as all builds "
                "from the package index do; use --device cpu, or --backend ort"
            )

    def _read(self, model: Path, *, on_cuda: bool) -> Any:
        engine = "ENGINE_CLASSIC" if on_cuda else "ENGINE_NEW"
        chosen = [getattr(self._dnn, engine)] if hasattr(self._dnn, engine) else []  # OpenCV 4 has one engine only
        net = self._dnn.readNetFromONNX(str(model), *chosen)
        if on_cuda:
            net.setPreferableBackend(self._dnn.DNN_BACKEND_CUDA)
            net.setPreferableTarget(self._dnn.DNN_TARGET_CUDA)
        return net

    def _try(self) -> None:
        """Run blank pictures of every shape that matters: the default one, and one in which every open axis differs.

        Raises:
            BackendError: if the engine fails, is known to be wrong, or returns another shape than the card promises.
        """
        if _IS_5 and any("Int8" in kind for kind in self._net.getLayerTypes()):
            raise BackendError("it gets the last pixels of small int8 maps wrong")
        for taken, promised in _shapes_to_try(self._card):
            got = self.run(np.zeros(taken, input_dtype(self._card))).shape
            if got != promised:
                raise BackendError(f"of pictures {taken} it returns {got} instead of {promised}")


def _shapes_to_try(card: ModelCard) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    height, width = card.preprocess.size
    for more in (1, 0) if card.dynamic else (0,):  # the default one last: what was allocated for it is used again
        batch = [1 + more] if "batch" in card.dynamic else []
        sides = [height + more * card.stride, width + 2 * more * card.stride] if "size" in card.dynamic else []
        yield _filled(card.input_shape, batch + sides), _filled(card.output_shape, batch + sides)


def _filled(shape: Shape, sizes: list[int]) -> tuple[int, ...]:
    """Put ``sizes`` in the places that a shape leaves open, which have the same order in every shape of a card."""
    left = iter(sizes)
    return tuple(next(left) if side is None else side for side in shape)


def _advice(card: ModelCard) -> str:
    simpler = ["without --dynamic size"] if "size" in card.dynamic else []
    if card.precision != "fp32":
        simpler.append("with --precision fp32")
    return "use --backend ort" + (f", or export it {' and '.join(simpler)}" if simpler else "")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep off stderr what OpenCV also raises."""
    logging: Any = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
