import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks import process_cost
from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.process_cost import cold_starts, memory_of
from segship.benchmarks.record import BenchError

NO_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="its processes do not tell their peak")


@pytest.fixture
def encoded(photo: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png")
    return file.getvalue()


def test_a_cold_start_is_of_a_process_that_did_the_picture(tiny_model: Path, encoded: bytes) -> None:
    (seconds,) = cold_starts(Choice(tiny_model, "ort:threads=1", "cpu"), encoded, 1)
    assert seconds > 0
    with pytest.raises(BenchError, match=r"in a process of its own ended with status 1: .*picture") as caught:
        cold_starts(Choice(tiny_model, "ort", "cpu"), b"nothing", 1)
    assert "\n" not in str(caught.value)
    assert "segship.runtime" not in str(caught.value)


@NO_WINDOWS
def test_memory_grows_with_a_model_and_files_are_counted(open_model: Path, encoded: bytes) -> None:
    memory = memory_of(Choice(open_model, "ort", "cpu", batch=2), encoded)
    assert memory.model_bytes == open_model.stat().st_size
    assert 20e6 < memory.empty_rss_bytes < memory.peak_rss_bytes
    assert memory.device_bytes is None


@NO_WINDOWS
def test_the_memory_of_a_process_that_compiles_modules_is_not_counted(
    tiny_model: Path, encoded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    child = process_cost._child

    @contextmanager
    def noted(program: str, asked: Mapping[str, Any], folder: str) -> Iterator[process_cost._Told]:
        with child(program, asked, folder) as one:
            told.append((program, one.value["peak"]))
            yield one

    monkeypatch.setattr(process_cost, "_child", noted)
    memory = memory_of(Choice(tiny_model, "opencv", "cpu"), encoded)
    assert [program for program, _ in told] == [process_cost._EMPTY] * 2 + [process_cost._LOADED] * 2
    assert (memory.empty_rss_bytes, memory.peak_rss_bytes) == (told[1][1], told[3][1])
    assert told[0][1] > told[1][1]


NOTED = """
from segship.runtime.segmenter import Segmenter
streamed, stream = [], Segmenter.stream

def noted(*arguments, **more):
    for one in stream(*arguments, **more):
        streamed.append(one)
        yield one

Segmenter.stream = noted
"""


@NO_WINDOWS
@pytest.mark.parametrize(("asked", "streamed"), [("ort:threads=2,streams=2", 40), ("ort:threads=1", 0)])
def test_memory_is_that_of_as_many_runs_at_once_as_are_asked_for(
    asked: str, streamed: int, open_model: Path, encoded: bytes, tmp_path: Path
) -> None:
    values = process_cost._asked(Choice(open_model, asked, "cpu", batch=2), encoded, str(tmp_path))
    program = NOTED + process_cost._LOADED + "told['streamed'] = len(streamed)"
    with process_cost._child(program, values, str(tmp_path)) as told:
        assert told.value["streamed"] == streamed
        assert told.value["peak"] > 20e6


def test_a_process_that_dies_without_a_word_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match=r"^an empty process in a process of its own ended with status 7$"),
        process_cost._child("import os; os._exit(7)", {}, str(tmp_path)),
    ):
        pass


def test_a_process_that_ends_without_a_result_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match=r"^an empty process in a process of its own ended without a result$"),
        process_cost._child("raise SystemExit", {}, str(tmp_path)),
    ):
        pass


STUBBORN = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
pathlib.Path(json.loads(sys.argv[1])["pid"]).write_text(str(os.getpid()))
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""


INTERRUPTED = """
import signal, sys
from segship.benchmarks import process_cost

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGUSR1, interrupt)
try:
    with process_cost._child(sys.argv[1], {"pid": sys.argv[2]}, sys.argv[3]):
        sys.exit("it tells nothing")
except KeyboardInterrupt:
    print("interrupted")
"""


@NO_WINDOWS
def test_no_process_outlives_an_interruption(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, STUBBORN, str(tmp_path / "pid"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_other_lines_of_a_process_are_passed_over(tmp_path: Path) -> None:
    program = "import json, os, sys\nprint('an engine says something')\ntold = json.loads(sys.argv[1])"
    with process_cost._child(program, {"model": "a"}, str(tmp_path)) as told:
        assert told.value == {"model": "a"}
        assert told.seconds > 0


def test_what_is_no_text_is_passed_over_too(tmp_path: Path) -> None:
    program = "import json, os, sys\nsys.stdout.buffer.write(bytes([255, 10]))\ntold = 1"
    with process_cost._child(program, {}, str(tmp_path)) as told:
        assert told.value == 1


@pytest.mark.parametrize("begins", ["", "print('an engine says something', flush=True);"])
def test_a_process_that_hangs_is_ended(begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_cost, "_LONGEST_S", 0.5)
    program = f"import time; {begins} time.sleep(600)"
    with (
        pytest.raises(BenchError, match=r"^an empty process in a process of its own took longer than 0\.5 s$"),
        process_cost._child(program, {}, str(tmp_path)),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for nvidia-smi")
@pytest.mark.parametrize(
    ("line", "expected"), [("12, 34", 34 << 20), ("13, 34", None), ("12, [N/A]", None), ("nothing", None)]
)
def test_memory_of_a_gpu_is_what_nvidia_smi_says_of_the_process(
    line: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{shutil.which('sh')}\necho '{line}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process_cost._device_bytes(12) == expected
    script.unlink()
    assert process_cost._device_bytes(12) is None
