"""A child process that is asked one thing after the other, and what is known when it dies."""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from segship.runtime.backends.framing import FramingError, Message, RawStream, receive, send
from segship.runtime.backends.shared_area import SharedArea
from segship.runtime.errors import BackendError

_LAST_WORDS_BYTES: Final = 4096
_GRACE_S: Final = 5.0


class ChildDiedError(Exception):
    """The child is gone, or had to go.

    Attributes:
        how: ``crashed (SIGSEGV)``, say.
        last_words: the last line that it wrote to its standard error, as the end of a sentence; may be empty.
    """

    def __init__(self, how: str, last_words: str) -> None:
        super().__init__(how)
        self.how, self.last_words = how, last_words


class ChildProcess:
    """The process, the pipes to and from it, and the end of what it says on its standard error.

    Args:
        module: that it runs, which answers each message on its standard input (see ``framing``) by one on its standard
            output. Its arguments are the descriptors of shared memory for the arrays that it is sent and those that
            it answers with, where there is such memory.
    """

    def __init__(self, module: str) -> None:
        self._sent, self._answered = SharedArea.create(), SharedArea.create()
        if not (self._sent and self._answered):
            self._sent = self._answered = None
        descriptors = [area.descriptor for area in (self._sent, self._answered) if area]
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        self._process = subprocess.Popen(  # noqa: S603  # a module of ours
            [sys.executable, "-P", "-m", module, *map(str, descriptors)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            env=os.environ | {"PYTHONPATH": path},  # it finds the engines that this process finds
        )
        requests, replies, noise = self._process.stdin, self._process.stdout, self._process.stderr
        if requests is None or replies is None or noise is None:
            raise BackendError("a child process was started without pipes")
        self._requests: Any = requests  # raw files, since bufsize is 0
        self._replies: Any = replies
        self._noise: Any = noise
        self._tail: collections.deque[bytes] = collections.deque(maxlen=_LAST_WORDS_BYTES // 64)
        self._drain = threading.Thread(target=_keep_last, args=(self._noise, self._tail), daemon=True)
        self._drain.start()
        self._is_interrupted = False

    def ask(self, header: dict[str, Any], batch: NDArray[Any] | None, timeout_s: float | None) -> Message:
        """Send a message and return the answer, whose array the next one overwrites.

        Raises:
            ChildDiedError: if none comes.
        """
        late = threading.Event()
        timer = threading.Timer(timeout_s, self._kill, (late,)) if timeout_s is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            send(self._requests, header, batch, self._sent)
            answer = receive(self._replies, self._answered)
        except (OSError, FramingError):
            answer = None
        finally:
            if timer:
                timer.cancel()
        if answer is None or late.is_set():
            raise self._death(f"did not answer within {timeout_s:g} s" if late.is_set() else None)
        return answer

    def interrupt(self) -> None:
        """End the process at once, from any thread; whoever waits for its answer meets a :class:`ChildDiedError`."""
        self._is_interrupted = True
        self._process.kill()

    def end(self) -> None:
        """End the process and close the pipes; nothing happens the second time."""
        self._process.kill()
        self._process.wait()
        self._drain.join(_GRACE_S)  # longer only if the engine has left a process behind that holds the pipe
        for stream in (self._requests, self._replies, self._noise):
            with contextlib.suppress(OSError):
                stream.close()
        for area in (self._sent, self._answered):
            if area:
                area.close()
        self._sent = self._answered = None

    def _kill(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def _death(self, how: str | None) -> ChildDiedError:
        try:
            status = self._process.wait(_GRACE_S)  # a crash that writes down its stack takes a moment
        except subprocess.TimeoutExpired:
            self._process.kill()
            how, status = how or "answered what is no message", 0
        how = "was interrupted" if self._is_interrupted else how
        self._drain.join(_GRACE_S)
        lines = b"".join(self._tail).decode(errors="replace").splitlines()
        words = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ChildDiedError(how or _in_words(status), f" (it said: {words})" if words else "")


def _keep_last(noise: RawStream, tail: "collections.deque[bytes]") -> None:
    """Read what the child says until it ends, so that it never waits for a reader; hold the end of it."""
    buffer = bytearray(_LAST_WORDS_BYTES)
    while got := noise.readinto(buffer):
        tail.extend(bytes(buffer[i : min(i + 64, got)]) for i in range(0, got, 64))


def _in_words(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"crashed ({signal.Signals(-status).name})"
    except ValueError:
        return f"crashed (signal {-status})"
