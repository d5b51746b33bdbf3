"""What every engine needs: a silent import, a batch that fits its graph, and what is to come of it."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, require

_OPENVINO_TELEMETRY: Final = "openvino_telemetry"
_OPENVINO_IMPORT: Final = threading.Lock()


def import_onnxruntime(extra: str, purpose: str = "the ort backend") -> Any:
    """Import ONNX Runtime, of the given extra, without the report that it sends to its makers.

    Since version 1.29 its builds for Linux and macOS send one as soon as they are imported, and leave an identity of
    the machine in the user's folder; an environment variable that the user has set himself stays as it is.

    Raises:
        MissingExtraError: if it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra=extra, purpose=purpose)


def import_openvino() -> Any:
    """Import OpenVINO without the report that it sends to its makers.

    It does so as soon as it is imported, unless the package for it is missing, so this one is hidden meanwhile.

    Raises:
        MissingExtraError: if it is not installed.
    """
    with _OPENVINO_IMPORT:
        hidden = _OPENVINO_TELEMETRY not in sys.modules
        if hidden:
            sys.modules[_OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # which makes its import fail
        try:
            openvino = require("openvino", extra="openvino", purpose="the openvino backend")
        finally:
            if hidden:
                del sys.modules[_OPENVINO_TELEMETRY]
        # Two threads that hand it a first array, or take one, at once would wait for each other for ever.
        _ = openvino.Tensor(np.zeros(1, np.float32)).data
        return openvino


def share_threads(options: EngineOptions, number: Callable[[], int], set_number: Callable[[int], None]) -> None:
    """Set the number of threads of a library that has one for the whole process.

    Where none is asked for it is only lowered, to the CPUs that there are: libraries count the host's.
    """
    if options.threads is not None or number() > options.cpu_threads:
        set_number(options.cpu_threads)


def check_batch(batch: NDArray[Any], card: ModelCard) -> None:
    """Refuse a batch that the graph does not take: of such, engines cut, convert or compute something else in silence.

    Raises:
        BackendError: if its shape or type is not what the card describes.
    """
    shape, dtype = card.input_shape, input_dtype(card)
    fits = len(shape) == batch.ndim and all(side in (None, got) for side, got in zip(shape, batch.shape, strict=True))
    if not fits or batch.dtype != dtype:
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise BackendError(f"the graph takes ({expected}) {dtype}; it was given {batch.shape} {batch.dtype}")


def input_dtype(card: ModelCard) -> np.dtype[Any]:
    """Return the type of what the graph takes."""
    return np.dtype(card.input_dtype)


def shapes_of(card: ModelCard, count: int, size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what shapes the graph takes and returns, of ``count`` pictures of ``size`` where it leaves them open."""
    return card.shapes_of(count, size)


def output_shape_of(card: ModelCard, taken: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that the graph returns of a batch of the shape ``taken``."""
    sides = dict(zip(card.input_axes, taken, strict=True))
    return card.shapes_of(sides["N"], (sides["H"], sides["W"]))[1]
