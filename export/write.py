"""Writing an ONNX file: described by its card, cleaned, checked, and with large weights in a file beside it.

Weights that do not fit into one file lie in a second one, whose name holds a hash of its content. So an old model and
its weights stay whole until the new model, which names the new weights, takes the old one's place.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

import segship
from segship.export.simplify import LIMIT_BYTES, serialised_bytes
from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.errors import ExportError, ModelError, one_line
from segship.runtime.external_data import external_files
from segship.runtime.files import replacing
from segship.runtime.model_file import read_onnx_header

_SMALL_BYTES: Final = 1024
"""Tensors up to this size stay in the graph: shapes and other constants, which engines look at while they load."""

_ALIGNMENT: Final = 4096
"""Engines map weights into memory by pages."""

_DIGITS: Final = 12


class Draft:
    """A model that is being made beside its place.

    Attributes:
        path: of the file, which may be run, and written again.
    """

    def __init__(self, path: Path, stem: str, external_above: int) -> None:
        self.path = path
        self._stem, self._external_above = stem, external_above
        self._weights: set[Path] = set()

    def write(self, model: onnx.ModelProto, card: ModelCard, opset: int) -> None:
        """Write a graph with its card, see :func:`write_model`; ``model`` stays as it is."""
        complete = described(model, card)
        weights = write_model(complete, self.path, opset, stem=self._stem, external_above=self._external_above)
        self._weights |= {weights} if weights else set()

    def remove_weights(self, but: Iterable[Path]) -> None:
        """Remove the files of weights that this draft wrote, but for some."""
        for path in self._weights - set(but):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def drafting(path: Path, *, external_above: int = LIMIT_BYTES) -> Iterator[Draft]:
    """Yield a draft of a model; on success it takes the place of ``path``, on failure it goes.

    A process that is killed leaves the old model whole, or the new one; at worst hidden temporary files, and a file of
    weights that no model names, which the next model of this name removes.

    Args:
        path: of the model.
        external_above: bytes above which the weights go into a file of their own.

    Raises:
        OutputError: if the place cannot be written, or the disk is full.
    """
    old = set(_weights_of(path))
    models = [model for model in path.parent.glob("*.onnx") if model != path and not model.name.startswith(".")]
    others = {file for model in models for file in _weights_of(model)}
    with replacing(path, durable=True) as temporary:
        draft = Draft(temporary, path.stem, external_above)
        try:
            yield draft
            used = external_files(temporary)
        except BaseException:
            draft.remove_weights(but=old | others)
            raise
    ours = re.compile(rf"{re.escape(path.stem)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    for file in path.parent.iterdir():
        if ours.fullmatch(file.name) and file not in others.union(used):
            file.unlink(missing_ok=True)


def described(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Return a copy of a graph with its card, without what tools and this machine left in it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.producer_name, copy.producer_version = "segship", segship.__version__
    copy.ClearField("domain")
    copy.ClearField("model_version")
    copy.graph.name = card.network.arch if card.network else "network"
    copy.ClearField("doc_string")
    _clean(copy.graph)
    called = {(node.domain, node.op_type) for node in _nodes(copy.graph.node)}
    for function in list(copy.functions):
        _clean(function)
        if (function.domain, function.name) not in called:
            copy.functions.remove(function)
    used = {domain for domain, _ in called} | {node.domain for f in copy.functions for node in _nodes(f.node)}
    for entry in [entry for entry in copy.opset_import if entry.domain not in used | {"", "ai.onnx"}]:
        copy.opset_import.remove(entry)
    del copy.metadata_props[:]
    copy.metadata_props.add(key=CARD_KEY, value=card.to_json())
    return copy


def write_model(
    model: onnx.ModelProto, path: Path, opset: int, *, stem: str = "", external_above: int = LIMIT_BYTES
) -> Path | None:
    """Write a model, and check what was written: whole, valid, with all shapes, and of the opset that was asked for.

    Args:
        model: where it is larger than ``external_above``, its weights move out of it, into the file.
        path: of the file to write.
        opset: version of the default operator set.
        stem: what the name of the file of weights begins with; that of ``path`` by default.
        external_above: bytes above which the weights go into a file of their own, beside ``path``.

    Returns:
        The file of weights ``STEM.HASH.data``; None if they are in the model itself.

    Raises:
        ExportError: if the file is no valid ONNX file, or of another opset.
        OutputError: if the file of weights cannot be written.
    """
    is_large = serialised_bytes(model) > external_above
    weights = _move_weights(model, path.parent, stem or path.stem) if is_large else None
    path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX ({one_line(error)})") from error
    header = read_onnx_header(path)
    if header.opset != opset:
        raise ExportError(f"opset {opset} was asked for, but the exporter wrote opset {header.opset}; no file is left")
    for name, shape in header.outputs.items():
        if shape is None:
            raise ExportError(f"the exported graph does not tell the shape of its output {name!r}; no file is left")
    return weights


def _weights_of(path: Path) -> list[Path]:
    try:
        return external_files(path)
    except ModelError:  # there is none, or one that nobody can run
        return []


def _clean(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Take out descriptions, traces of tools, and shapes of values inside, which every engine infers itself."""
    del graph.value_info[:]
    parts: list[onnx.GraphProto | onnx.FunctionProto | onnx.NodeProto | onnx.ValueInfoProto | TensorProto]
    parts = [graph, *graph.node]
    if isinstance(graph, onnx.GraphProto):
        parts += [*graph.input, *graph.output, *graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            parts += [attribute.t] if attribute.HasField("t") else []
            for inner in _graphs_in(attribute):
                _clean(inner)
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in _graphs_in(attribute):
                yield from _nodes(inner.node)


def _graphs_in(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _move_weights(model: onnx.ModelProto, folder: Path, stem: str) -> Path:
    """Move large weights into a file of their own in ``folder``, and let the graph point to it."""
    large = [tensor for tensor in model.graph.initializer if tensor.ByteSize() > _SMALL_BYTES]
    digest = hashlib.sha256()
    for tensor in large:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        digest.update(tensor.raw_data)
    path = folder / f"{stem}.{digest.hexdigest()[:_DIGITS]}.data"
    with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
        for tensor in large:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offset = file.tell()
            length = file.write(tensor.raw_data)
            external_data_helper.set_external_data(tensor, path.name, offset, length)
            tensor.ClearField("raw_data")
    return path
