"""A session of ONNX Runtime, and where each node of its graph runs."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends.common import check_batch
from segship.runtime.backends.options import EngineOptions
from segship.runtime.backends.ort_binding import BoundRuns
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, ModelError, StreamsError, one_line

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

_FATAL_ONLY: Final = 4
_LEVELS: Final = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class OrtSession:
    """A graph in ONNX Runtime, which several threads may run at once.

    Args:
        ort: the package ``onnxruntime``.
        model: the ``.onnx`` file.
        card: the model's.
        options: of which all apply that are about threads, the graph or the CPU.
        providers: that may run nodes, the wanted one first, each a name or a name with its own options.
        gpu: number of the GPU on which input and output are kept; None: of the CPU.
        binds: keep input and output in memory that is allocated once.

    Attributes:
        providers: that the session has, the wanted one first; where that failed to start, it is not among them.
        nodes: how many nodes of the graph each provider runs, most first; empty where this ONNX Runtime does not tell.

    Raises:
        ModelError: if it cannot load the model.
        StreamsError: if it would need more threads than were asked for.
    """

    def __init__(
        self,
        ort: Any,
        model: Path,
        card: ModelCard,
        options: EngineOptions,
        providers: Sequence[Any],
        *,
        gpu: int | None = None,
        binds: bool = False,
    ) -> None:
        self._card = card
        asked = session_options(ort, options)
        try:
            # Without enable_fallback=0 it goes on with another provider when one fails, in the middle of a run too.
            self._session: Any = ort.InferenceSession(
                os.fspath(model), asked, providers=list(providers), enable_fallback=0
            )
            self.providers: list[str] = self._session.get_providers()
            self.nodes = _assigned_nodes(self._session)
            self._is_at_gpu = gpu is not None and self.providers[0] != CPU
            device = ("cuda", gpu or 0) if self._is_at_gpu else ("cpu", 0)
            self._bound = BoundRuns(ort, self._session, card, device, options.streams) if binds else None
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise ModelError(f"{model}: ONNX Runtime cannot load it ({one_line(error)})") from error

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them.

        Raises:
            BackendError: if the batch does not fit, the session is closed or ONNX Runtime fails.
        """
        session, bound = self._session, self._bound
        if session is None:
            raise BackendError("this backend is closed")
        check_batch(batch, self._card)
        try:
            if bound is not None:
                return bound.run(batch)
            return np.asarray(session.run([self._card.output_name], {self._card.input_name: batch})[0])
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise BackendError(f"ONNX Runtime failed: {one_line(error)}") from error

    @property
    def transfer_ns(self) -> int | None:
        """Nanoseconds that copies to and from the GPU took in all runs so far; None where input is not kept on one."""
        return self._bound.transfer_ns if self._bound is not None and self._is_at_gpu else None

    def close(self) -> None:
        """Free the session as soon as the runs that are under way have ended."""
        self._session = self._bound = None


def be_quiet(ort: Any) -> None:
    """Keep off stderr what ONNX Runtime says while it looks for a GPU; what matters of it, our errors say."""
    ort.set_default_logger_severity(_FATAL_ONLY)


def threads_of(options: EngineOptions) -> tuple[int, int]:
    """Return of how many threads each run is made, and how many all runs together may use.

    All runs share the threads that help them, and each has the one that called it besides.

    Raises:
        StreamsError: if there are fewer threads than streams, and so many were asked for.
    """
    if options.threads is not None and options.streams > options.threads:
        raise StreamsError(
            f"{options.streams} streams were asked for, and {options.threads} threads; ONNX Runtime runs each stream "
            "in a thread of its own: ask for fewer streams, or for more threads"
        )
    helpers = max(0, options.cpu_threads - options.streams)
    return helpers + 1, helpers + options.streams


def session_options(ort: Any, options: EngineOptions) -> Any:
    """Return ONNX Runtime's own options of a session that does what ``options`` ask for."""
    asked = ort.SessionOptions()
    asked.intra_op_num_threads, _ = threads_of(options)  # a set number also keeps it from pinning threads to cores
    asked.inter_op_num_threads = 1
    if options.streams > 1:
        asked.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the other runs' time
    if options.graph_optimization is not None:
        asked.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[options.graph_optimization])
    asked.enable_cpu_mem_arena = options.memory_arena
    asked.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    asked.log_severity_level = _FATAL_ONLY  # what matters is checked below and said in our own words
    return asked


def _assigned_nodes(session: Any) -> tuple[tuple[str, int], ...]:
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before version 1.24
        return ()
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return tuple(counts.most_common())
