"""OpenVINO, on the CPU."""

import os
import queue
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import check_batch, import_openvino
from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError, StreamsError, one_line
from segship.runtime.model_file import check_fits

_KNOWN: Final = frozenset({"threads", "streams", "precision", "cache"})
_QUANTIZE: Final = "FakeQuantize"  # what OpenVINO makes of ONNX's QuantizeLinear, before a Convert


class OpenVINOBackend:
    """Runs an ONNX file with OpenVINO.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` or ``cpu``, which are the same.
        options: threads, streams, precision and cache. One stream is tuned for latency, several for throughput.
    """

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        options.allow("openvino", _KNOWN)
        check_fits(model, card)
        openvino = import_openvino()
        if device not in ("auto", "cpu"):
            raise DeviceError(
                f"{device!r} was asked for, but the openvino backend has the CPU only: expected auto or cpu; "
                "use --device cpu, or --backend ort for cuda"
            )
        engine = f"OpenVINO {str(openvino.__version__).partition('-')[0]}"  # the rest names the build
        try:
            core = openvino.Core()
            graph = core.read_model(os.fspath(model))
            if fault := _int8_fault(graph):
                raise ModelError(f"{model}: {engine} would compute something else than this int8 graph says: {fault}")
            compiled = core.compile_model(graph, "CPU", _settings(options))
            self._requests: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
            for _ in range(options.streams):
                self._requests.put(compiled.create_infer_request())
        except RuntimeError as error:
            raise ModelError(f"{model}: {engine} cannot load it ({one_line(error)})") from error
        computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        threads, streams = (compiled.get_property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"))
        if streams != options.streams:
            raise StreamsError(
                f"{options.streams} streams were asked for, but OpenVINO runs {streams} on {threads} threads; "
                "it takes a thread or more for each: ask for fewer streams"
            )
        precision = {"f32": card.precision, "f16": "fp16"}.get(computes_in, computes_in)
        self._info = EngineInfo("openvino", engine, "cpu", precision, threads, streams)
        self._card = card

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them; from any thread."""
        requests = self._requests
        if requests is None:
            raise BackendError("this backend is closed")
        check_batch(batch, self._card)
        request = requests.get()
        try:
            outputs = request.infer({self._card.input_name: batch}, share_inputs=True)  # and copies its outputs
            return np.asarray(outputs[self._card.output_name])
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {one_line(error)}") from error
        finally:
            requests.put(request)

    def close(self) -> None:
        """Free the compiled model as soon as the runs that are under way have ended."""
        self._requests = None


def _settings(options: EngineOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.cpu_threads,
        "ENABLE_CPU_PINNING": False,  # the threads that decode want the same cores
        "PERFORMANCE_HINT": "LATENCY" if options.streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": options.streams,
    }
    if options.precision == "file":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if options.cache is not None:
        settings["CACHE_DIR"] = options.cache
    return settings


def _int8_fault(graph: Any) -> str:
    """Say what OpenVINO is known to get wrong of an int8 graph, and what to do; nothing where it is right.

    Seen in 2026.4: a convolution of signed values that were concatenated returns something unrelated; a pooling that
    counts its padding takes for zero what is stored as 0, although of unsigned values the zero point stands for it.
    """
    operators = list(graph.get_ops())
    kinds = {
        operator.get_output_element_type(0).to_string()
        for operator in operators
        if operator.get_type_name() == "Convert" and operator.input_value(0).get_node().get_type_name() == _QUANTIZE
    }
    if "i8" in kinds and any(map(_joins_numbers, operators)):
        return "it mixes up signed int8 values that are concatenated; use --backend ort, or export with --int8-for cpu"
    if "u8" in kinds and any(map(_counts_padding, operators)):
        return "its average pooling pads with a wrong zero; use --backend ort, or export with --precision fp32"
    return ""


def _joins_numbers(operator: Any) -> bool:
    return operator.get_type_name() == "Concat" and bool(operator.get_output_element_type(0).is_real())


def _counts_padding(operator: Any) -> bool:
    if operator.get_type_name() != "AvgPool":
        return False
    form = operator.get_attributes()
    return not form["exclude-pad"] and any([*form["pads_begin"], *form["pads_end"]])
