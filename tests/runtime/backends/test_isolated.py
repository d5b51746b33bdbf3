"""Engines in a process of their own: the same numbers, and crashes that end the child only."""

import collections
import concurrent.futures
import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.backends import load_backend
from segship.runtime.backends.isolated import IsolatedBackend, isolated
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import (
    BackendError,
    CardError,
    EngineCrashError,
    LossyConversionError,
    ModelError,
    SegshipError,
)
from segship.runtime.model_file import read_card
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

ONE_THREAD = EngineOptions(threads=1)
ROUGH_ENGINE = """
import os, signal, sys, time
import numpy as np
from segship.runtime.backends import EngineInfo
from segship.runtime.errors import CardError, LossyConversionError

class RoughEngine:
    '''Does what the first value of a batch says; of a white picture it dies. Returns the number of its runs.'''

    def __init__(self, model, card, device, options):
        if device == "die":
            print("free(): invalid pointer", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        if device == "hang":
            time.sleep(600)
        if device.startswith("fifo:"):
            self.pipe = open(device.removeprefix("fifo:"), "wb")
        self.card, self.runs = card, 0
        self.info = EngineInfo("rough", "Rough 1.0", "cpu", "fp32", options.cpu_threads, note="unkind")

    def run(self, batch):
        self.runs += 1
        if 2.2 < batch.min() < 4:
            os.kill(os.getpid(), signal.SIGSEGV)
        match int(batch.flat[0]):
            case 101:
                time.sleep(600)
            case 102:
                raise CardError("the card is\\nnot right")
            case 103:
                raise LossyConversionError("it is grey", "grey", "drop its colours")
            case 104:
                raise ZeroDivisionError("of nothing")
            case 105:
                os.write(1, b"noise on standard output\\n" * 10_000)
            case 106:
                return np.ones(1 << 29)
            case 107:
                sys.exit(5)
            case 108:
                os._exit(7)
            case 109:
                return np.zeros((2, 0, 3), np.uint16)
            case 110:
                return np.arange(5_000_000, dtype=np.int32)[::2]
        return np.full(self.card.output_shape, self.runs, np.float32)

    def close(self):
        pass
"""
PARENT = """
import sys, time
from pathlib import Path
from segship.runtime.backends.isolated import isolated
from segship.runtime.model_file import read_card
model = Path(sys.argv[1])
engine = isolated("rough", model, read_card(model), "fifo:" + sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def _rough_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install an engine called ``rough`` as another package would bring it."""
    place = tmp_path / "installed"
    (place / "rough-1.0.dist-info").mkdir(parents=True)
    (place / "rough.py").write_text(ROUGH_ENGINE)
    (place / "rough-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: rough\nVersion: 1.0\n")
    (place / "rough-1.0.dist-info/entry_points.txt").write_text("[segship.backends]\nrough = rough:RoughEngine\n")
    monkeypatch.syspath_prepend(place)


@pytest.fixture
def rough(_rough_engine: None, conv_model: Path, conv_card: ModelCard) -> Iterator[IsolatedBackend]:
    engine = isolated("rough", conv_model, conv_card, "cpu", ONE_THREAD)
    yield engine
    engine.close()


def _batch(value: float) -> NDArray[np.float32]:
    return np.full((1, 3, 24, 32), value, np.float32)


WHITE = 3.0
SECONDS = 60  # how long a test waits for what must happen before it fails


@pytest.mark.parametrize("name", ["ort", "opencv", "openvino"])
def test_an_isolated_engine_returns_what_the_engine_returns(name: str, conv_model: Path) -> None:
    card = read_card(conv_model)
    batches = list(np.random.default_rng(4).standard_normal((3, 1, 3, 24, 32), np.float32))
    plain, apart = (load(name, conv_model, card, "cpu", ONE_THREAD) for load in (load_backend, isolated))
    expected = [plain.run(batch) for batch in batches]
    outputs = [apart.run(batch) for batch in batches]
    np.testing.assert_array_equal(outputs, expected)
    assert outputs[0].flags.writeable
    assert apart.info.engine == plain.info.engine
    assert "isolated" in apart.info.note
    plain.close()
    apart.close()


def test_a_crash_is_reported_and_the_next_batch_gets_a_new_engine(rough: IsolatedBackend) -> None:
    assert [rough.run(_batch(0)).flat[0] for _ in range(2)] == [1, 2]
    with pytest.raises(
        EngineCrashError,
        match=r"^the rough engine crashed \(SIGSEGV\) on this input, \(1, 3, 24, 32\) float32; it is started anew",
    ):
        rough.run(_batch(WHITE))
    assert rough.run(_batch(0)).flat[0] == 1


def test_a_picture_that_crashes_the_engine_is_skipped_and_the_others_are_not(
    rough: IsolatedBackend, conv_model: Path, conv_card: ModelCard
) -> None:
    dark, white = (np.full((24, 32, 3), value, np.uint8) for value in (20, 255))
    failed: list[tuple[object, SegshipError]] = []
    with Segmenter(conv_model, backend=rough, card=conv_card) as segmenter:
        pictures = [dark, white, dark, dark, white]
        done = list(segmenter.stream(pictures, on_error=lambda tag, error: failed.append((tag, error))))
    assert len(done) == 3
    assert [tag for tag, _ in failed] == [1, 4]
    assert all(isinstance(error, EngineCrashError) for _, error in failed)


@pytest.mark.usefixtures("_rough_engine")
def test_a_crash_while_loading_is_an_error_that_quotes_the_last_words(conv_model: Path, conv_card: ModelCard) -> None:
    with pytest.raises(BackendError) as caught:
        isolated("rough", conv_model, conv_card, "die")
    assert str(caught.value) == (
        f"the rough engine crashed (SIGABRT) while loading {conv_model}; use another --backend "
        "(it said: free(): invalid pointer)"
    )
    assert type(caught.value) is BackendError  # the next picture would meet it too


@pytest.mark.usefixtures("_rough_engine")
def test_an_engine_that_does_not_answer_is_ended(conv_model: Path, conv_card: ModelCard) -> None:
    with pytest.raises(BackendError, match=r"^the rough engine did not answer within 1 s while loading "):
        IsolatedBackend("rough", conv_model, conv_card, "hang", load_timeout_s=1)
    engine = IsolatedBackend("rough", conv_model, conv_card, "cpu", timeout_s=3)
    with pytest.raises(EngineCrashError, match="did not answer within 3 s on this input"):
        engine.run(_batch(101))
    assert engine.run(_batch(0)).flat[0] == 1
    engine.close()


@pytest.mark.usefixtures("_rough_engine")
def test_loading_may_take_longer_than_a_run(conv_model: Path, conv_card: ModelCard) -> None:
    engine = IsolatedBackend("rough", conv_model, conv_card, "cpu", timeout_s=0.001)
    assert pickle.loads(pickle.dumps(engine)).info == engine.info
    engine.close()


def test_a_run_that_hangs_can_be_interrupted(rough: IsolatedBackend) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(rough.run, _batch(101))
        while not rough._lock.locked() and not hanging.done():
            time.sleep(0.001)
        rough.interrupt()
        with pytest.raises(EngineCrashError, match=r"^the rough engine was interrupted on this input"):
            hanging.result(SECONDS)
    assert rough.run(_batch(0)).flat[0] == 1
    rough.close()
    rough.interrupt()


@pytest.fixture
def stopped_stream(
    rough: IsolatedBackend, conv_model: Path, conv_card: ModelCard
) -> Iterator[tuple[Segmenter, Iterator[Result]]]:
    """A stream whose engine has stopped for good after its first picture, and what it belongs to."""
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("a stopped child stands for one that hangs")
    segmenter = Segmenter(conv_model, backend=rough, card=conv_card)
    results = segmenter.stream(itertools.repeat(np.full((24, 32, 3), 20, np.uint8)))
    next(results)
    assert rough._child is not None
    child = rough._child._process.pid
    os.kill(child, signal.SIGSTOP)
    yield segmenter, results
    if rough._child is not None and rough._child._process.pid == child:  # it failed
        os.kill(child, signal.SIGKILL)


CTRL_C_IN_A_STREAM = """
import collections, itertools, os, signal, sys, threading
import numpy as np
from segship.runtime.segmenter import Segmenter

signal.signal(signal.SIGINT, signal.default_int_handler)
segmenter = Segmenter(sys.argv[1], backend="opencv", device="cpu", isolate=True)
results = segmenter.stream(itertools.repeat(np.full((24, 32, 3), 20, np.uint8)))
next(results)
os.kill(segmenter.processing.backend._child._process.pid, signal.SIGSTOP)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    collections.deque(results, maxlen=0)
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate() if "segship-worker" in thread.name])
"""


def test_ctrl_c_ends_a_stream_whose_engine_hangs(conv_model: Path) -> None:
    command = [sys.executable, "-c", CTRL_C_IN_A_STREAM, str(conv_model)]  # of its own: a signal is for a whole process
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SECONDS)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_ctrl_c_outside_of_the_stream_ends_it_too(stopped_stream: tuple[Segmenter, Iterator[Result]]) -> None:
    segmenter, results = stopped_stream
    with pytest.raises(KeyboardInterrupt), segmenter:
        raise KeyboardInterrupt
    with pytest.raises(BackendError):
        collections.deque(results, maxlen=0)


def test_what_the_engine_raises_arrives_as_the_same_class_and_words(rough: IsolatedBackend) -> None:
    with pytest.raises(CardError, match=r"^the card is\nnot right$"):
        rough.run(_batch(102))
    with pytest.raises(LossyConversionError, match=r"^it is grey; to drop its colours, ask for it: --convert grey$"):
        rough.run(_batch(103))
    with pytest.raises(BackendError, match=r"^the engine failed \(ZeroDivisionError: of nothing\)$"):
        rough.run(_batch(104))
    assert rough.run(_batch(0)).flat[0] == 4  # it still is the same engine


def test_errors_of_loading_arrive_too(conv_model: Path, conv_card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"no\.onnx"):
        isolated("ort", tmp_path / "no.onnx", conv_card, "cpu")
    with pytest.raises(BackendError, match="no backend is called 'nothing'"):
        isolated("nothing", conv_model, conv_card, "cpu")


def test_what_an_engine_prints_is_no_answer(rough: IsolatedBackend, capfd: pytest.CaptureFixture[str]) -> None:
    assert rough.run(_batch(105)).flat[0] == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("value", "status"), [(107, 5), (108, 7)])
def test_an_engine_that_ends_its_process_is_reported(rough: IsolatedBackend, value: float, status: int) -> None:
    with pytest.raises(EngineCrashError, match=f"the rough engine ended with status {status} on"):
        rough.run(_batch(value))
    assert rough.run(_batch(0)).flat[0] == 1


def test_arrays_of_any_form_come_back(rough: IsolatedBackend) -> None:
    empty = rough.run(_batch(109))
    assert (empty.shape, empty.dtype.name) == ((2, 0, 3), "uint16")
    np.testing.assert_array_equal(rough.run(_batch(110)), np.arange(0, 5_000_000, 2))
    np.testing.assert_array_equal(rough.run(_batch(0)[:, :, ::2].transpose(0, 1, 3, 2)).shape, (1, 6, 24, 32))


@pytest.mark.usefixtures("_rough_engine")
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on data counts mapped memory on Linux only")
def test_memory_beyond_the_limit_is_an_error_and_no_crash(conv_model: Path, conv_card: ModelCard) -> None:
    engine = IsolatedBackend("rough", conv_model, conv_card, "cpu", memory_limit_mb=2048)
    with pytest.raises(BackendError, match="Unable to allocate 4"):
        engine.run(_batch(106))
    assert engine.run(_batch(0)).flat[0] == 2
    engine.close()


def test_threads_take_turns(rough: IsolatedBackend) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = sorted(int(output.flat[0]) for output in pool.map(rough.run, [_batch(0)] * 20))
    assert runs == list(range(1, 21))


def test_a_copy_made_by_pickle_has_a_child_of_its_own(rough: IsolatedBackend) -> None:
    rough.run(_batch(0))
    copy = pickle.loads(pickle.dumps(rough))
    assert copy.run(_batch(0)).flat[0] == 1
    assert copy.info == rough.info
    copy.close()
    assert rough.run(_batch(0)).flat[0] == 2


def test_a_closed_engine_runs_nothing(rough: IsolatedBackend) -> None:
    rough.close()
    rough.close()
    with pytest.raises(BackendError, match="this backend is closed"):
        rough.run(_batch(0))


def test_several_streams_are_refused(conv_model: Path, conv_card: ModelCard) -> None:
    with pytest.raises(BackendError, match=r"2 streams were asked for, but an isolated engine .* --streams 1"):
        isolated("ort", conv_model, conv_card, "cpu", EngineOptions(streams=2))


@pytest.mark.usefixtures("_rough_engine")
@pytest.mark.skipif(os.name != "posix", reason="a named pipe tells when the child is gone")
def test_the_child_ends_with_its_parent_however_that_ends(conv_model: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(conv_model), str(fifo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert select.select([reader], [], [], 0)[0] == []  # somebody holds the other end
        parent.send_signal(signal.SIGKILL)
    assert select.select([reader], [], [], 20)[0] == [reader]
    assert os.read(reader, 1) == b""  # and now nobody does
    os.close(reader)
