"""Trying a graph that is not written yet: in ONNX Runtime on the CPU, on the road that every picture takes."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.preprocess import FULL_SCALE
from segship.runtime.segmenter import Segmenter

SECONDS: Final = 3.0
MIN_RUNS: Final = 5


@contextlib.contextmanager
def loaded(model: onnx.ModelProto, card: ModelCard) -> Iterator[Backend]:
    """Load a graph into ONNX Runtime.

    Raises:
        MissingExtraError: if ONNX Runtime is not installed.
        ModelError: if it cannot load the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        backend = load_backend("ort", path, card, "cpu")
        try:
            yield backend
        finally:
            backend.close()


@contextlib.contextmanager
def segmenting(model: onnx.ModelProto, card: ModelCard) -> Iterator[Segmenter]:
    """Load a graph and segment pictures with it, whatever it takes and returns."""
    with loaded(model, card) as backend:
        yield Segmenter("the graph", backend=backend, card=card)


def speed_ratio(reference: onnx.ModelProto, other: onnx.ModelProto, card: ModelCard) -> float:
    """Return how many times as fast as ``reference`` the graph ``other`` is in ONNX Runtime on this CPU.

    The two take turns, so that what else the machine does meets both, for a few seconds; medians are compared.

    Raises:
        BackendError: if ONNX Runtime cannot run them.
    """
    batch = _noise(card)
    with loaded(reference, card) as first, loaded(other, card) as second:
        backends = (first, second)
        times: tuple[list[float], list[float]] = ([], [])
        for backend in backends:
            backend.run(batch)  # the first run also allocates
        end = time.perf_counter() + SECONDS
        while len(times[1]) < MIN_RUNS or time.perf_counter() < end:
            for backend, taken in zip(backends, times, strict=True):
                start = time.perf_counter()
                backend.run(batch)
                taken.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def _noise(card: ModelCard) -> NDArray[Any]:
    """Return one picture of noise in the form that the graph takes, at its default size."""
    height, width = card.frame or card.preprocess.size
    form, rng = card.preprocess, np.random.default_rng(0)
    if card.input_form == "float":
        return rng.standard_normal((1, form.channels, height, width), np.float32)
    full = FULL_SCALE[form.depth]
    return rng.integers(0, full, (1, height, width, form.channels), form.depth, endpoint=True)
