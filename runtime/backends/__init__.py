"""The engines that run a graph: one class a file, found through the entry-point group ``segship.backends``.

Another package adds an engine by naming a class there that satisfies :class:`BackendFactory`.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from numpy.typing import NDArray

from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, MissingExtraError

ENTRY_POINT_GROUP: Final = "segship.backends"


@dataclass(frozen=True)
class EngineInfo:
    """What really runs the graph.

    Attributes:
        backend: the name that ``--backend`` takes.
        engine: library and version.
        device: that runs the graph: ``cpu`` or ``cuda:N``.
        precision: that it calculates in: the file's own, or ``bf16`` or ``fp16`` where the engine makes it so.
        threads: that the engine may use on the CPU, for all streams together.
        streams: runs of the graph at once.
        providers: how many nodes of the graph each provider of ONNX Runtime runs, most first; else empty.
        note: what else one should know, such as why ``auto`` does not use the GPU; mostly empty.
    """

    backend: str
    engine: str
    device: str
    precision: str
    threads: int
    streams: int = 1
    providers: tuple[tuple[str, int], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.backend} ({self.engine}) on {self.device} in {self.precision}, "
            f"{self.threads} CPU threads{streams}{note}"
        )


class Backend(Protocol):
    """Runs exactly the graph: no resizing, no normalisation, no colours. Any thread may run it, several at once."""

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input, as the card describes it, to its output, in memory that later runs leave alone.

        Raises:
            BackendError: if the engine fails.
        """

    def close(self) -> None:
        """Free what the engine holds, as soon as the runs that are under way have ended."""


class BackendFactory(Protocol):
    """Loads a model into an engine."""

    def __call__(self, model: Path, card: ModelCard, device: str, options: EngineOptions) -> Backend:
        """Load ``model``.

        Raises:
            BackendError: if an option was asked for that the engine does not have.
            MissingExtraError: if the engine is not installed.
            DeviceError: if the device is not there, or is not what would run.
            ModelError: if the engine cannot read the model, or the model does not fit its card.
        """


def default_backend() -> str:
    """Return ``ort`` where ONNX Runtime is installed, otherwise ``opencv``, which always is."""
    return "ort" if importlib.util.find_spec("onnxruntime") else "opencv"


def load_backend(
    name: str, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS
) -> Backend:
    """Load a model into the engine called ``name``.

    Args:
        name: of an entry point of the group ``segship.backends``.
        model: the file.
        card: the model's.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or what else the engine has.
        options: for the engine.

    Raises:
        BackendError: if no engine has that name; otherwise what the engine raises.
        MissingExtraError: if what the engine is made of does not import.
    """
    known = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if name not in known.names:
        raise BackendError(f"no backend is called {name!r}; known are {', '.join(sorted(known.names))}")
    try:
        factory = cast("BackendFactory", known[name].load())
    except ImportError as error:
        raise MissingExtraError(
            f"the backend {name} does not import here ({error}); install what it needs, "
            f"or choose another of {', '.join(sorted(known.names))}"
        ) from error
    return factory(model, card, device, options)
