"""An engine is tried in a process of its own, and whatever it does is told."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from segship.runtime.backends import load_backend
from segship.runtime.card import ModelCard
from segship.runtime.preprocess import Preprocess
from segship.runtime.probe import Probe, probe, two_nodes

ANSWERS = {
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "raises": "raise RuntimeError('the driver is too old')",
    "hangs": "import time; time.sleep(600)",
    "wrong": "pass",
}
FOREIGN = """
import numpy as np
from segship.runtime.backends import EngineInfo

class Backend:
    info = EngineInfo("foreign", "Foreign 1", "cpu", "fp32", 1)

    def __init__(self, model, card, device, options):
        {answer}

    def run(self, batch):
        return np.zeros((1, 2, 8, 8), np.float32)

    def close(self):
        pass
"""


@pytest.fixture
def foreign(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of another package, which a child process finds by PYTHONPATH."""
    folder = tmp_path / "foreign-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[segship.backends]\nforeign = foreign_engine:Backend\n")
    (tmp_path / "foreign_engine.py").write_text(FOREIGN.format(answer=ANSWERS[request.param]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_the_graph_is_a_valid_one_of_two_nodes(tmp_path: Path) -> None:
    model = onnx.load_from_string(two_nodes())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]


@pytest.mark.parametrize("engine", ["ort", "opencv", "openvino"])
def test_an_engine_that_works_says_what_ran(engine: str) -> None:
    got = probe(engine, "cpu")
    assert got.works, got.fault
    assert (got.backend, got.device, got.running_device, got.precision, got.fault) == (engine, "cpu", "cpu", "fp32", "")
    assert any(character.isdigit() for character in got.engine)


@pytest.mark.extras
def test_an_error_of_ours_is_told_in_its_own_words() -> None:
    got = probe("openvino", "cuda")
    assert (got.works, got.fault_kind) == (False, "DeviceError")
    assert "has the CPU only" in got.fault


@pytest.mark.parametrize(
    ("foreign", "timeout_s", "kind", "words"),
    [
        ("dies", 300, "crash", "crashed with status -11"),
        ("raises", 300, "crash", "crashed with status 1: RuntimeError: the driver is too old"),
        ("hangs", 3, "timeout", "did not answer within 3 s"),
        ("wrong", 300, "BackendError", "it computes something else than the graph says"),
    ],
    indirect=["foreign"],
)
@pytest.mark.usefixtures("foreign")
def test_whatever_an_engine_does_the_caller_lives_to_tell(timeout_s: float, kind: str, words: str) -> None:
    got = probe("foreign", "auto", timeout_s=timeout_s)
    assert (got.works, got.fault_kind) == (False, kind)
    assert words in got.fault


def test_the_graph_is_right_on_an_engine_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "two_nodes.onnx"
    path.write_bytes(two_nodes())
    card = ModelCard(("rest", "object"), ((0, 0, 0), (255, 255, 255)), Preprocess((8, 8)))
    backend = load_backend("ort", path, card, "cpu")
    result = backend.run(np.ones((1, 3, 8, 8), np.float32))
    backend.close()
    np.testing.assert_allclose(result[0, :, 0, 0], [0, 1.8], atol=1e-6)  # −1 −0.6 −0.2 and 0.2 0.6 1
    assert Probe("ort", "cpu").works is False
