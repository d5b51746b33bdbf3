"""golden.npz: what PyTorch said of some pictures, kept so that any machine can be asked whether it says the same.

An ordinary ``.npz``: ``numpy.load`` reads it, without pickle. ``about`` is a JSON text, and the picture number 0 has
the arrays

=====================  ================================================================================
``000/file``           the bytes of the picture's file; empty for noise and other pictures without one
``000/decoded``        (H, W, C), as it was decoded
``000/resized``        (h, w, C); left out where the graph resizes, or the picture is cut into tiles
``000/normalised``     (1, C, h, w) float32; likewise
``000/logits``         (K, h, w) float32; left out where the graph returns labels
``000/labels``         (h, w) class ids
``000/gap``            (h, w) float16: how far the label is from another one, in units of what rounding may move
=====================  ================================================================================

A gap of at most 1 is a near tie. Which side of 1 it lies on is kept exactly, the rest is rounded, and 16 means "16 or
more".
"""

import contextlib
import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard, Shape
from segship.runtime.compare import Expected
from segship.runtime.errors import ModelError, one_line
from segship.runtime.files import replacing
from segship.runtime.labels import labels_dtype
from segship.runtime.processing import Stages
from segship.runtime.strict import parse

FORMAT_VERSION: Final = 1
_MAX_ARRAY_BYTES: Final = 1 << 30
_MAX_HEADER_BYTES: Final = 1 << 10
_MAX_ABOUT_BYTES: Final = 4 << 20
_LARGEST_GAP: Final = 16.0
_DAMAGES: Final = (
    *(ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError, EOFError, SyntaxError),
    *(struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
"""What zipfile and numpy's reader of headers raise on damaged files."""


@dataclass(frozen=True)
class Example:
    """One picture, and what PyTorch says of it.

    Attributes:
        name: of the picture, for messages.
        file: the bytes of its file; empty for a picture that has none.
        expected: what an engine must say of it.
    """

    name: str
    file: bytes
    expected: Expected


@dataclass(frozen=True)
class _About:
    """The JSON text in a golden file; see :class:`Golden`."""

    format_version: int
    content_sha256: str
    reference: str
    versions: dict[str, str]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Golden:
    """A golden file; its pictures are read one after the other.

    Attributes:
        path: of the file.
        content_sha256: of the model that it was made for; see ``model_file.content_sha256``.
        reference: what the outputs come from, such as ``PyTorch 2.13.0 on cpu``; empty if nobody wrote it down.
        versions: of Python packages that made the model.
        names: of the pictures.
    """

    path: Path
    content_sha256: str
    reference: str
    versions: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def examples(self, card: ModelCard) -> Iterator[Example]:
        """Read the pictures, one in memory at a time.

        Args:
            card: of the model that the file was made for.

        Raises:
            ModelError: if the file is damaged, or does not hold what the card asks for.
        """
        with _opened(self.path) as archive:
            for number, name in enumerate(self.names):
                yield _read_example(archive, number, name, card)


def write_golden(path: Path, card: ModelCard, content_sha256: str, examples: Iterable[Example]) -> None:
    """Write a golden file, whole or not at all.

    Args:
        path: of the file.
        card: of the model.
        content_sha256: of the model; see ``model_file.content_sha256``.
        examples: with logits, unless the model returns labels. Each is written before the next one is asked for.

    Raises:
        OutputError: if it cannot be written.
    """
    names = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, example in enumerate(examples):
            stages, expected = example.expected.stages, example.expected
            arrays = {
                "file": np.frombuffer(example.file, np.uint8),
                "decoded": stages.decoded,
                "resized": stages.resized,
                "normalised": stages.normalised,
                "logits": None if card.head == "labels" else expected.logits,
                "labels": expected.labels,
                "gap": _rounded_gap(expected.gap),
            }
            for kind, array in arrays.items():
                if array is not None:
                    _write_array(archive, f"{number:03}/{kind}", array)
            names.append(example.name)
        reference = card.certificate.reference if card.certificate else ""
        about = {"format_version": FORMAT_VERSION, "content_sha256": content_sha256, "reference": reference}
        about |= {"versions": card.provenance.versions, "names": names}
        _write_array(archive, "about", np.array(json.dumps(about)))


def read_golden(path: Path) -> Golden:
    """Read what a golden file says of itself; its pictures are read when they are asked for.

    Raises:
        ModelError: if the file is missing, is no golden file, or one of a newer format.
    """
    with _opened(path) as archive:
        plain = json.loads(str(_read_array(archive, "about", _MAX_ABOUT_BYTES)))
        version = plain.get("format_version") if isinstance(plain, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version}; this segship reads up to {FORMAT_VERSION}; upgrade segship"
            )
        about = parse(_About, plain, f"{path}: about", ModelError)
    if not all(text.isprintable() for text in (about.content_sha256, about.reference, *about.names)):
        raise ModelError(f"{path} is no golden file of seg-export, or a damaged one (its names are no plain text)")
    return Golden(path, about.content_sha256, about.reference, about.versions, about.names)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise ModelError(f"cannot read the golden file {path}: {error.strerror or error}") from error
    except _DAMAGES as error:
        raise ModelError(f"{path} is no golden file of seg-export, or a damaged one ({one_line(error)})") from error


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980, so that the same content gives the same file
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)


def _read_array(archive: zipfile.ZipFile, name: str, max_bytes: int) -> NDArray[Any]:
    """Read an array; memory is taken for what is there, not for what a header claims."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > max_bytes:
        raise ValueError(f"{name} has {info.file_size} bytes; at most {max_bytes} are read")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unknown way")
    content = archive.read(info)
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} has an unknown header")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    length = len(content) - stream.tell()
    if is_fortran or dtype.kind not in "ufU" or not dtype.isnative or length != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} does not hold the numbers that its header announces")
    return (
        np.frombuffer(content, dtype, math.prod(shape), stream.tell()).reshape(shape) if length else np.empty(0, dtype)
    )


def _read_example(archive: zipfile.ZipFile, number: int, name: str, card: ModelCard) -> Example:
    form, members = card.preprocess, set(archive.namelist())
    parted = card.tile_overlap is not None

    def read(kind: str, dtypes: tuple[str, ...], shape: Shape) -> NDArray[Any]:
        known = math.prod(side for side in shape if side is not None)
        limit = _MAX_ARRAY_BYTES if None in shape else 8 * known + _MAX_HEADER_BYTES
        array = _read_array(archive, f"{number:03}/{kind}", limit)
        fits = array.ndim == len(shape) and all(
            side in (None, got) for side, got in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name not in dtypes:
            raise ValueError(f"{name}: {kind} is {array.shape} {array.dtype}; expected {shape} {' or '.join(dtypes)}")
        return array

    def read_if_there(kind: str, dtypes: tuple[str, ...], shape: Shape) -> NDArray[Any] | None:
        return read(kind, dtypes, shape) if f"{number:03}/{kind}.npy" in members else None

    file = read("file", ("uint8",), (None,))
    decoded = read("decoded", (form.depth,), (*(card.frame or (None, None)), form.channels))
    if 0 in decoded.shape:
        raise ValueError(f"{name}: the picture is empty")
    resized = read_if_there("resized", (form.depth, "float32"), (*form.size, form.channels))
    normalised = read_if_there("normalised", ("float32",), (1, form.channels, *form.size))
    size = decoded.shape[:2] if parted else card.frame or form.content_size(decoded.shape)
    logits = None if card.head == "labels" else read("logits", ("float32",), (card.num_logits, *size))
    labels = read("labels", (np.dtype(labels_dtype(card.num_classes)).name,), size)
    if labels.max() >= card.num_classes:
        raise ValueError(f"{name}: the label {labels.max()} is none of {card.num_classes} classes")
    gap = read("gap", ("float16",), size).astype(np.float32)
    return Example(name, file.tobytes(), Expected(Stages(decoded, resized, normalised), logits, labels, gap))


def _rounded_gap(gap: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16, which needs a tenth of the room once small; what is above 1 stays above it."""
    rounded = np.minimum(gap, _LARGEST_GAP).astype(np.float16)
    rounded[(gap > 1) & (rounded <= 1)] = np.nextafter(np.float16(1), np.float16(2))
    return rounded
