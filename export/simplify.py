"""Simplify a graph in a process of its own, which may hang, crash or eat memory without taking the export with it.

Run as a program, ``python -m segship.export.simplify IN OUT MAX_BYTES``, this module is that process.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from segship.runtime.errors import one_line

SECONDS: Final = 300.0
LIMIT_BYTES: Final = (2 << 30) - (1 << 20)
"""What protobuf can hold in one piece."""
COMMAND: Final = (sys.executable, "-m", "segship.export.simplify")

_SPARE_BYTES: Final = 4 << 30
_CHANGED: Final = 3


@dataclass(frozen=True)
class Simplified:
    """What came of it.

    Attributes:
        model: simplified, or as it was.
        fault: why it is as it was, in words; empty where it is simplified.
    """

    model: onnx.ModelProto
    fault: str = ""


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
        memory_bytes: address space that it may use; None: 4 GB and eight times the graph.
        command: the program, called with the file to read, the file to write and ``memory_bytes``.
    """
    size = model.ByteSize()
    if size > LIMIT_BYTES:
        return Simplified(model, f"the graph holds {size / 1e9:.1f} GB, more than the simplifier can be given")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "traced.onnx", Path(folder) / "simplified.onnx"
        source.write_bytes(model.SerializeToString())
        limit = memory_bytes or _SPARE_BYTES + 8 * size
        try:
            done = subprocess.run(  # noqa: S603  # our own module, and paths that we made
                [*command, str(source), str(target), str(limit)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Simplified(model, f"the simplifier was ended after {seconds:g} s")
        if done.returncode == _CHANGED:
            return Simplified(model, "the simplifier changed what the graph computes")
        if done.returncode:
            said = done.stderr.strip().splitlines()
            how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with status {done.returncode}"
            return Simplified(model, f"the simplifier ended {how} ({said[-1][:200] if said else 'it said nothing'})")
        try:
            simplified = onnx.load(target)
        except (OSError, DecodeError) as error:
            return Simplified(model, f"the simplifier left no graph ({one_line(error)})")
    return Simplified(model, fault) if (fault := _differences(model, simplified)) else Simplified(simplified)


def _differences(model: onnx.ModelProto, simplified: onnx.ModelProto) -> str:
    """Say what a simplifier has no business to change."""
    for what, before, after in (
        ("the opset", _opset(model), _opset(simplified)),
        ("the inputs", _values(model.graph.input), _values(simplified.graph.input)),
        ("the outputs", _values(model.graph.output), _values(simplified.graph.output)),
    ):
        if before != after:
            return f"the simplifier changed {what} of the graph from {before} to {after}"
    return ""


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _values(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, int, list[int | None]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def _main(source: str, target: str, memory_bytes: str) -> int:
    with contextlib.suppress(ImportError):  # a guard that not every system has
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    import onnxsim

    simplified, same = onnxsim.simplify(onnx.load(source))
    if not same:
        return _CHANGED
    Path(target).write_bytes(simplified.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:4]))
