"""Where an exported graph first computes something else than PyTorch: the stage, and the node.

Values are compared, not names: each tensor that PyTorch computes on the way leaves a fingerprint, and each node of the
graph is looked up among these by what it returns. So it does not matter which exporter and simplifier made the graph.
What one of them takes apart (a padding, the pieces of a hard swish) is found nowhere, but what comes of it is. A node
is to blame if neither its values are found nor any that depend on them.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from segship.export.fingerprint import TOLERANCE, Fingerprint, allowance, contrast, fingerprint
from segship.export.node_by_node import Step, name_of, names_taken, node_by_node, values_taken
from segship.export.recording import Record, Recording, record
from segship.runtime.card import ModelCard

Stage = Literal["resize", "normalise", "network", "argmax", "probabilities", "upscale"]

_LAYOUTS: Final = ((0, 3, 1, 2), (0, 2, 3, 1))


@dataclass(frozen=True)
class Divergence:
    """The first node that computes something else than its reference.

    Attributes:
        stage: that it belongs to; ``probabilities`` is the softmax or the sigmoid, ``argmax`` also a binary network's
            threshold.
        node: its name, or that of its output where it has none.
        op_type: its operator.
        finding: what it returns and what was expected, in words that go on from the node's name.
    """

    stage: Stage
    node: str
    op_type: str
    finding: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.op_type} {self.node} {self.finding}"


def first_divergence(
    module: nn.Module, model: Path, card: ModelCard, batch: NDArray[Any], tolerance: float | None = None
) -> Divergence | None:
    """Find the first node of a graph that computes something else than PyTorch; None if there is none.

    The graph runs node by node, without an engine's optimisations: where None is returned and an engine still differs,
    it is the engine, and :func:`segship.export.diagnose_engine.engine_divergence` finds where.

    Args:
        module: what was exported, on the CPU, in evaluation mode; its submodules ``resize``, ``normalise``,
            ``network``, ``head`` and ``upscale`` are the stages, of which ``network`` is always there.
        model: the ONNX file.
        card: the file's.
        batch: the graph's input, as the card describes it.
        tolerance: in place of the ``TOLERANCE`` of the card's precision.

    Raises:
        ModelError: if a node of the graph does not run.
    """
    proto = onnx.load(model)
    share = TOLERANCE[card.precision] if tolerance is None else tolerance
    search = _Search(module, card, batch, share)
    visits = [search.visit(step) for step in node_by_node(proto, {card.input_name: batch}, share)]
    blamed = _first_blamed(visits, {output.name for output in proto.graph.output})
    if blamed is None or blamed.missed is None:
        return None
    stage = stage_of_name(blamed.node, card) or _stage_of_record(search.records, blamed.behind + 1, card)
    finding = _finding(blamed.missed, search.records, blamed.behind)
    if blamed.missed.non_finite:
        finding += _non_finite_constants(blamed, visits, proto)
    return Divergence(stage, name_of(blamed.node), blamed.node.op_type, finding)


def stage_of_name(node: onnx.NodeProto, card: ModelCard) -> Stage | None:
    """Return the stage that a node's name begins with, as in ``/network/encoder/Conv``; None where names are lost."""
    return _stage(node.name.removeprefix("/").partition("/")[0], card)


def _stage(part: str, card: ModelCard) -> Stage | None:
    head: dict[str, Stage] = {"logits": "network", "probabilities": "probabilities", "labels": "argmax"}
    stages: dict[str, Stage] = {
        "resize": "resize",
        "normalise": "normalise",
        "network": "network",
        "upscale": "upscale",
        "head": head[card.head],
    }
    return stages.get(part)


def _stage_of_record(records: list[Record], index: int, card: ModelCard) -> Stage:
    """Return the stage in which PyTorch computed a record; what lies between two modules belongs to the second."""
    for one in records[index:]:
        stage = _stage(one.path.partition(".")[0], card)
        if stage is not None:
            return stage
    return _stage("head", card) or "network"


@dataclass(frozen=True)
class _Visit:
    """What became of one node.

    Attributes:
        node: that was visited.
        depends: whether it depends on the graph's input, and not on its shape alone.
        behind: the latest of PyTorch's records at which values before this node were found; -1 for none.
        telling: whether its own were found, and that can be no accident.
        missed: the first of its values that was not found.
    """

    node: onnx.NodeProto
    depends: bool = False
    behind: int = -1
    telling: bool = False
    missed: Fingerprint | None = None


class _Search:
    """Looks up what the nodes of a graph return among what PyTorch computed."""

    def __init__(self, module: nn.Module, card: ModelCard, batch: NDArray[Any], tolerance: float) -> None:
        self._module, self._batch, self._tolerance = module, batch, tolerance
        self._behind = {card.input_name: -1}
        self._before_head: Recording | None = record(module, batch)
        self._set_records(self._before_head.records)

    def visit(self, step: Step) -> _Visit:
        """Look up one node, after those that it depends on."""
        node = step.node
        behind = max((self._behind[name] for name in values_taken(node) if name in self._behind), default=-1)
        visit = _Visit(node, step.depends, behind)
        for name, mark in step.marks.items():
            value, noise = step.values[name], step.noise[name]
            index = self._look_up(np.asarray(value), mark, noise)
            self._behind[name] = behind
            if index is None:
                visit = dataclasses.replace(visit, missed=visit.missed or mark)
            elif not mark.uniform:
                self._behind[name] = max(behind, index)
                visit = dataclasses.replace(visit, telling=True)
            self._go_on_from_network(np.asarray(value), mark, noise)
        return visit if visit.missed is None else dataclasses.replace(visit, telling=False)

    def _look_up(self, value: NDArray[Any], mark: Fingerprint, noise: float) -> int | None:
        """Return the latest record that holds the same values, in this layout or in another."""
        candidates = self._by_size.get(value.size, [])[::-1]
        index = self._first_match(mark, candidates, noise)
        if index is None and value.ndim == 4 and candidates:
            turned = (self._first_match(fingerprint(value.transpose(axes)), candidates, noise) for axes in _LAYOUTS)
            index = next((found for found in turned if found is not None), None)
        return index

    def _first_match(self, mark: Fingerprint, candidates: list[int], noise: float) -> int | None:
        for index in candidates:
            expected = self.records[index].fingerprint
            if mark.matches(expected, allowance(expected, noise, self._tolerance)):
                return index
        return None

    def _go_on_from_network(self, value: NDArray[Any], mark: Fingerprint, noise: float) -> None:
        """Where the network's output is reached, let PyTorch go on from the graph's values.

        What they differ by, little as it is, would flip labels otherwise.
        """
        before = self._before_head
        if before is None or before.network_output is None or before.network_end == len(before.records):
            return
        if mark.matches(before.network_output, allowance(before.network_output, noise, self._tolerance)):
            after = record(self._module, self._batch, network_output=value)
            self._set_records(before.records[: before.network_end] + after.records)
            self._before_head = None

    def _set_records(self, records: list[Record]) -> None:
        self.records = records
        self._by_size: dict[int, list[int]] = {}
        for index, one in enumerate(records):
            self._by_size.setdefault(one.fingerprint.size, []).append(index)


def _first_blamed(visits: list[_Visit], outputs: set[str]) -> _Visit | None:
    blamed = None
    needed = set(outputs)  # names of what the graph's outputs depend on
    recovering: set[str] = set()  # of these, what leads to values that were found
    for visit in reversed(visits):
        if needed.isdisjoint(visit.node.output):
            continue
        needed.update(values_taken(visit.node))
        if visit.telling or not recovering.isdisjoint(visit.node.output):
            recovering.update(values_taken(visit.node))
        elif visit.missed is not None:
            blamed = visit
    return blamed


def _finding(missed: Fingerprint, records: list[Record], behind: int) -> str:
    """Say how far the values are from the nearest that PyTorch computes, if possible after what was found before."""
    same_size = [index for index, one in enumerate(records) if one.fingerprint.size == missed.size]
    candidates = [index for index in same_size if index > behind] or same_size
    if not candidates:
        return f"returns {missed.size} values, and PyTorch computes no tensor of so many"
    expected = min((records[index] for index in candidates), key=lambda one: missed.root_mean_square(one.fingerprint))
    return contrast(missed, expected.fingerprint, f"PyTorch's {expected}")


def _non_finite_constants(blamed: _Visit, visits: Sequence[_Visit], proto: onnx.ModelProto) -> str:
    """Name the weights with NaN or infinity that a node takes, or what it takes is made of."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {name: visit for visit in visits if not visit.depends for name in visit.node.output}
    names, guilty = list(names_taken(blamed.node)), []
    for name in names:
        if name in weights and not _is_finite(weights[name]):
            guilty.append(name)
        elif name in makers:
            maker = makers[name].node
            names.extend(names_taken(maker))
            guilty += [
                name for attribute in maker.attribute if attribute.name == "value" and not _is_finite(attribute.t)
            ]
    return f"; NaN or infinity is in its weight {', '.join(guilty)}" if guilty else ""


def _is_finite(tensor: onnx.TensorProto) -> bool:
    values = numpy_helper.to_array(tensor)
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
