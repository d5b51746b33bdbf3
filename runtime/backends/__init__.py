"""The engines that run a graph: one class a file, found through the entry-point group ``segship.backends``.

Another package adds an engine by naming a class there that satisfies :class:`BackendFactory`.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from numpy.typing import NDArray

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
        threads: that the engine may use on the CPU.
    """

    backend: str
    engine: str
    device: str
    precision: str
    threads: int

    def __str__(self) -> str:
        return f"{self.backend} ({self.engine}) on {self.device} in {self.precision}, {self.threads} CPU threads"


class Backend(Protocol):
    """Runs exactly the graph: no resizing, no normalisation, no colours."""

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input, as the card describes it, to its output, in memory that later runs leave alone.

        Raises:
            BackendError: if the engine fails.
        """

    def close(self) -> None:
        """Free what the engine holds."""


class BackendFactory(Protocol):
    """Loads a model into an engine."""

    def __call__(self, model: Path, card: ModelCard, device: str) -> Backend:
        """Load ``model``.

        Raises:
            MissingExtraError: if the engine is not installed.
            DeviceError: if the device is not there, or is not what would run.
            ModelError: if the engine cannot read the model, or the model does not fit its card.
        """


def default_backend() -> str:
    """Return ``ort`` where ONNX Runtime is installed, otherwise ``opencv``, which always is."""
    return "ort" if importlib.util.find_spec("onnxruntime") else "opencv"


def load_backend(name: str, model: Path, card: ModelCard, device: str) -> Backend:
    """Load a model into the engine called ``name``.

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
    return factory(model, card, device)
