"""What every engine needs: a silent import, its share of the CPUs, and a batch that fits its graph."""

import os
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, require

_OPENVINO_TELEMETRY: Final = "openvino_telemetry"


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_onnxruntime(extra: str) -> Any:
    """Import ONNX Runtime, of the given extra, without the report that it sends to its makers.

    Since version 1.29 its builds for Linux and macOS send one as soon as they are imported, and leave an identity of
    the machine in the user's folder; an environment variable that the user has set himself stays as it is.

    Raises:
        MissingExtraError: if it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra=extra, purpose="the ort backend")


def import_openvino() -> Any:
    """Import OpenVINO without the report that it sends to its makers.

    It does so as soon as it is imported, unless the package for it is missing, so this one is hidden meanwhile.

    Raises:
        MissingExtraError: if it is not installed.
    """
    hidden = _OPENVINO_TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # which makes its import fail
    try:
        return require("openvino", extra="openvino", purpose="the openvino backend")
    finally:
        if hidden:
            del sys.modules[_OPENVINO_TELEMETRY]


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
    return np.dtype(card.preprocess.depth if card.input_form == "pixels" else "float32")
