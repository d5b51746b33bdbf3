"""Where an engine leaves a graph that is right: the first node that it computes otherwise than the node by itself does.

The graph is cut behind one node after another, and the engine runs what is left up to there. Each answer halves what
the fault can lie in, as in a bisection of a version history: a node whose value is right clears all that it depends
on, and one whose value is wrong leaves only these and itself. So a network of 365 nodes takes some ten loads.
"""

import functools
import operator
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from segship.export.cut import Cut, cut_card, cut_graph
from segship.export.diagnose import Divergence, stage_of_name
from segship.export.fingerprint import TOLERANCE, Fingerprint, allowance, contrast, fingerprint
from segship.export.node_by_node import name_of, node_by_node, values_taken
from segship.runtime.backends import Backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError, SegshipError

Load = Callable[[Path, ModelCard], Backend]


def engine_divergence(
    model: Path, card: ModelCard, batch: NDArray[Any], load: Load, tolerance: float | None = None
) -> Divergence | None:
    """Find the first node that an engine computes otherwise than ONNX Runtime does without its optimisations.

    Args:
        model: the ONNX file.
        card: the file's.
        batch: the graph's input, as the card describes it: one picture.
        load: opens an ONNX file, with a card that fits it, with the engine.
        tolerance: in place of the ``TOLERANCE`` of the card's precision.

    Returns:
        The node; its ``finding`` names the engine. None if the engine computes the whole graph as it should.

    Raises:
        ModelError: if a node of the graph does not run by itself.
        SegshipError: if the engine does not run the whole graph.
    """
    proto = onnx.load(model)
    cuts = _cuts(proto, card, batch, TOLERANCE[card.precision] if tolerance is None else tolerance)
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(proto, card, batch, load, Path(folder) / "cut.onnx")
        if trial.run(cuts[-1]).matches(cuts[-1].expected, cuts[-1].allowed):
            return None
        first = _first_wrong(cuts, trial)
        finding = f"{contrast(trial.run(first), first.expected, 'this node run by itself')}; the graph is right, "
        before = [cuts[index] for index in first.feeding]
        if before and trial.is_right(first, also=before):
            finding += f"{trial.engine} is not, but only where it fuses this node with what comes before"
        else:
            finding += f"{trial.engine} is not"
    stage = stage_of_name(first.node, card) or ("argmax" if first.expected.exact else "network")
    return Divergence(stage, name_of(first.node), first.node.op_type, finding)


@dataclass(frozen=True)
class _Place(Cut):
    """A cut, and what must come out there.

    Attributes:
        index: among all places, in the graph's order.
        expected: the value, computed node by node.
        allowed: how far from that an engine may come.
        behind: the places that it depends on, a bit each; its own is set, too.
        feeding: of these, the nearest.
    """

    index: int
    expected: Fingerprint
    allowed: float
    behind: int
    feeding: tuple[int, ...]


def _cuts(proto: onnx.ModelProto, card: ModelCard, batch: NDArray[Any], tolerance: float) -> list[_Place]:
    """Return every value of floats that depends on the graph's input, and last the graph's output."""
    cuts: list[_Place] = []
    nearest: dict[str, tuple[int, ...]] = {card.input_name: ()}  # to the values that depend on the input
    for step in node_by_node(proto, {card.input_name: batch}, tolerance):
        before = {index for name in values_taken(step.node) for index in nearest.get(name, ())}
        behind = functools.reduce(operator.or_, (cuts[index].behind for index in before), 0)
        for name, mark in step.marks.items():
            nearest[name] = tuple(sorted(before))
            if mark.exact and name != card.output_name:
                continue
            value, index = np.asarray(step.values[name]), len(cuts)
            allowed = allowance(mark, step.noise[name], tolerance)
            place = (index, mark, allowed, behind | 1 << index, nearest[name])
            cuts.append(_Place(step.node, name, value.dtype, value.shape, *place))
            nearest[name] = (index,)
            if name == card.output_name:
                return cuts
    raise ModelError(f"the graph has no output {card.output_name!r} that depends on its input {card.input_name!r}")


def _first_wrong(cuts: list[_Place], trial: "_Trial") -> _Place:
    """Return a cut whose value is wrong although all that feed it are right; the last one is known to be wrong."""
    wrong = cuts[-1]
    suspects = wrong.behind & ~(1 << wrong.index)
    while True:
        while suspects:
            half = suspects.bit_count() / 2
            possible = [cut for cut in cuts if suspects >> cut.index & 1]
            cut = min(possible, key=lambda cut: abs((cut.behind & suspects).bit_count() - half))
            right = trial.is_right(cut)
            suspects &= ~cut.behind if right else ~(1 << cut.index)
            if right is False:
                wrong = cut
                suspects &= cut.behind
        feeding = [cuts[index] for index in wrong.feeding]
        earlier = next((cut for cut in feeding if trial.is_right(cut) is False), None)
        if earlier is None:
            return wrong
        wrong, suspects = earlier, earlier.behind & ~(1 << earlier.index)  # a later value, right again, had hidden it


class _Trial:
    """Lets an engine run a graph up to a cut."""

    def __init__(self, proto: onnx.ModelProto, card: ModelCard, batch: NDArray[Any], load: Load, path: Path) -> None:
        self._proto, self._card, self._batch = proto, card, batch
        self._load, self._path = load, path
        self._answers: dict[int, bool | None] = {}
        self.engine = ""

    def is_right(self, place: _Place, also: Sequence[_Place] = ()) -> bool | None:
        """Tell whether the engine returns what it should; None if it does not take the graph when it is cut so.

        Args:
            place: behind which the graph is cut.
            also: values that become outputs, too, so that the engine cannot fuse over them.
        """
        if also:
            return self._ask(place, also)
        if place.index not in self._answers:
            self._answers[place.index] = self._ask(place)
        return self._answers[place.index]

    def _ask(self, place: _Place, also: Sequence[_Place] = ()) -> bool | None:
        try:
            return self.run(place, also).matches(place.expected, place.allowed)
        except SegshipError:  # engines refuse parts of graphs that they take whole
            return None

    def run(self, place: _Place, also: Sequence[_Place] = ()) -> Fingerprint:
        """Return what the engine computes there."""
        whole = place.value == self._card.output_name
        card = self._card if whole else cut_card(self._card, place, self._batch)
        onnx.save(cut_graph(self._proto, card, place, also), self._path)
        backend = self._load(self._path, card)
        try:
            self.engine = backend.info.engine
            returned = backend.run(self._batch)
        finally:
            backend.close()
        return fingerprint(returned.reshape(-1)[: place.expected.size])
