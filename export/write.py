"""Writing an ONNX file: described by its card, cleaned, checked, and with large weights in a file beside it.

Weights that do not fit into one file lie in a second one, whose name holds a hash of its content. So an old model and
its weights stay whole until the new model, which names the new weights, takes the old one's place.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import segship
from segship.export.simplify import LIMIT_BYTES
from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.errors import ExportError, ModelError, one_line
from segship.runtime.external_data import external_files
from segship.runtime.files import replacing
from segship.runtime.model_file import read_onnx_header

_SMALL_BYTES: Final = 1024
_ALIGNMENT: Final = 4096
"""Engines map weights into memory by pages."""


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
        """Write a graph with its card, and check what was written: valid, with all shapes, and of this opset.

        Raises:
            ExportError: if it is not.
        """
        described = _described(model, card)
        if described.ByteSize() > self._external_above:
            self._weights.add(_move_weights(described, self.path.parent, self._stem))
        self.path.write_bytes(described.SerializeToString())
        try:
            onnx.checker.check_model(str(self.path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the exported graph is not valid ONNX ({one_line(error)})") from error
        written = read_onnx_header(self.path).opset
        if written != opset:
            raise ExportError(f"opset {opset} was asked for, but the exporter wrote opset {written}; no file is left")

    def remove_weights(self, but: set[Path]) -> None:
        """Remove the files of weights that this draft wrote, but for some."""
        for path in self._weights - but:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def drafting(path: Path, *, external_above: int = LIMIT_BYTES) -> Iterator[Draft]:
    """Yield a draft of a model; on success it takes the place of ``path``, on failure it goes.

    Args:
        path: of the model.
        external_above: bytes above which the weights go into a file of their own.

    Raises:
        OutputError: if the place cannot be written, or the disk is full.
    """
    old = set(_weights_of(path))
    draft = None
    try:
        with replacing(path, durable=True) as temporary:
            draft = Draft(temporary, path.stem, external_above)
            yield draft
    except BaseException:
        if draft is not None:
            draft.remove_weights(but=old)
        raise
    new = set(_weights_of(path))
    draft.remove_weights(but=new)
    for weights in old - new:
        weights.unlink(missing_ok=True)


def _weights_of(path: Path) -> list[Path]:
    try:
        return external_files(path)
    except ModelError:  # there is none, or one that nobody can run
        return []


def _described(model: onnx.ModelProto, card: ModelCard) -> onnx.ModelProto:
    """Put the card into a copy of the graph, and take out what tools and this machine left in it."""
    described = onnx.ModelProto()
    described.CopyFrom(model)
    described.producer_name, described.producer_version = "segship", segship.__version__
    described.doc_string = ""
    described.graph.name = card.network.arch if card.network else "network"
    _clean(described.graph)
    del described.metadata_props[:]
    entry = described.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.to_json()
    return described


def _clean(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _clean(inner)


def _move_weights(model: onnx.ModelProto, folder: Path, stem: str) -> Path:
    """Move large weights into a file of their own in ``folder``, and let the graph point to it."""
    large = [tensor for tensor in model.graph.initializer if tensor.ByteSize() > _SMALL_BYTES]
    digest = hashlib.sha256()
    temporary = folder / f".{stem}.weights"
    places = []
    try:
        with temporary.open("wb") as file:
            for tensor in large:
                content = np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()
                file.write(bytes(-file.tell() % _ALIGNMENT))
                places.append((file.tell(), len(content)))
                file.write(content)
                digest.update(content)
        path = folder / f"{stem}.{digest.hexdigest()[:12]}.data"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for tensor, (offset, length) in zip(large, places, strict=True):
        for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(kind)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return path
