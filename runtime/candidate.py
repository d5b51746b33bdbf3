"""An engine that is to say what another one says: picture after picture, and what came of it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.compare import Comparison, Expected, Gate, compare, first_differing_stage
from segship.runtime.errors import BackendError, ImageError
from segship.runtime.images import ImageSource
from segship.runtime.prepare import graph_input, whole_picture
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.runtime.tiling import pad_to

Verdict = Literal["same", "DIFFERS", "FAILS", "recorded", "reference", "runs"]

Locate = Callable[[Segmenter, NDArray[Any]], str]
"""Says where in its graph an engine leaves the reference, given an input of it: ``stage: node, and what is wrong``."""


@dataclass(frozen=True)
class Worst:
    """The picture on which an engine differs most: its name, what was expected, what came, and how far that is."""

    name: str
    expected: Expected
    result: Result
    comparison: Comparison

    @property
    def badness(self) -> tuple[int, int, int, float]:
        """Larger where the picture differs more."""
        return _badness(self.comparison)


@dataclass(frozen=True)
class EngineRow:
    """One engine.

    Attributes:
        engine: that ran the model.
        gate: what it must keep to; None where nothing is asked of it.
        comparison: over all pictures; None where nothing was compared.
        fault: where and how it differs, or why it fails; empty where it does not.
        worst: the picture on which it differs most.
        verdict: in a word.
    """

    engine: EngineInfo
    gate: Gate | None
    comparison: Comparison | None
    fault: str = ""
    worst: Worst | None = field(default=None, repr=False)
    verdict: Verdict = "same"

    @property
    def is_bad(self) -> bool:
        """Whether the engine does not do what it must."""
        return self.verdict in ("DIFFERS", "FAILS")


class Candidate:
    """An engine, and how far it was from what was expected so far.

    Args:
        engine: with the model that it runs.
        gate: what it must keep to; None: the comparison is only recorded.
        locate: names the node at which the engine leaves the reference; None: nobody can.
        measure: returns the points that an engine loses on the user's pictures; None: it is not measured.
    """

    def __init__(
        self,
        engine: Segmenter,
        gate: Gate | None,
        locate: Locate | None = None,
        measure: Callable[[Segmenter], float] | None = None,
    ) -> None:
        self._engine, self._gate, self._locate, self._measure = engine, gate, locate, measure
        self._comparisons: list[Comparison] = []
        self._worst: Worst | None = None
        self._failure = ""

    def take(self, name: str, picture: ImageSource, expected: Expected, *, size: tuple[int, int] | None = None) -> None:
        """Go the whole road with one picture, at the card's size or another one that its graph takes."""
        engine = self._engine if size is None else self._engine.at_size(size)
        try:
            result = engine(picture)
        except ImageError as error:
            self._fail(f"fails on {name} at the stage decode: {error}")
            return
        except BackendError as error:
            found = self._node(engine, expected)
            stage = f": {error}; first at the stage {found}" if found else f" at the stage network: {error}"
            self._fail(f"fails on {name}{stage}")
            return
        if result.image.shape != expected.stages.decoded.shape:
            self._fail(
                f"first differs at the stage decode: {name} is {result.image.shape} here, "
                f"and was {expected.stages.decoded.shape}"
            )
            return
        self._add(name, expected, result)

    def take_batch(self, names: Sequence[str], pictures: Sequence[ImageSource], every: Sequence[Expected]) -> None:
        """Go the whole road with several pictures in one run of the graph."""
        try:
            results = self._engine.batch(pictures)
        except BackendError as error:
            self._fail(f"fails on a batch of {len(pictures)} at the stage network: {error}")
            return
        for name, expected, result in zip(names, every, results, strict=True):
            self._add(name, expected, result)

    def row(self) -> EngineRow:
        """Return what came of it; where it is not what was asked for, with the place at which it first differs."""
        info = self._engine.info
        if self._failure or not self._comparisons:
            fault = self._failure or "no picture was compared"
            return EngineRow(info, self._gate, None, fault, self._worst, "FAILS")
        merged = Comparison.merged(self._comparisons)
        if self._measure is not None:
            merged = dataclasses.replace(merged, lost=self._measure(self._engine))
        row = EngineRow(info, self._gate, merged, "", self._worst)
        if self._gate is None:
            return dataclasses.replace(row, verdict="recorded")
        if merged.passes(self._gate):
            return row
        return dataclasses.replace(row, verdict="DIFFERS", fault=self._where(merged))

    def _fail(self, how: str) -> None:
        self._failure = self._failure or how

    def _add(self, name: str, expected: Expected, result: Result) -> None:
        comparison = compare(expected, result)
        self._comparisons.append(comparison)
        if self._worst is None or _badness(comparison) > self._worst.badness:
            self._worst = Worst(name, expected, result, comparison)

    def _where(self, merged: Comparison) -> str:
        if self._worst is None:
            return ""
        expected, result = self._worst.expected, self._worst.result
        if self._gate is not None and self._gate.budget is not None:
            return f"loses {merged.lost:.3f} {self._gate.unit}"
        engine = self._engine.at_size(result.card.preprocess.size)
        stage = first_differing_stage(expected, engine, result)
        node = self._node(engine, expected) if stage == "network" else ""
        return f"first differs at the stage {node or stage}, most of all on {self._worst.name}"

    def _node(self, engine: Segmenter, expected: Expected) -> str:
        if self._locate is None:
            return ""
        card, picture, (height, width) = engine.card, expected.stages.decoded, engine.card.preprocess.size
        if card.tile_overlap is None:
            batch = whole_picture(card, picture).batch
        else:
            batch = graph_input(card, pad_to(picture, (height, width))[:height, :width])
        return self._locate(engine, batch)


def _badness(comparison: Comparison) -> tuple[int, int, int, float]:
    c = comparison
    return c.unexplained_flips, c.beyond_tolerance, c.differing_pixels, c.max_abs or 0.0
