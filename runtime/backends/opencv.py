"""OpenCV's DNN module: no engine to install beside OpenCV itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import check_batch, input_dtype, shapes_of, share_threads
from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError, one_line
from segship.runtime.model_file import check_fits
from segship.runtime.printable import printable

_ENGINE: Final = f"OpenCV {cv2.__version__}"
_KNOWN: Final = frozenset({"threads", "streams", "engine"})
_IS_5: Final = cv2.__version__.startswith("5.")


class OpenCVBackend:
    """Runs an ONNX file with OpenCV DNN, versions 4 and 5.

    The engine is chosen, never left to OpenCV: version 5's new engine runs on the CPU only and, asked for another
    target, warns and runs on the CPU all the same; so CUDA and OpenCL get the classic one. What an engine lacks, it
    says of some graphs while it runs them, and of others never; so blank pictures go through the graph before it
    counts as loaded.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` (CUDA where OpenCV was built with it and runs this graph there, else the CPU) or ``cpu``;
            ``cuda[:0]`` or ``opencl`` where OpenCV was built with it.
        options: threads, which all of OpenCV in this process then uses, and engine.
    """

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        options.allow("opencv", _KNOWN).one_stream("opencv", "all its nets share one set of threads")
        check_fits(model, card)  # OpenCV runs a graph on inputs of other sizes than its own, and returns something
        self._dnn: Any = cv2.dnn  # what it holds differs between the versions
        self._card = card
        self._net: Any = None
        self._lock = threading.Lock()  # a net keeps its input and output in itself
        targets, faults = _targets(device, options), []
        engines = [_engine(target, options) for target in targets]
        share_threads(options, cv2.getNumThreads, cv2.setNumThreads)
        for target, engine in zip(targets, engines, strict=True):
            try:
                self._load(model, target, engine)
                break
            except ModelError as error:
                if target == targets[-1]:
                    raise
                faults.append(f"{target} is not used: {one_line(error.__cause__ or error)}")
        notes = [*(["its classic engine"] if _IS_5 and engine == "classic" else []), *faults]
        place = "cuda:0" if target == "cuda" else target
        self._info = EngineInfo("opencv", _ENGINE, place, card.precision, cv2.getNumThreads(), note="; ".join(notes))

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them; OpenCV 4 returns labels as float32.

        From any thread; one runs, the others wait.
        """
        with self._lock:
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
        """Free the net as soon as the run that is under way has ended."""
        with self._lock:
            self._net = None

    def _check_sides(self, batch: NDArray[Any]) -> None:
        """Refuse sides that shrink to one pixel: OpenCV 5 reads past the end of such a map where a graph resizes it.

        A graph of fixed size repeats the pixel instead, which one of open size cannot foresee.
        """
        least = 2 * self._card.stride
        rows = self._card.input_axes.index("H")
        sides = batch.shape[rows : rows + 2]
        if _IS_5 and "size" in self._card.dynamic and min(sides) < least:
            raise BackendError(
                f"{_ENGINE} takes no sides below {least} pixels of this model, and got {sides}; use --backend ort"
            )

    def _load(self, model: Path, target: str, engine: str) -> None:
        """Read the graph and try it.

        Raises:
            ModelError: if OpenCV cannot run it there.
        """
        try:
            with _silence():
                self._net = self._read(model, target, engine)
                self._try()
        except (cv2.error, BackendError) as error:
            raise ModelError(
                f"{model}: {_ENGINE} cannot run this graph ({one_line(error)}); {_advice(self._card)}"
            ) from error

    def _read(self, model: Path, target: str, engine: str) -> Any:
        chosen = [getattr(self._dnn, f"ENGINE_{engine.upper()}")] if _IS_5 else []  # OpenCV 4 has one engine only
        # OpenCV crashes on a path that is no UTF-8; as bytes, weights in a file beside it are not found.
        source = str(model) if printable(model) == str(model) else np.fromfile(model, np.uint8)
        net = self._dnn.readNetFromONNX(source, *chosen)
        if target != "cpu":
            on_cuda = target == "cuda"
            net.setPreferableBackend(self._dnn.DNN_BACKEND_CUDA if on_cuda else self._dnn.DNN_BACKEND_OPENCV)
            net.setPreferableTarget(self._dnn.DNN_TARGET_CUDA if on_cuda else self._dnn.DNN_TARGET_OPENCL)
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
        yield shapes_of(card, 1 + more, (height + more * card.stride, width + 2 * more * card.stride))


def _targets(device: str, options: EngineOptions) -> tuple[str, ...]:
    """Return where to run the graph, the best place first; the next one is taken where it does not work."""
    if device != "auto":
        return (_target(device),)
    return ("cuda", "cpu") if _has_cuda() and options.engine != "new" else ("cpu",)


def _target(device: str) -> str:
    """Return ``cpu``, ``cuda`` or ``opencl``, if this OpenCV runs networks there.

    Raises:
        DeviceError: if it does not; OpenCV itself would warn and take the CPU.
    """
    if device == "cpu":
        return "cpu"
    if device not in ("cuda", "cuda:0", "opencl"):
        raise DeviceError(f"the opencv backend has no device {device!r}; expected auto, cpu or cuda, or opencl")
    dnn: Any = cv2.dnn
    if device == "opencl":
        found = dnn.DNN_TARGET_OPENCL in dnn.getAvailableTargets(dnn.DNN_BACKEND_OPENCV) and _has_opencl_gpu()
        missing = "finds no OpenCL driver of a GPU here"
    else:
        found = _has_cuda()
        missing = "runs networks on the CPU only, as all builds from the package index do"
    if not found:
        raise DeviceError(
            f"{device} was asked for, but this OpenCV ({cv2.__version__}) {missing}; use --device cpu, or --backend ort"
        )
    return device.partition(":")[0]


def _has_cuda() -> bool:
    dnn: Any = cv2.dnn
    return dnn.DNN_TARGET_CUDA in dnn.getAvailableTargets(dnn.DNN_BACKEND_CUDA)


def _has_opencl_gpu() -> bool:
    """Tell whether OpenCL's default device is a GPU: on others, OpenCV's networks run on the CPU without it."""
    ocl: Any = cv2.ocl
    if not ocl.haveOpenCL():
        return False
    ocl.setUseOpenCL(True)
    return bool(ocl.useOpenCL() and ocl.Device_getDefault().type() & ocl.Device_TYPE_GPU)


def _engine(target: str, options: EngineOptions) -> str:
    """Return ``new`` or ``classic``, as asked for or as the target needs.

    Raises:
        BackendError: if what was asked for does not run there.
    """
    if options.engine == "new" and not _IS_5:
        raise BackendError(f"OpenCV's new engine was asked for, but {_ENGINE} has the classic one only; leave it out")
    if options.engine == "new" and target != "cpu":
        raise BackendError(f"OpenCV's new engine runs on the CPU only, not on {target}; leave engine=new out")
    return options.engine or ("new" if _IS_5 and target == "cpu" else "classic")


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
