"""An engine in a process of its own, so that a native crash ends that process and not the job.

A damaged or hostile model, or a picture that an engine cannot stand, may make native code write where it must not. No
exception tells of that: the process dies. Here a child process dies, which is reported like any other error, and the
next batch gets a new one.
"""

import dataclasses
import threading
import weakref
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.child_process import ChildDiedError, ChildProcess
from segship.runtime.backends.framing import Message
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.error_transport import error_from_values
from segship.runtime.errors import BackendError, EngineCrashError, SegshipError, StreamsError
from segship.runtime.strict import parse

DEFAULT_TIMEOUT_S: Final = 300.0
DEFAULT_LOAD_TIMEOUT_S: Final = 3600.0
"""An engine that builds while it loads, as TensorRT does of large graphs, takes many minutes."""
_DEFAULTS: Final = EngineOptions()
_MODULE: Final = "segship.runtime.backends.isolated_child"


def isolated(
    name: str, model: Path, card: ModelCard, device: str, options: EngineOptions = _DEFAULTS
) -> "IsolatedBackend":
    """Load a model into the engine called ``name``, in a process of its own: ``load_backend`` for ``--isolate``.

    Raises:
        BackendError: if no engine has that name, or it crashes while it loads; otherwise what the engine raises.
        MissingExtraError: if what the engine is made of does not import.
    """
    return IsolatedBackend(name, model, card, device, options)


class IsolatedBackend:
    """Runs an engine in a child process, one batch at a time; threads wait for each other.

    Args:
        name: of the engine.
        model: that it loads.
        card: the model's.
        device: that the engine is to run on.
        options: for the engine.
        timeout_s: the child is ended if it takes longer than this to run a batch; None: never.
        load_timeout_s: likewise, to load the model.
        memory_limit_mb: of the child's main memory; None: no limit. On POSIX systems only.

    Raises:
        BackendError: if the engine crashes while it loads, or does not end loading in time, or more than one stream
            was asked for; otherwise what the engine raises.
    """

    def __init__(
        self,
        name: str,
        model: Path,
        card: ModelCard,
        device: str = "auto",
        options: EngineOptions = _DEFAULTS,
        *,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        load_timeout_s: float | None = DEFAULT_LOAD_TIMEOUT_S,
        memory_limit_mb: int | None = None,
    ) -> None:
        if options.streams > 1:
            raise StreamsError(
                f"{options.streams} streams were asked for, but an isolated engine runs one batch after the other; "
                "use --streams 1, or leave out --isolate"
            )
        self._name, self._model, self._card, self._device, self._options = name, model, card, device, options
        self._timeout_s, self._load_timeout_s, self._memory_limit_mb = timeout_s, load_timeout_s, memory_limit_mb
        self._lock = threading.Lock()
        self._closed = False
        self._child: ChildProcess | None = None
        self._info = self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made from: its copy starts a child of its own."""
        named = {
            "timeout_s": self._timeout_s,
            "load_timeout_s": self._load_timeout_s,
            "memory_limit_mb": self._memory_limit_mb,
        }
        return _again, (self._name, self._model, self._card, self._device, self._options, named)

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them.

        Raises:
            EngineCrashError: if the engine crashes on this batch or does not answer in time.
            BackendError: if it fails in another way, or crashes when it is loaded again after a crash.
        """
        with self._lock:
            if self._closed:
                raise BackendError("this backend is closed")
            if self._child is None:
                self._start()
            what = f"on this input, {batch.shape} {batch.dtype}; it is started anew for the next one"
            _, output = self._ask({}, batch, self._timeout_s, EngineCrashError, what)
            if output is None:
                raise BackendError(f"the isolated {self._name} engine answered without an output")
            return output.copy()

    def interrupt(self) -> None:
        """End the child at once, from any thread, so that a run that is under way fails; the next one gets a new child.

        Raises nothing: the run raises an :class:`EngineCrashError`.
        """
        child = self._child  # without the lock, which the run holds
        if child is not None:
            child.interrupt()

    def close(self) -> None:
        """End the child, as soon as the run that is under way has ended."""
        self._closed = True  # at once: no run that waits for its turn starts another child
        with self._lock:
            self._end()

    def _start(self) -> EngineInfo:
        self._child = ChildProcess(_MODULE)
        self._finalizer = weakref.finalize(self, self._child.end)
        request = {
            "name": self._name,
            "model": str(self._model),
            "card": self._card.to_json(),
            "device": self._device,
            "options": dataclasses.asdict(self._options),
            "memory_limit_mb": self._memory_limit_mb,
        }
        try:
            when = f"while loading {self._model}; use another --backend"
            reply, _ = self._ask(request, None, self._load_timeout_s, BackendError, when)
            info = parse(EngineInfo, reply.get("info"), "what the engine says of itself", BackendError)
        except SegshipError:
            self._end()
            raise
        return dataclasses.replace(info, note="; ".join(filter(None, (info.note, "isolated"))))

    def _ask(
        self,
        header: dict[str, Any],
        batch: NDArray[Any] | None,
        timeout_s: float | None,
        crash: type[BackendError],
        when: str,
    ) -> Message:
        """Send a message and wait for its answer, in the time that there is for it; raise the error that it may be."""
        child = self._child
        if child is None:
            raise BackendError("this backend is closed")
        try:
            answer = child.ask(header, batch, timeout_s)
        except ChildDiedError as death:
            self._end()
            raise crash(f"the {self._name} engine {death.how} {when}{death.last_words}") from None
        except BaseException:  # an interrupt: the answer would still come, and be taken for that to the next question
            self._end()
            raise
        if "error" in answer[0]:
            raise error_from_values(answer[0])
        return answer

    def _end(self) -> None:
        self._child = None
        self._finalizer()


def _again(
    name: str, model: Path, card: ModelCard, device: str, options: EngineOptions, named: dict[str, Any]
) -> IsolatedBackend:
    return IsolatedBackend(name, model, card, device, options, **named)
