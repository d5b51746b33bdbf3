"""What this machine can do at best: the roof that networks are held against."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.record import BenchError
from segship.runtime.backends.common import import_onnxruntime, import_openvino
from segship.runtime.backends.options import EngineOptions
from segship.runtime.backends.ort_session import CPU, session_options
from segship.runtime.errors import one_line, require

_LEAST_RUNS: Final = 3
_OPSET: Final = 17
_IR_VERSION: Final = 8

_Product = tuple[bytes, NDArray[Any]]


@dataclass(frozen=True)
class Peaks:
    """The most that a machine was seen to do.

    Attributes:
        gflop_s: 10⁹ operations a second of a large matrix product, two for each multiply-add, by precision: ``fp32``,
            ``int8``, ``bf16``. What is not among them, nothing here measures.
        gbyte_s: 10⁹ bytes a second of a large copy, read and written; None: not measured.
        notes: why something was not measured, a sentence each.
    """

    gflop_s: dict[str, float]
    gbyte_s: float | None
    notes: tuple[str, ...] = field(default=())


def measure_peaks(
    threads: int, device: str = "cpu", *, side: int = 1536, copied_bytes: int = 1 << 28, seconds: float = 0.5
) -> Peaks:
    """Measure the peaks of the CPU; of each the best of several runs, since whatever disturbs one makes it slower.

    Matrix products are those of the engines that networks run in, with a weight as their second factor as in networks:
    of ONNX Runtime and OpenVINO, the faster one where both are installed. int8: unsigned values by signed weights;
    bf16: OpenVINO, where the CPU has it. float16 has no peak: engines calculate it in float32 on CPUs.

    Args:
        threads: that are used, as many as the engine uses whose networks are held against it.
        device: that the network runs on; for any other than the CPU nothing is measured.
        side: of the square matrices.
        copied_bytes: that the copy reads, and writes: far more than caches hold.
        seconds: that each product and the copy are repeated for.

    Raises:
        MissingExtraError: if the package onnx is not installed.
        BenchError: if an engine fails.
    """
    if device != "cpu":
        return Peaks({}, None, (f"no peak of {device} is known: peaks are measured on the CPU alone",))
    products = _products(side)
    gflop_s: dict[str, float] = {}
    try:
        for precision, run in _runs(products, threads):
            rate = 2 * side**3 / 1e9 / _least_seconds(run, seconds)
            gflop_s[precision] = max(rate, gflop_s.get(precision, 0.0))
    except Exception as error:  # the engines' exceptions have no base class but this
        raise BenchError(f"no matrix product can be measured here ({one_line(error)})") from error
    notes = () if gflop_s else ("no peak of a matrix product is known: neither ort nor openvino is installed",)
    return Peaks(gflop_s, _copied_gbyte_s(threads, copied_bytes, seconds), notes)


def _products(side: int) -> dict[str, _Product]:
    """Return models of a matrix product and what they take, by precision."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 128, (side, side), np.int8)
    pixels = rng.integers(0, 256, (side, side), np.uint8)
    return {
        "fp32": (_float_product(weights.astype(np.float32)), pixels.astype(np.float32)),
        "int8": (_int8_product(weights), pixels),
    }


def _runs(products: dict[str, _Product], threads: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what runs each product in each engine that is installed, and its precision."""
    if importlib.util.find_spec("onnxruntime"):
        for precision, product in products.items():
            yield precision, _in_ort(*product, threads)
    if importlib.util.find_spec("openvino"):
        for precision, product in products.items():
            yield precision, _in_openvino(*product, threads, "f32")
        if "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            yield "bf16", _in_openvino(*products["fp32"], threads, "bf16")


def _least_seconds(run: Callable[[], object], seconds: float) -> float:
    run()  # what engines put off until the first run
    least, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < _LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        least, count = min(least, time.perf_counter() - start), count + 1
    return least


def _copied_gbyte_s(threads: int, copied_bytes: int, seconds: float) -> float:
    source, target = np.ones(copied_bytes, np.uint8), np.zeros(copied_bytes, np.uint8)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy lets others run while it copies
        least = _least_seconds(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), seconds)
    return 2 * copied_bytes / 1e9 / least


def _in_ort(model: bytes, x: NDArray[Any], threads: int) -> Callable[[], object]:
    ort = import_onnxruntime("cpu", "measuring the machine's peak")
    options = session_options(ort, EngineOptions(threads=threads))
    session = ort.InferenceSession(model, options, providers=[CPU])
    return lambda: session.run(None, {"x": x})


def _in_openvino(model: bytes, x: NDArray[Any], threads: int, precision: str) -> Callable[[], object]:
    core = import_openvino().Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda: request.infer({"x": x}, share_inputs=True, share_outputs=True)


def _float_product(weights: NDArray[np.float32]) -> bytes:
    return _model([("MatMul", ["x", "w"], "y")], "float32", {"w": weights})


def _int8_product(weights: NDArray[np.int8]) -> bytes:
    """Return it in the form in which int8 networks are written, which both engines bring into their own kernels."""
    scales = {"scale": np.float32(1 / 256), "coarse": np.float32(1)}
    zeros = {"zero": np.uint8(0), "signed_zero": np.int8(0)}
    nodes = [
        ("DequantizeLinear", ["x", "scale", "zero"], "floats"),
        ("DequantizeLinear", ["w", "scale", "signed_zero"], "weights"),
        ("MatMul", ["floats", "weights"], "product"),
        ("QuantizeLinear", ["product", "coarse", "zero"], "y"),
    ]
    return _model(nodes, "uint8", {"w": weights} | scales | zeros)


def _model(nodes: list[tuple[str, list[str], str]], dtype: str, constants: dict[str, Any]) -> bytes:
    onnx = require("onnx", extra="bench", purpose="measuring the machine's peak")
    helper = onnx.helper
    element, shape = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), constants["w"].shape
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "product",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, shape)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString())
