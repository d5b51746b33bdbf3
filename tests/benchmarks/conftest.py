"""An engine that fails in the middle of its work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.benchmarks.engine_choice import Choice, open_choice
from segship.runtime.backends import Backend, load_backend
from segship.runtime.errors import BackendError
from segship.runtime.segmenter import Segmenter
from segship.runtime.segmenter_plan import card_of


class FailingEngine:
    """A real engine that fails from one of its runs on, counted over all models that are loaded into it.

    Attributes:
        runs: so far.
        still_open: loaded models that were not closed.
    """

    def __init__(self, fails_at: float, device: str) -> None:
        self.fails_at, self.device = fails_at, device
        self.runs = 0
        self.still_open: list[Path] = []

    def open(self, choice: Choice, **more: Any) -> Segmenter:
        """Open OpenCV so; every other engine as it is."""
        if choice.backend != "opencv":
            return open_choice(choice, **more)
        card = card_of(choice.model)
        backend = load_backend(choice.backend, choice.model, card, "cpu", choice.options)
        self.still_open.append(choice.model)
        return open_choice(choice, backend=_Loaded(self, choice.model, backend), card=card, **more)


class _Loaded:
    def __init__(self, engine: FailingEngine, model: Path, backend: Backend) -> None:
        self._engine, self._model, self._backend = engine, model, backend
        self.info = replace(backend.info, device=engine.device)

    def run(self, batch: NDArray[np.generic]) -> NDArray[np.generic]:
        self._engine.runs += 1
        if self._engine.runs >= self._engine.fails_at:
            raise BackendError("out of memory, on purpose")
        return self._backend.run(batch)

    def close(self) -> None:
        self._engine.still_open.remove(self._model)
        self._backend.close()


@pytest.fixture
def opencv_fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FailingEngine]:
    """Let OpenCV fail from a run on, where models are timed; ``device`` is what it says that it runs on."""

    def fail(run: float, device: str = "cpu") -> FailingEngine:
        engine = FailingEngine(run, device)
        for module in ("bench_timing", "settings_search"):
            monkeypatch.setattr(f"segship.benchmarks.{module}.open_choice", engine.open)
        return engine

    return fail
