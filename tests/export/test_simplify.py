import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.export import simplify as module
from segship.export.simplify import Simplified, serialised_bytes, simplify

HEAD = "import sys, time, onnx\nsource, target = sys.argv[1:]\n"


@pytest.fixture
def graph() -> onnx.ModelProto:
    """A product with a constant that takes two nodes more than it needs."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2]))),
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("Mul", ["same", "two"], ["logits"]),
    ]
    shape = ["batch", 3]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    return helper.make_model(
        helper.make_graph(nodes, "graph", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go: nothing is left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fake(code: str) -> tuple[str, ...]:
    """Return a simplifier that runs this code."""
    return (sys.executable, "-c", HEAD + code)


def assert_kept(result: Simplified, graph: onnx.ModelProto, scratch: Path) -> None:
    assert result.model is graph
    assert result.nodes_before == result.nodes_after == 3
    assert not list(scratch.iterdir())


def test_a_graph_is_simplified_and_its_axes_keep_their_names(graph: onnx.ModelProto, scratch: Path) -> None:
    result = simplify(graph)
    assert (result.fault, result.nodes_before) == ("", 3)
    assert result.nodes_after == len(result.model.graph.node) < 3
    assert [entry.version for entry in result.model.opset_import] == [17]
    assert result.model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not list(scratch.iterdir())


def test_the_real_simplifier_says_why_it_cannot(graph: onnx.ModelProto, scratch: Path) -> None:
    graph.graph.node[2].input[0] = "nowhere"
    result = simplify(graph)
    assert_kept(result, graph, scratch)
    assert result.fault.startswith("the simplifier ended with status 1 (")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("raise ValueError('no such\\nthing')", "the simplifier ended with status 1 (thing)"),
        ("sys.exit(7)", "the simplifier ended with status 7 (it said nothing)"),
        ("import os; os.kill(os.getpid(), 11)", "the simplifier ended by signal 11 (it said nothing)"),
        ("pass", "the simplifier left no graph ("),
        ("open(target, 'w').write('{}')", "the simplifier left no graph ("),
        ("time.sleep(60)", "the simplifier was ended after 0.4 s"),
    ],
    ids=["raises", "exits", "crashes", "writes nothing", "writes rubbish", "hangs"],
)
def test_a_simplifier_that_fails_leaves_the_graph_as_it_was(
    graph: onnx.ModelProto, scratch: Path, code: str, fault: str
) -> None:
    seconds = 0.4 if "sleep" in code else 30
    result = simplify(graph, command=fake(code), seconds=seconds)
    assert_kept(result, graph, scratch)
    assert result.fault.startswith(fault)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory a process has")
def test_a_simplifier_that_eats_memory_is_ended(graph: onnx.ModelProto, scratch: Path) -> None:
    command = fake("held = bytearray(400_000_000)\nheld[::4096] = bytes([1]) * len(held[::4096])\ntime.sleep(60)")
    result = simplify(graph, command=command, seconds=50, memory_bytes=300_000_000)
    assert_kept(result, graph, scratch)
    assert result.fault == "the simplifier was ended when it took more than 0.3 GB of memory"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("m.opset_import[0].version = 16", r"changed the opset of the graph from {'': 17} to {'': 16}"),
        ("m.graph.output[0].name = 'labels'", r"changed the outputs of the graph from \[\('logits'.* to \[\('labels'"),
        ("m.graph.input[0].type.tensor_type.elem_type = 10", r"changed the inputs .*FLOAT.* to .*FLOAT16"),
        (
            "m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1",
            r"changed the inputs .*'batch', 3.* to .*1, 3",
        ),
    ],
    ids=["opset", "output", "type", "axis"],
)
def test_a_simplifier_that_changes_what_is_promised_is_not_believed(
    graph: onnx.ModelProto, scratch: Path, change: str, fault: str
) -> None:
    result = simplify(graph, command=fake(f"m = onnx.load(source)\n{change}\nonnx.save(m, target)"))
    assert_kept(result, graph, scratch)
    assert re.search(fault, result.fault)


def test_an_operator_that_is_dropped_shows_in_the_number_of_nodes(graph: onnx.ModelProto) -> None:
    code = "m = onnx.load(source)\nm.graph.node[1].input[0] = 'image'\ndel m.graph.node[2:]\nonnx.save(m, target)"
    result = simplify(graph, command=fake(code))
    assert (result.fault, result.nodes_before, result.nodes_after) == ("", 3, 2)


def test_what_the_simplifier_started_ends_with_it(graph: onnx.ModelProto, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    result = simplify(graph, command=fake(code), seconds=3)
    assert result.fault == "the simplifier was ended after 3 s"
    assert _ends(int(note.read_text()))


INTERRUPTED = """
import signal, sys
import onnx
from segship.export.simplify import simplify

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
simplify(onnx.load(sys.argv[1]), command=sys.argv[2:], seconds=50)
"""


def test_an_interrupt_leaves_neither_process_nor_files(graph: onnx.ModelProto, scratch: Path, tmp_path: Path) -> None:
    note, source = tmp_path / "pid", tmp_path / "source.onnx"
    onnx.save(graph, source)
    command = fake(f"import os\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    program = [sys.executable, "-c", INTERRUPTED, str(source), *command]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (note.exists() and note.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert _ends(int(note.read_text()))
    assert not list(scratch.iterdir())


def test_a_graph_that_protobuf_cannot_hold_is_not_given_to_it(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", serialised_bytes(graph) - 1)
    result = simplify(graph, command=fake("sys.exit('never')"))
    assert_kept(result, graph, scratch)
    assert result.fault == "the graph holds more than the 2 GB that the simplifier can be given"


def test_the_simplifiers_process_does_not_wait_for_torch(graph: onnx.ModelProto, tmp_path: Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(graph, source)
    command = [sys.executable, "-X", "importtime", "-m", "segship.export.simplify", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert target.exists()
    assert "onnxsim" in imported
    assert not [name for name in imported if name.startswith("torch.")]


def _ends(pid: int) -> bool:
    """Tell whether a process is gone, or dead and only not yet collected, within seconds."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
