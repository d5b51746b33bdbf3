"""TensorRT, as a provider of ONNX Runtime; what it cannot run, CUDA does."""

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import import_onnxruntime, input_dtype, shapes_of
from segship.runtime.backends.gpus import cuda_gpu, cuda_number, driver_version, has_nvidia_driver
from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.backends.ort import cuda_options, load_cuda_libraries
from segship.runtime.backends.ort_session import CPU, CUDA, TENSORRT, OrtSession, threads_of
from segship.runtime.backends.tensorrt_cache import EngineKey, building, engine_folder, is_whole
from segship.runtime.backends.tensorrt_library import INSTALL, load_tensorrt
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError
from segship.runtime.model_file import check_fits, content_sha256

_KNOWN: Final = frozenset(
    {
        *("threads", "streams", "precision", "io_binding", "memory_arena"),
        *("memory_limit_mb", "cuda_graph", "tf32", "cache"),
    }
)
_DEVICES: Final = "auto or cuda[:N]"
_MOST_PICTURES: Final = 8
_WIDEST: Final = 2
_TF32: Final = "NVIDIA_TF32_OVERRIDE"


class TensorRTBackend:
    """Runs an ONNX file with TensorRT.

    The first load on a machine builds the engine, for minutes; later loads take it from the cache. Of a graph that
    leaves its size or batch open, it is built for up to twice the card's size and eight pictures, and refuses more.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` (the first GPU) or ``cuda[:N]``.
        options: ``precision="engine"`` calculates in float16 where that is faster.
    """

    _without_tf32: ClassVar[bool | None] = None  # TensorRT asks the environment once in the life of a process

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        self._setup = setup = _Setup(model, card, device, options)
        self._choose_tf32(options)
        folder = engine_folder(setup.key, options.cache)
        if not is_whole(folder):
            with building(folder, setup.key) as new:
                built = setup.open(new)
                built.run(np.zeros(setup.key.shapes[1], input_dtype(card)))  # parts of unknown shape are built by now
                built.close()
        self._session = setup.open(folder)
        self._info = EngineInfo(
            "tensorrt",
            f"TensorRT {setup.key.tensorrt} in ONNX Runtime {setup.key.onnxruntime}",
            f"cuda:{setup.number}",
            setup.key.precision,
            threads_of(options)[1],
            options.streams,
            self._session.nodes,
        )

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    @property
    def transfer_ns(self) -> int | None:
        """Nanoseconds that copies to and from the GPU took in all runs so far; None where they cannot be told."""
        return self._session.transfer_ns

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them; from any thread.

        Raises:
            BackendError: also if the engine was not built for a batch of this shape.
        """
        least, _, most = self._setup.key.shapes
        if batch.ndim == len(least) and not all(map(_lies_within, batch.shape, least, most)):
            raise BackendError(f"this TensorRT engine takes {least} to {most}; it was given {batch.shape}")
        return self._session.run(batch)

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    @classmethod
    def _choose_tf32(cls, options: EngineOptions) -> None:
        """Let TensorRT round to TF32 or not, which ONNX Runtime cannot tell it and an environment variable can."""
        without, asked = not options.tf32, f"tf32={str(options.tf32).lower()} is what was asked for"
        if cls._without_tf32 not in (None, without):
            raise BackendError(
                f"{asked}, but TensorRT runs in this process already, the other way, and decides once; "
                "use a process of its own"
            )
        if without:
            os.environ.setdefault(_TF32, "0")
        if without != (os.environ.get(_TF32) == "0"):
            raise BackendError(f"{asked}, but {_TF32}={os.environ[_TF32]} is set; unset it, or change tf32")
        cls._without_tf32 = without


def is_prepared(model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> bool:
    """Tell whether the engine of a model is built already, so that loading it takes no minutes.

    Raises:
        BackendError, DeviceError, MissingExtraError, ModelError: whatever :class:`TensorRTBackend` would raise before
            it builds an engine.
    """
    return is_whole(engine_folder(_Setup(model, card, device, options).key, options.cache))


def require_prepared(model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
    """Refuse a model whose engine would have to be built first, for a source that cannot wait.

    Raises:
        BackendError: naming the command that builds it; otherwise what :func:`is_prepared` raises.
    """
    if not is_prepared(model, card, device, options):
        raise BackendError(
            f"no engine is built yet for {model} on this GPU, driver and version; "
            f"build it first: seg-infer {model} --prepare --backend tensorrt"
        )


class _Setup:
    """What is known of an engine before it is built or loaded."""

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions) -> None:
        options.allow("tensorrt", _KNOWN)
        check_fits(model, card)
        self.number = 0 if device == "auto" else cuda_number(device, "tensorrt", _DEVICES)
        if options.cuda_graph:
            options.one_stream("tensorrt", "a recorded CUDA graph")
        if options.cuda_graph and (card.dynamic or options.io_binding is False):
            raise BackendError(
                "cuda_graph was asked for, which takes a graph of fixed shapes and io_binding; leave it out"
            )
        self._ort = import_onnxruntime("gpu", "the tensorrt backend")
        self._model, self._card, self._options = model, card, options
        _check_provider(self._ort)
        self._lacks = load_cuda_libraries(self._ort)
        version = load_tensorrt()
        name, capability = cuda_gpu(self.number)
        self.key = EngineKey(
            name,
            capability,
            driver_version(),
            version,
            self._ort.__version__,
            content_sha256(model, card),
            _precision(card, options),
            options.tf32,
            options.memory_limit_mb,
            _profile(card),
        )

    def open(self, folder: Path) -> OrtSession:
        """Load the engine in a folder, or build it there.

        Raises:
            DeviceError: if ONNX Runtime does not run it with TensorRT.
        """
        providers = [
            (TENSORRT, self._provider_options(folder)),
            (CUDA, cuda_options(dataclasses.replace(self._options, cuda_graph=False), self.number)),
            CPU,
        ]
        binds = self._options.io_binding is not False
        try:
            session = OrtSession(
                self._ort, self._model, self._card, self._options, providers, gpu=self.number, binds=binds
            )
            cause = f"it took {session.providers[0]}"
        except ModelError as error:
            session, cause = None, str(error)
        cause = f"it lacks {', '.join(self._lacks)}" if self._lacks else cause
        if session is None or session.providers[0] != TENSORRT:
            raise DeviceError(
                f"TensorRT {self.key.tensorrt} on {self.key.gpu} was asked for, but ONNX Runtime could not start it "
                f"({cause}); use --backend ort"
            )
        if session.nodes and all(provider != TENSORRT for provider, _ in session.nodes):
            raise ModelError(f"{self._model}: TensorRT runs no node of this graph; use --backend ort")
        return session

    def _provider_options(self, folder: Path) -> dict[str, str]:
        asked = {
            "device_id": str(self.number),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": os.fspath(folder),
            "trt_fp16_enable": str(int(self.key.precision == "fp16")),
            "trt_int8_enable": str(int(self._card.precision == "int8")),
        }
        if self._options.memory_limit_mb is not None:
            asked["trt_max_workspace_size"] = str(self._options.memory_limit_mb << 20)
        if self._options.cuda_graph:
            asked["trt_cuda_graph_enable"] = "1"
        if self._card.dynamic:
            for bound, shape in zip(("min", "opt", "max"), self.key.shapes, strict=True):
                asked[f"trt_profile_{bound}_shapes"] = f"{self._card.input_name}:{'x'.join(map(str, shape))}"
        return asked


def _precision(card: ModelCard, options: EngineOptions) -> str:
    if card.precision != "fp32":
        return card.precision
    if options.precision == "engine":
        return "fp16"
    return "tf32" if options.tf32 else "fp32"


def _profile(card: ModelCard) -> tuple[tuple[int, ...], ...]:
    """Return the least, usual and largest input that an engine is built for; of a graph of fixed shapes all are one."""
    height, width = card.preprocess.size
    sizes = (
        (1, (card.stride, card.stride)),
        (1, (height, width)),
        (_MOST_PICTURES, (_WIDEST * height, _WIDEST * width)),
    )
    return tuple(shapes_of(card, count, size)[0] for count, size in sizes)


def _lies_within(side: int, least: int, most: int) -> bool:
    return least <= side <= most


def _check_provider(ort: Any) -> None:
    if TENSORRT not in ort.get_available_providers():
        raise DeviceError(
            f"tensorrt was asked for, but this ONNX Runtime ({ort.__version__}) is built without it; "
            f"use --backend ort, or install the other build: {INSTALL}"
        )
    if not has_nvidia_driver():
        raise DeviceError("tensorrt was asked for, but this machine has no NVIDIA driver; use --backend ort")
