"""Processes of our own that are measured: what they run and in what, how they end, the memory that they use at most.

Imports nothing but the standard library, since a process that has loaded nothing is one of them.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

SEG_INFER: Final = "from segship.runtime.cli import main; main()"
"""The command ``seg-infer``, for ``python -c``."""


def run_own(
    arguments: Sequence[str | Path],
    limit_s: float,
    *,
    name: str,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run this Python to its end; return what it wrote to standard output.

    Args:
        arguments: of the interpreter.
        limit_s: seconds that it may take.
        name: of what it runs, for errors.
        stdin: that it reads; nothing else.
        environment: that it runs in; None: this one.

    Raises:
        BenchError: if it fails, with its last line, or takes too long.
    """
    with own_process(arguments, limit_s, name=name, stdin=stdin, environment=environment) as process:
        assert process.stdout is not None
        return process.stdout.read()


@contextlib.contextmanager
def own_process(
    arguments: Sequence[str | Path],
    limit_s: float,
    *,
    name: str,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    at: Callable[[], str] = str,
) -> Iterator[subprocess.Popen[str]]:
    """Run this Python, whose standard output the context reads to its end, like :func:`run_own`.

    Args:
        arguments: likewise.
        limit_s: likewise.
        name: likewise.
        stdin: likewise.
        environment: likewise.
        at: says how far it came, for errors.

    Raises:
        BenchError: likewise.
    """
    from segship.benchmarks.record import BenchError

    command = [sys.executable, *map(str, arguments)]
    is_late = threading.Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(  # noqa: S603  # our own command
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process,
    ):

        def end() -> None:
            is_late.set()
            process.kill()

        watchdog = threading.Timer(limit_s, end)
        watchdog.start()
        try:
            yield process
            process.wait()
        except BaseException:  # Ctrl-C: it would go on, and write into a folder that is about to go
            process.kill()
            raise
        finally:
            watchdog.cancel()
        if is_late.is_set():
            raise BenchError(f"{name} took longer than {limit_s:g} s{at()}")
        if process.returncode != 0:
            complaints.seek(0)
            told = _last_words(complaints.read())
            raise BenchError(f"{name} ended with status {process.returncode}{at()}{told and f': {told}'}")


def _last_words(text: str) -> str:
    """Return the last line of what a process complained of, without what names the kind of error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^([Ee]rror|segship\.[\w.]+): ", "", lines[-1])[:400] if lines else ""


def installed_environment(bytecode: Path) -> dict[str, str]:
    """Return an environment in which compiled modules are kept in a folder, as an installed package's are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def peak_bytes(pid: int | None = None) -> int:
    """Return the most resident memory that a process has used, of Linux alone, or this one; 0 if it has ended."""
    try:
        with open(f"/proc/{pid or 'self'}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123  # light
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return _own_peak_bytes() if pid is None else 0


def _own_peak_bytes() -> int:
    """Return it where there is no ``/proc``; ``ru_maxrss`` begins with what the parent had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
