"""Does an engine work here? It runs a graph of two nodes, in a process of its own, and says what came of it.

A library that does not fit the machine may crash or hang where no ``except`` catches it, and one that is loaded may
keep another from loading; so each engine gets a process: ``python -m segship.runtime.probe ENGINE DEVICE``.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from segship.runtime.protobuf import length_field

_TIMEOUT_S: Final = 300  # TensorRT builds an engine
_SIDE: Final = 8
_FLOAT: Final = 1  # TensorProto.DataType


@dataclass(frozen=True)
class Probe:
    """What an engine did.

    Attributes:
        backend: the name that ``--backend`` takes.
        device: that was asked for.
        works: it ran the graph and computed the right numbers.
        engine: library and version; empty if it did not come so far.
        running_device: that ran the graph.
        precision: that it calculated in.
        note: of the engine.
        fault: why it does not work.
        fault_kind: the class of that error; ``crash`` or ``timeout`` where there is none.
    """

    backend: str
    device: str
    works: bool = False
    engine: str = ""
    running_device: str = ""
    precision: str = ""
    note: str = ""
    fault: str = ""
    fault_kind: str = ""


def probe(backend: str, device: str, *, timeout_s: float = _TIMEOUT_S) -> Probe:
    """Try an engine on a device, in a process of its own."""
    command = [sys.executable, "-m", "segship.runtime.probe", backend, device]
    asked = Probe(backend, device)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return replace(asked, fault=f"did not answer within {timeout_s:g} s", fault_kind="timeout")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        last = f": {said[-1][:200]}" if said else ""
        return replace(asked, fault=f"crashed with status {done.returncode}{last}", fault_kind="crash")
    return Probe(**json.loads(done.stdout.splitlines()[-1]))  # what a library printed comes before


def two_nodes() -> bytes:
    """Return an ONNX file: a convolution of one pixel, then what is negative becomes 0; (1, 3, 8, 8) to (1, 2, 8, 8).

    Field numbers are those of onnx.proto3, version 1.
    """
    weights = length_field(8, b"weights") + length_field(9, _weights().astype("<f4").tobytes())
    weights += b"".join(_number(1, side) for side in (2, 3, 1, 1)) + _number(2, _FLOAT)
    graph = _node("Conv", "image", "weights", to="sums") + _node("Relu", "sums", to="logits")
    graph += length_field(2, b"two_nodes") + length_field(5, weights)
    graph += length_field(11, _tensor("image", (1, 3, _SIDE, _SIDE)))
    graph += length_field(12, _tensor("logits", (1, 2, _SIDE, _SIDE)))
    return _number(1, 8) + length_field(7, graph) + length_field(8, _number(2, 17))


def _weights() -> Any:
    import numpy as np

    return np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3, 1, 1)


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])  # both are small enough for a byte


def _node(operator: str, *inputs: str, to: str) -> bytes:
    names = b"".join(length_field(1, name.encode()) for name in inputs)
    return length_field(1, names + length_field(2, to.encode()) + length_field(4, operator.encode()))


def _tensor(name: str, shape: tuple[int, ...]) -> bytes:
    sides = b"".join(length_field(1, _number(1, side)) for side in shape)
    return length_field(1, name.encode()) + length_field(
        2, length_field(1, _number(1, _FLOAT) + length_field(2, sides))
    )


def _try(backend: str, device: str, folder: Path) -> Probe:
    """Run the graph in this process."""
    import numpy as np

    from segship.runtime.backends import load_backend
    from segship.runtime.backends.options import EngineOptions
    from segship.runtime.card import ModelCard
    from segship.runtime.errors import SegshipError
    from segship.runtime.preprocess import Preprocess

    asked = Probe(backend, device)
    model = folder / "two_nodes.onnx"
    model.write_bytes(two_nodes())
    card = ModelCard(("rest", "object"), ((0, 0, 0), (255, 255, 255)), Preprocess((_SIDE, _SIDE)))
    options = EngineOptions(cache=str(folder / "cache")) if backend == "tensorrt" else EngineOptions()
    batch = np.random.default_rng(0).standard_normal((1, 3, _SIDE, _SIDE), np.float32)
    try:
        engine = load_backend(backend, model, card, device, options)
        result = engine.run(batch)
        engine.close()
    except SegshipError as error:
        return replace(asked, fault=str(error), fault_kind=type(error).__name__)
    info = engine.info
    told = replace(asked, engine=info.engine, running_device=info.device, precision=info.precision, note=info.note)
    expected = np.maximum(np.tensordot(batch, _weights()[:, :, 0, 0], axes=(1, 1)).transpose(0, 3, 1, 2), 0)
    if result.shape == expected.shape and np.allclose(result, expected, rtol=1e-4, atol=1e-5):
        return replace(told, works=True)
    return replace(told, fault="it computes something else than the graph says", fault_kind="BackendError")


def _main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(asdict(_try(sys.argv[1], sys.argv[2], Path(folder)))) + "\n")


if __name__ == "__main__":
    _main()
