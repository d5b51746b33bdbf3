"""Processes of contenders: programs that run to their end, and workers that do one task after the other.

Each is a process group of its own and is ended as a whole, whatever happens: an error, a time limit or Ctrl-C.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

from segship.runtime.errors import SegshipError

START_LIMIT_S: Final = 300.0
TASK_LIMIT_S: Final = 600.0

_RUNNER: Final = Path(__file__).with_name("rival_worker.py")
_POLL_S: Final = 0.005
_DYING_S: Final = 10.0
_TOLD_BYTES: Final = 8000
_KEPT_BACK: Final = ("PYTHONPATH", "PYTHONHOME", "OMP_NUM_THREADS")
"""Variables that no contender gets: one of them alone might heed the last."""


class RivalError(SegshipError):
    """A contender cannot be installed or run.

    Attributes:
        told: the end of what its process wrote to standard error.
    """

    def __init__(self, message: str, told: str = "") -> None:
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines  # pip goes on after what went wrong
        super().__init__(f"{message}: {errors[-1][:300]}" if errors else message)
        self.told = told


@dataclass(frozen=True)
class Turn:
    """A task that was done.

    Attributes:
        seconds: that all of it took.
        peak_bytes: the most resident memory that the process has used so far; None where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


class Contestant(Protocol):
    """What takes turns."""

    def run(self, task: str, count: int) -> Turn:
        """Do ``task`` for ``count`` pictures or runs."""

    def close(self) -> None:
        """End what it started."""


class Worker:
    """A contender that waits in a process of its own, loaded and warm.

    Args:
        python: interpreter of the environment that has it.
        contender: file that ``rival_worker.py`` takes its tasks from.
        settings: for that file, as JSON.
        variables: of the process' environment, beside those of this one.
        limit_s: seconds that it may take to be ready.

    Raises:
        RivalError: if it does not start, saying what it said last.
    """

    def __init__(
        self,
        python: Path,
        contender: Path,
        settings: Mapping[str, Any],
        variables: Mapping[str, str] | None = None,
        limit_s: float = START_LIMIT_S,
    ) -> None:
        command = [str(python), "-P", str(_RUNNER), str(contender), json.dumps(settings)]
        self._name = contender.stem
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._process, self._told = opened.enter_context(_started(command, variables, stdin=True))
            self._answer(limit_s)
            self._stack = opened.pop_all()

    def run(self, task: str, count: int, limit_s: float = TASK_LIMIT_S) -> Turn:
        """Have a task done.

        Raises:
            RivalError: if it fails, or takes longer than ``limit_s``; the worker has ended then.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which reading its answer tells
            self._process.stdin.write(json.dumps([task, count]) + "\n")
            self._process.stdin.flush()
        return Turn(**self._answer(limit_s))

    def close(self) -> None:
        """End the process."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(self._process)

        watchdog = threading.Timer(limit_s, end)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING_S)  # so that its own status is told
            _end(self._process)
            raise _failed(self._name, None if late.is_set() else self._process.returncode, limit_s, self._told)
        answer: dict[str, Any] = json.loads(line)
        return answer


def run_program(
    command: Sequence[str | Path],
    *,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    limit_s: float = TASK_LIMIT_S,
    watch: Callable[[int], object] | None = None,
) -> None:
    """Run a program to its end.

    Args:
        command: program and arguments.
        variables: of its environment, beside those of this process.
        folder: to run it in.
        limit_s: seconds that it may take.
        watch: called every few milliseconds with the number of its process, and once after its end.

    Raises:
        RivalError: if it cannot be started, fails, or takes too long.
    """
    with _started(list(map(str, command)), variables, folder=folder) as (process, told):
        deadline = time.monotonic() + limit_s
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise _failed(Path(command[0]).name, None, limit_s, told)
            if watch is not None:
                watch(process.pid)
            time.sleep(_POLL_S)
        if watch is not None:
            watch(process.pid)
        if process.returncode != 0:
            raise _failed(Path(command[0]).name, process.returncode, limit_s, told)


def seconds_to_first_picture(
    command: Sequence[str | Path], out: Path, variables: Mapping[str, str] | None = None
) -> float:
    """Run a program to its end; return the seconds from its start until a JPEG or PNG lay below ``out``.

    Raises:
        RivalError: if it fails, or writes none.
    """
    start = time.perf_counter()
    found: list[float] = []

    def watch(_: int) -> None:
        pictures = (path for path in out.rglob("*.[jp][pn]g") if not path.name.startswith("."))
        if not found and any(path.stat().st_size for path in pictures):
            found.append(time.perf_counter() - start)

    out.mkdir(parents=True, exist_ok=True)
    run_program(command, variables=variables, watch=watch)
    if not found:
        raise RivalError(f"{Path(command[0]).name} wrote no picture below {out}")
    return found[0]


@contextlib.contextmanager
def _started(
    command: Sequence[str], variables: Mapping[str, str] | None, *, folder: Path | None = None, stdin: bool = False
) -> Iterator[tuple[subprocess.Popen[str], IO[bytes]]]:
    """Start a process group; yield it and the file of its standard error; end it."""
    inherited = {name: value for name, value in os.environ.items() if name not in _KEPT_BACK}
    pipe = subprocess.PIPE if stdin else subprocess.DEVNULL
    with tempfile.TemporaryFile() as told:
        try:
            process = subprocess.Popen(  # noqa: S603  # environments that this package made
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=told,
                cwd=folder,
                env=inherited | dict(variables or {}),
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise RivalError(f"cannot start {command[0]}: {error.strerror}") from error
        try:
            yield process, told
        finally:
            _end(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # what was not read any more
                        stream.close()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, which may live on where itself has ended."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where all have ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _failed(name: str, status: int | None, limit_s: float, told: IO[bytes]) -> RivalError:
    """Return the error of a process; with no status it was the time limit."""
    size = told.seek(0, os.SEEK_END)
    told.seek(max(0, size - _TOLD_BYTES))
    words = told.read().decode(errors="replace")
    what = f"took longer than {limit_s:g} s" if status is None else f"ended with status {status}"
    return RivalError(f"{name} {what}", words)
