"""What a process pays for a model: the time until its first result, and memory. Each is measured in one of its own."""

import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.processes import installed_environment, own_process
from segship.benchmarks.record import BenchError, Memory
from segship.runtime.external_data import external_files
from segship.runtime.model_file import CHECKPOINT_SUFFIX

_RUNS: Final = 10
"""After which a process has taken the memory that it takes."""

_LONGEST_S: Final = 1800.0
"""After which a process hangs; a large engine is built in less."""

_SAID: Final = "segship: "
"""What the line of a child begins with; engines may write others."""

_TELL: Final = f"""
print({_SAID!r} + json.dumps(told), flush=True)
sys.stdin.read()
os._exit(0)
"""
"""The end of each program: it stays as it is until its input is closed. How engines are taken down is not measured."""

_FIRST_RESULT: Final = """
import json, os, sys
from segship.runtime import Segmenter
from segship.runtime.backends.options import EngineOptions
asked = json.loads(sys.argv[1])
segmenter = Segmenter(
    asked["model"], backend=asked["backend"], device=asked["device"], options=EngineOptions(**asked["options"])
)
with open(asked["picture"], "rb") as file:
    told = segmenter(file.read()).labels.shape
"""

_EMPTY: Final = """
import json, os, sys
import cv2, numpy, segship.runtime.segmenter
from segship.benchmarks.processes import peak_bytes
told = {"peak": peak_bytes()}
"""

_LOADED: Final = f"""
import itertools, json, os, sys
from pathlib import Path
from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.one_picture import Road
from segship.benchmarks.processes import peak_bytes
asked = json.loads(sys.argv[1])
choice = Choice(Path(asked["model"]), asked["asked"], asked["device"], asked["batch"], asked["threads"])
with open(asked["picture"], "rb") as file:
    encoded = file.read()
segmenter = open_choice(choice)
if segmenter.info.streams > 1:
    pictures = itertools.repeat(encoded, {_RUNS} * segmenter.info.streams * choice.batch)
    for _ in segmenter.stream(pictures, then=lambda _: None):
        pass
else:
    road = Road(segmenter, encoded, choice.batch)
    for _ in range({_RUNS}):
        road()
told = {{"peak": peak_bytes(), "device": segmenter.info.device}}
"""


@dataclass(frozen=True)
class _Told:
    """What a child told, and ``seconds`` after it was started; ``pid`` is its own."""

    value: Any
    seconds: float
    pid: int


def cold_starts(choice: Choice, encoded: bytes, runs: int) -> tuple[float, ...]:
    """Measure how long a process takes from its start to the labels of its first picture.

    Starting Python, importing, loading the model and the first run are in it; the file cache of the system is warm, and
    Python's modules are compiled, as an installation does: a first process that is not counted sees to both. An engine
    that is built on first use (TensorRT) is built by then too.

    Args:
        choice: model and engine. A first picture comes alone, whatever the batch.
        encoded: a picture file's bytes.
        runs: processes, one after the other.

    Returns:
        Seconds of each.

    Raises:
        BenchError: if one fails, or the engine's options are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, seconds = _asked(choice, encoded, folder), []
        for _ in range(runs + 1):
            with _child(_FIRST_RESULT, asked, folder) as told:
                seconds.append(told.seconds)
        return tuple(seconds[1:])


def memory_of(choice: Choice, encoded: bytes) -> Memory:
    """Measure what a model takes: on the disk, in memory, and on the GPU where it runs on one.

    Runs come one after the other, or where the engine is asked for several streams as many at once. Python's modules
    are compiled, and engines that are built on first use are built: a first process of each, which is not counted, sees
    to both.

    Args:
        choice: model, engine and batch.
        encoded: a picture file's bytes.

    Raises:
        BenchError: if a process fails, or the engine's options are none.
        ModelError: if weights of the model are missing.
    """
    files = [choice.model]
    if choice.model.suffix != CHECKPOINT_SUFFIX:
        files += external_files(choice.model)
    with tempfile.TemporaryDirectory() as folder:
        with _child_again(_EMPTY, {}, folder) as told:
            empty: int = told.value["peak"]
        with _child_again(_LOADED, _asked(choice, encoded, folder), folder) as told:
            is_on_gpu = told.value["device"].startswith("cuda")
            on_device = _device_bytes(told.pid) if is_on_gpu else None
        return Memory(sum(file.stat().st_size for file in files), empty, told.value["peak"], on_device)


def _asked(choice: Choice, encoded: bytes, folder: str) -> dict[str, Any]:
    picture = Path(folder) / "picture"
    picture.write_bytes(encoded)
    return dataclasses.asdict(choice) | {
        "model": str(choice.model),
        "picture": str(picture),
        "backend": choice.backend,
        "options": dataclasses.asdict(choice.options),
    }


@contextmanager
def _child_again(program: str, asked: Mapping[str, Any], folder: str) -> Iterator[_Told]:
    """Do as :func:`_child` does, the second time that it is done."""
    with _child(program, asked, folder):
        pass
    with _child(program, asked, folder) as told:
        yield told


@contextmanager
def _child(program: str, asked: Mapping[str, Any], folder: str) -> Iterator[_Told]:
    """Run a program in a process of its own, which lives until the end of the context.

    Raises:
        BenchError: if it tells nothing, or not in time.
    """
    name = f"{asked.get('model', 'an empty process')} in a process of its own"
    arguments = ["-c", program + _TELL, json.dumps(asked)]
    environment = installed_environment(Path(folder) / "bytecode")
    is_told = False
    start = time.perf_counter()
    with own_process(arguments, _LONGEST_S, name=name, stdin=subprocess.PIPE, environment=environment) as process:
        assert process.stdin is not None
        for line in process.stdout or ():
            if line.startswith(_SAID):
                is_told, seconds = True, time.perf_counter() - start
                yield _Told(json.loads(line.removeprefix(_SAID)), seconds, process.pid)
                break
        process.stdin.close()
    if not is_told:
        raise BenchError(f"{name} ended without a result")


def _device_bytes(pid: int) -> int | None:
    """Return the memory of all GPUs that a process holds; None where ``nvidia-smi`` does not tell."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603  # fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    used = [int(row[1]) << 20 for row in rows if len(row) == 2 and row[0] == str(pid) and row[1].isdecimal()]
    return sum(used) if used else None
