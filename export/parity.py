"""Does the exported file compute what PyTorch computes? Asked of the very file that ships, from picture to mask.

Each engine goes its own road with each picture: decode, resize, normalise, network, labels, and back to the picture's
size. Where it leaves PyTorch's, the stage is named, and in the network the node.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from segship.export.report import ParityReport, ParityRow, Worst
from segship.export.torch_backend import TorchBackend
from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.compare import (
    LOOSE,
    Comparison,
    Expected,
    Gate,
    compare,
    first_differing_stage,
    gate_of,
)
from segship.runtime.errors import BackendError, ExportError, ModelError
from segship.runtime.images import Conversion, ImageSource, read_image
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.runtime.segmenter import Result, Segmenter
from segship.runtime.tiling import graph_input, pad_to, whole_input

RANDOM_PICTURES: Final = 3
REAL_PICTURES: Final = 8
"""At least so many real pictures are compared on; the built-in dataset's fill up what is missing."""
PICTURES_AT_OTHER_SIZES: Final = 3
OTHER_BATCHES: Final = (2, 3)

ENGINES: Final = {"ort": ("onnxruntime", "cpu"), "opencv": ("cv2", ""), "openvino": ("openvino", "openvino")}
"""Engines that parity is checked on: their module and the extra that brings it."""


@dataclass(frozen=True)
class Reference:
    """What an exported file must compute.

    Attributes:
        network: in evaluation mode, on the CPU; returns a tuple of logits (N, K, h, w), the main one first.
        card: that says how it was trained; its head is ``logits``, its input ``float``.
    """

    network: nn.Module
    card: ModelCard


Locate = Callable[[Backend, ModelCard, NDArray[Any]], str]
"""Says in words where in the network an engine leaves the reference, given the card and an input of the graph."""


def check_parity(
    model: Path,
    card: ModelCard,
    reference: Reference,
    pictures: Sequence[ImageSource],
    *,
    backends: Sequence[str] = (),
    convert: Sequence[Conversion] = (),
    gate: Gate | None = None,
    locate: Locate | None = None,
) -> ParityReport:
    """Compare an exported file with what it was exported from, on each engine, on the CPU.

    A file that leaves axes open is compared at three sizes, and at batches of two and of three pictures.

    Args:
        model: the ONNX file.
        card: the file's.
        reference: what it must compute.
        pictures: to compare on; see :func:`parity_pictures`.
        backends: names of the engines; none: each of ``ENGINES`` that is installed. OpenVINO also runs in the precision
            that it takes for fastest, which is recorded and gates nothing.
        convert: lossy conversions of the pictures that are allowed.
        gate: what is asked of the engines; None: what the file's precision and form ask for.
        locate: names the node at which an engine leaves the reference's network.

    Raises:
        ImageError: if a picture cannot be read.
        ExportError: if an engine that was asked for is not installed.
    """
    missing = {
        name: f'pip install "segship[{extra}]"'
        for name, (module, extra) in ENGINES.items()
        if importlib.util.find_spec(module) is None and (not backends or name in backends)
    }
    if backends and missing:
        raise ExportError("the comparison was asked for on what is not installed: " + ", ".join(missing.values()))
    gate = gate or file_gate(card, reference.card)
    refused: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        candidates = []
        for name in backends or [name for name in ENGINES if name not in missing]:
            try:
                for engine, own_gate in _load(name, model, card, gate):
                    stack.callback(engine.close)
                    candidates.append(_Candidate(model, engine, own_gate, convert, locate))
            except ModelError as error:
                refused[name] = str(error)
        words = _compare_all(candidates, card, reference, pictures, convert)
        rows = tuple(candidate.row() for candidate in candidates)
    return ParityReport(TorchBackend.of_network(reference.network).info, rows, words, refused, missing)


def file_gate(card: ModelCard, reference: ModelCard) -> Gate:
    """Return what is asked of a file: less than float32 where it resizes frames by another rule than the trainer's."""
    return LOOSE if card.preprocess.interpolation != reference.preprocess.interpolation else gate_of(card.precision)


def expectations(
    reference: Reference, card: ModelCard, pictures: Sequence[ImageSource], convert: Sequence[Conversion] = ()
) -> Iterator[tuple[ImageSource, Expected]]:
    """Yield each picture with what PyTorch says of it, in the form and at the size of an exported file's card."""
    form = dataclasses.replace(reference.card.preprocess, size=card.preprocess.size)
    own_card = dataclasses.replace(reference.card, preprocess=form)
    engine = TorchBackend.of_network(reference.network)
    with Segmenter("the checkpoint", backend=engine, card=own_card, convert=convert) as segmenter:
        for picture in pictures:
            yield picture, Expected.of(segmenter(picture), segmenter.stages(picture), card)


def parity_pictures(images: Sequence[Path], card: ModelCard, convert: Sequence[Conversion] = ()) -> list[ImageSource]:
    """Return what a file with this card is compared on: three of seeded noise first, then at least eight real ones.

    Args:
        images: real pictures; where there are fewer than eight, the built-in dataset's fill up.
        card: of the file. One for frames gets all pictures at the frame's size.
        convert: lossy conversions of them that are allowed.
    """
    form = card.preprocess
    real: list[ImageSource] = list(images)
    if len(real) < REAL_PICTURES:
        real += _demo_pictures(form, REAL_PICTURES - len(real))
    if card.frame is not None:
        real = [_at_size(picture, form, card.frame, convert) for picture in real]
    return [*_random_pictures(form, card.frame or form.size), *real]


def _compare_all(
    candidates: Sequence["_Candidate"],
    card: ModelCard,
    reference: Reference,
    pictures: Sequence[ImageSource],
    convert: Sequence[Conversion],
) -> str:
    """Compare every candidate on every picture, at every size and batch that the file takes; return these in words."""
    sizes = _sizes(card)
    words = f"{RANDOM_PICTURES} random, {len(pictures) - RANDOM_PICTURES} real"
    for size in sizes:
        own = card.at_size(size)
        some = pictures if size == card.preprocess.size else pictures[RANDOM_PICTURES - 1 :][:PICTURES_AT_OTHER_SIZES]
        for picture, expected in expectations(reference, own, some, convert):
            for candidate in candidates:
                candidate.compare(own, picture, expected)
    if len(sizes) > 1:
        words += f", at {', '.join(f'{height}×{width}' for height, width in sizes)}"
    if "batch" in card.dynamic:
        for count in OTHER_BATCHES:
            every = [expected for _, expected in expectations(reference, card, pictures[-count:], convert)]
            for candidate in candidates:
                candidate.compare_batch(card, pictures[-count:], every)
        words += f", in batches of {', '.join(map(str, (1, *OTHER_BATCHES)))}"
    return words


class _Candidate:
    """An engine that runs the file, and how far it was from PyTorch so far."""

    def __init__(
        self, model: Path, engine: Backend, gate: Gate | None, convert: Sequence[Conversion], locate: Locate | None
    ) -> None:
        self._model, self._engine, self._gate = model, engine, gate
        self._convert, self._locate = convert, locate
        self._comparisons: list[Comparison] = []
        self._worst: Worst | None = None
        self._failure = ""

    def compare(self, card: ModelCard, picture: ImageSource, expected: Expected) -> None:
        """Take one picture the whole road."""
        segmenter = self._segmenter(card)
        try:
            self._add(expected, segmenter(picture))
        except BackendError as error:
            self._failure = self._failure or f"{error}{self._node(card, expected)}"

    def compare_batch(self, card: ModelCard, pictures: Sequence[ImageSource], every: Sequence[Expected]) -> None:
        """Take several pictures in one run of the graph."""
        try:
            for expected, result in zip(every, self._segmenter(card).batch(pictures), strict=True):
                self._add(expected, result)
        except BackendError as error:
            self._failure = self._failure or f"in a batch of {len(pictures)}: {error}"

    def row(self) -> ParityRow:
        """Return what was found; where it is not what was asked for, with the place where it first differs."""
        merged = Comparison.merged(self._comparisons) if self._comparisons and not self._failure else None
        row = ParityRow(self._engine.info, self._gate, merged, self._failure, self._worst)
        if row.keeps_to_gate or self._failure or self._worst is None:
            return row
        card, expected = self._worst.result.card, self._worst.expected
        stage = first_differing_stage(expected, self._segmenter(card), self._worst.result)
        node = self._node(card, expected) if stage == "network" else ""
        return dataclasses.replace(row, fault=f"first differs at the stage {stage}{node}")

    def _segmenter(self, card: ModelCard) -> Segmenter:
        return Segmenter(self._model, backend=self._engine, card=card, convert=self._convert)

    def _add(self, expected: Expected, result: Result) -> None:
        comparison = compare(expected, result)
        self._comparisons.append(comparison)
        if self._worst is None or _badness(comparison) > _badness(self._worst.comparison):
            self._worst = Worst(expected, result, comparison)

    def _node(self, card: ModelCard, expected: Expected) -> str:
        if self._locate is None:
            return ""
        picture, (height, width) = expected.stages.decoded, card.preprocess.size
        if card.tile_overlap is None:
            batch = whole_input(card, picture)
        else:
            batch = graph_input(card, pad_to(picture, (height, width))[:height, :width])
        found = self._locate(self._engine, card, batch)
        return f": {found}" if found else ""


def _badness(comparison: Comparison) -> tuple[int, int, float]:
    return comparison.unexplained_flips, comparison.differing_pixels, comparison.max_abs or 0.0


def _load(name: str, model: Path, card: ModelCard, gate: Gate) -> Iterator[tuple[Backend, Gate | None]]:
    """Load a file into an engine, with the gate that it must keep to; OpenVINO also as it would by itself."""
    yield load_backend(name, model, card, "cpu"), gate
    if name == "openvino":
        from segship.runtime.backends.openvino import OpenVINOBackend

        by_itself = OpenVINOBackend(model, card, "cpu", precision="engine")
        if by_itself.info.precision != card.precision:
            yield by_itself, None


def _sizes(card: ModelCard) -> list[tuple[int, int]]:
    """Return the sizes to compare at: the card's, and where it is open one that is smaller and one that is larger."""
    height, width = card.preprocess.size
    if "size" not in card.dynamic:
        return [(height, width)]
    stride = card.stride
    fewer = -(-width * 3 // 4 // stride) * stride
    return [(height, width), (height + stride, fewer), (max(stride, height - stride), width + 2 * stride)]


def _random_pictures(form: Preprocess, size: tuple[int, int]) -> list[ImageSource]:
    """Return noise at the network's size: no two neighbours alike, so that nothing is hidden by smoothness."""
    full = FULL_SCALE[form.depth]
    return [
        np.random.default_rng(seed).integers(0, full, (*size, form.channels), form.depth, endpoint=True)
        for seed in range(RANDOM_PICTURES)
    ]


def _demo_pictures(form: Preprocess, count: int) -> list[ImageSource]:
    from segship.training.data.demo import open_demo

    variant = "" if form.channels == 3 else f"grey{form.depth.removeprefix('uint')}"
    pictures = open_demo(variant).val
    found = [pictures[index].image for index in range(count)]
    widen = form.channels == 3 and form.depth == "uint16"
    return [image.astype(np.uint16) * np.uint16(257) for image in found] if widen else list(found)


def _at_size(
    picture: ImageSource, form: Preprocess, size: tuple[int, int], convert: Sequence[Conversion]
) -> ImageSource:
    image = read_image(picture, channels=form.channels, depth=form.depth, convert=convert)
    if image.shape[:2] == size:
        return picture
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, form.channels)
