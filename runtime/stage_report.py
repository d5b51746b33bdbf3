"""Where the time goes in a stream: medians of its stages, how busy each was, and which one the others wait for."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from segship.runtime.pipeline import Crew

STAGES: Final = ("read", "decode", "prepare", "network", "labels", "outputs")
"""In the order in which a picture meets them."""

_KEPT: Final = 10_000
"""Times of a stage that medians are taken of: the last ones, so that memory does not grow with a stream."""

_BUSY: Final = 0.85
"""Share of the time above which what does the work is what limits it."""


@dataclass(frozen=True)
class Stage:
    """One stage of a stream.

    Attributes:
        name: one of :data:`STAGES`.
        median_ms: that a picture takes in it.
        busy: share of the time, 0…1, in which it was at work, of all that could work at it at once.
    """

    name: str
    median_ms: float
    busy: float


class StageReport:
    """Collects the times of a stream's stages.

    Args:
        crew: that does the work.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._times: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in STAGES}
        self._totals = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._start = time.perf_counter()

    def add(self, timings: Mapping[str, float]) -> None:
        """Take the timings of one picture, in ms by ``STAGE_ms``."""
        with self._lock:
            for name in STAGES:
                taken_ms = timings.get(f"{name}_ms")
                if taken_ms is not None:
                    self._times[name].append(taken_ms)
                    self._totals[name] += taken_ms

    def stages(self) -> list[Stage]:
        """Return the stages that any picture met, up to now."""
        wall_ms = (time.perf_counter() - self._start) * 1000
        return [
            Stage(name, statistics.median(times), self._totals[name] / (wall_ms * self._workers(name)))
            for name, times in self._times.items()
            if times
        ]

    def bottleneck(self) -> str:
        """Say in words what the stream waits for; empty if it has seen nothing."""
        stages = {stage.name: stage for stage in self.stages()}
        if "network" not in stages:
            return ""
        if (read := stages.get("read")) and read.busy >= _BUSY:
            return f"the source: it takes {read.busy:.0%} of the time to deliver the next picture"
        if self._crew.keep_for_network and stages["network"].busy >= _BUSY:
            return f"the network: it is busy {stages['network'].busy:.0%} of the time"
        working = {name: self._totals[name] for name in stages if name != "read"}
        largest = max(working, key=working.__getitem__)
        busy = sum(stages[name].busy * self._workers(name) for name in working) / self._crew.workers
        most = f"most of it in the stage {largest} ({working[largest] / sum(working.values()):.0%})"
        what = "the CPU" if busy >= _BUSY else "none for long"
        return f"{what}: {self._crew.workers} workers are busy {busy:.0%} of the time, {most}"

    def to_plain(self) -> dict[str, object]:
        """Return stages and bottleneck as plain values."""
        stages = {stage.name: {"median_ms": stage.median_ms, "busy": stage.busy} for stage in self.stages()}
        return {"stages": stages, "bottleneck": self.bottleneck()}

    def __str__(self) -> str:
        """Return the medians and the bottleneck, in a line each."""
        medians = "  ".join(f"{stage.name} {stage.median_ms:.1f} ms ({stage.busy:.0%})" for stage in self.stages())
        return f"median (busy): {medians}\nbottleneck: {self.bottleneck()}"

    def _workers(self, stage: str) -> int:
        """How many can work at a stage at once."""
        if stage == "read":
            return 1
        return self._crew.runs if stage == "network" else self._crew.workers - self._crew.keep_for_network
