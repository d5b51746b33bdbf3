"""Simplify a graph in a process of its own, which may hang, crash or eat memory without taking the export with it.

Run as a program, ``python -m segship.export.simplify IN OUT``, this module is that process. Whether the simplified
graph still computes the same is for the comparison with PyTorch to tell; here it is looked at from outside.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError, EncodeError

from segship.runtime.errors import one_line

SECONDS: Final = 300.0
LIMIT_BYTES: Final = (2 << 30) - (1 << 20)
"""What protobuf can hold in one piece."""
COMMAND: Final = (sys.executable, "-m", "segship.export.simplify")

_SKIPPED: Final = ["fuse_pad_into_pool"]
"""OpenCV 4 (in float32) and OpenVINO (in 8 bits) compute average pools wrongly that pad; a Pad before them is right."""
_SPARE_BYTES: Final = 4 << 30
_LOOK_EVERY_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Simplified:
    """What came of it.

    Attributes:
        model: simplified, or as it was.
        fault: why it is as it was, in words; empty where it is simplified.
        nodes_before: nodes of the graph as it was.
        nodes_after: nodes of ``model``.
    """

    model: onnx.ModelProto
    fault: str
    nodes_before: int
    nodes_after: int


def simplify(
    model: onnx.ModelProto,
    *,
    seconds: float = SECONDS,
    memory_bytes: int | None = None,
    command: Sequence[str] = COMMAND,
) -> Simplified:
    """Simplify a graph with onnxsim; whatever goes wrong, the graph comes back as it was, with the reason.

    Args:
        model: the graph.
        seconds: after which the simplifier is ended.
        memory_bytes: that it may have in memory; None: 4 GB and sixteen times the graph, of which it makes several
            copies. Only Linux tells how much that is; elsewhere nothing is limited.
        command: the program, called with the file to read and the file to write.
    """
    size = serialised_bytes(model)
    simplified, fault = model, "the graph holds more than the 2 GB that the simplifier can be given"
    if size <= LIMIT_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "traced.onnx", Path(folder) / "simplified.onnx"
            source.write_bytes(model.SerializeToString())
            limit = memory_bytes or _SPARE_BYTES + 16 * int(size)
            fault = _run([*command, str(source), str(target)], Path(folder) / "said.txt", seconds, limit)
            if not fault:
                try:
                    simplified = onnx.load(target)
                except (OSError, DecodeError) as error:
                    fault = f"the simplifier left no graph ({one_line(error)})"
        fault = fault or _changes(model, simplified)
    kept = model if fault else simplified
    return Simplified(kept, fault, len(model.graph.node), len(kept.graph.node))


def serialised_bytes(model: onnx.ModelProto) -> float:
    """Return the size of a model as a file; where protobuf cannot write it in one piece, something larger than that."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > LIMIT_BYTES:
        return weights  # protobuf would write all of it before it finds out
    try:
        return float(model.ByteSize())
    except EncodeError:
        return float("inf")


def _run(command: list[str], said: Path, seconds: float, memory_bytes: int) -> str:
    """Run a program within its limits; return what went wrong, in words."""
    with _running(command, said) as process:
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                return f"the simplifier was ended after {seconds:g} s"
            if _resident_bytes(process.pid) > memory_bytes:
                return f"the simplifier was ended when it took more than {memory_bytes / 1e9:.1f} GB of memory"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_SECONDS)
    if process.returncode == 0:
        return ""
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")
    how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with status {process.returncode}"
    return f"the simplifier ended {how} ({last})"


@contextlib.contextmanager
def _running(command: list[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and what it starts itself, no longer than the block; its output goes to the file ``said``."""
    with said.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own module, and paths that we made
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:  # also when interrupted from the keyboard
            if process.poll() is None:
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()


def _resident_bytes(pid: int) -> int:
    """Return how much memory a process holds; 0 where the system does not tell.

    What it reserves is no measure: engines reserve far more than they ever touch.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):  # not Linux, or it has ended just now
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _changes(model: onnx.ModelProto, simplified: onnx.ModelProto) -> str:
    """Say what a simplifier has no business to change."""
    for what, before, after in (
        ("the opset", _opsets(model), _opsets(simplified)),
        ("the inputs", _values(model.graph.input), _values(simplified.graph.input)),
        ("the outputs", _values(model.graph.output), _values(simplified.graph.output)),
    ):
        if before != after:
            return f"the simplifier changed {what} of the graph from {before} to {after}"
    return ""


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain: entry.version for entry in model.opset_import}


def _values(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, str, list[int | str]]]:
    return [
        (
            value.name,
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def _main(source: str, target: str) -> int:
    sys.modules["torch"] = None  # type: ignore[assignment]  # onnxsim would import it, which takes seconds, for nothing
    import onnxsim

    simplified, _ = onnxsim.simplify(source, skipped_optimizers=_SKIPPED)
    Path(target).write_bytes(simplified.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:3]))
