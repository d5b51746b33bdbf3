"""Input and output of ONNX Runtime in memory that is allocated once, on the device that computes."""

import queue
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends.common import input_dtype, output_shape_of
from segship.runtime.card import ModelCard

_FLOATS: Final = {"float": "float32", "double": "float64"}
"""What NumPy calls the types of ONNX that it calls otherwise."""


class BoundRuns:
    """Runs a session on bound memory, a set of it for each run at once; more runs than sets wait.

    Args:
        ort: the package ``onnxruntime``.
        session: that runs.
        card: of its model.
        device: kind (``cpu`` or ``cuda``) and number of the device whose memory it is.
        count: how many runs there may be at once.
    """

    def __init__(self, ort: Any, session: Any, card: ModelCard, device: tuple[str, int], count: int) -> None:
        self._all = [_Bound(ort, session, card, device) for _ in range(count)]
        self._free: queue.SimpleQueue[_Bound] = queue.SimpleQueue()
        for bound in self._all:
            self._free.put(bound)

    @property
    def transfer_ns(self) -> int:
        """Nanoseconds that copies into and out of the bound memory took, in all runs so far."""
        return sum(bound.transfer_ns for bound in self._all)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, in memory that later runs leave alone."""
        bound = self._free.get()
        try:
            return bound.run(batch)
        finally:
            self._free.put(bound)


class _Bound:
    """One set of memory, bound anew only where the shape of the batch changes: a recorded CUDA graph knows no other."""

    def __init__(self, ort: Any, session: Any, card: ModelCard, device: tuple[str, int]) -> None:
        self._ort, self._session, self._card, self._device = ort, session, card, device
        kinds = {output.name: output.type for output in session.get_outputs()}
        kind = kinds[card.output_name].removeprefix("tensor(").removesuffix(")")
        self._output_type = np.dtype(_FLOATS.get(kind, kind))
        self._shape: tuple[int, ...] = ()
        self.transfer_ns = 0

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        if batch.shape != self._shape:
            self._bind(batch.shape)
        start = time.perf_counter_ns()
        self._input.update_inplace(batch)
        copied = time.perf_counter_ns()
        self._session.run_with_iobinding(self._binding)
        computed = time.perf_counter_ns()
        result: NDArray[Any] = self._output.numpy()
        if not result.flags.owndata:  # on the CPU it is the bound memory itself
            result = result.copy()
        self.transfer_ns += copied - start + time.perf_counter_ns() - computed
        return result

    def _bind(self, shape: tuple[int, ...]) -> None:
        self._shape = ()  # should what follows fail, the next run must not take it for done
        self._input = self._allocated(shape, input_dtype(self._card))
        self._output = self._allocated(output_shape_of(self._card, shape), self._output_type)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._card.input_name, self._input)
        self._binding.bind_ortvalue_output(self._card.output_name, self._output)
        self._shape = shape

    def _allocated(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *self._device)
