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
from typing import TYPE_CHECKING, Final

from segship.export.pictures import RANDOM_PICTURES, Picture
from segship.export.report import ParityReport
from segship.export.torch_backend import TorchBackend
from segship.runtime.backends import Backend, load_backend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.candidate import Candidate, Locate
from segship.runtime.card import ModelCard
from segship.runtime.compare import Expected, Gate, gate_of
from segship.runtime.errors import ExportError, ModelError
from segship.runtime.images import Conversion
from segship.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import nn

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

    network: "nn.Module"
    card: ModelCard


def check_parity(
    model: Path,
    card: ModelCard,
    reference: Reference,
    pictures: Sequence[Picture],
    *,
    backends: Sequence[str] = (),
    convert: Sequence[Conversion] = (),
    gate: Gate | None = None,
    locate: Locate | None = None,
    measure: Callable[[Segmenter], float] | None = None,
) -> ParityReport:
    """Compare an exported file with what it was exported from, on each engine, on the CPU.

    A file that leaves axes open is compared at three sizes, and at batches of two and of three pictures.

    Args:
        model: the ONNX file.
        card: the file's.
        reference: what it must compute.
        pictures: to compare on; see :func:`segship.export.pictures.parity_pictures`.
        backends: names of the engines; none: each of ``ENGINES`` that is installed. OpenVINO also runs in the precision
            that it takes for fastest, which is recorded and gates nothing.
        convert: lossy conversions of the pictures that are allowed.
        gate: what is asked of the engines; None: what the file's precision and form ask for.
        locate: names the node at which an engine leaves the reference's network.
        measure: returns the points that an engine loses on the user's pictures, for a gate with a budget.

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
    gate = gate or gate_of(card.precision)
    refused: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        candidates = []
        for name in backends or [name for name in ENGINES if name not in missing]:
            try:
                for backend, own_gate in _load(name, model, card, gate):
                    engine = stack.enter_context(Segmenter(model, backend=backend, card=card, convert=convert))
                    candidates.append(Candidate(engine, own_gate, locate, measure))
            except ModelError as error:
                refused[name] = str(error)
        words = _compare_all(candidates, card, reference, pictures, convert)
        rows = tuple(candidate.row() for candidate in candidates)
    agreement = resize_agreement(reference, card, pictures, convert)
    return ParityReport(TorchBackend.of_network(reference.network).info, rows, words, refused, missing, agreement)


def resize_agreement(
    reference: Reference, card: ModelCard, pictures: Sequence[Picture], convert: Sequence[Conversion] = ()
) -> float | None:
    """Return the share of labels that PyTorch gives alike by a graph's way of resizing frames and by the trainer's.

    Of the real pictures only, since noise is all edges; 0…1. None where the two ways are the same, or without pictures.
    """
    real = pictures[RANDOM_PICTURES:]
    if card.preprocess.interpolation == reference.card.preprocess.interpolation or not real:
        return None
    frames = dataclasses.replace(card, head="labels", output_name="labels")
    trained = dataclasses.replace(frames, preprocess=reference.card.preprocess)
    trained = dataclasses.replace(
        trained, preprocess=dataclasses.replace(trained.preprocess, size=card.preprocess.size)
    )
    same = pixels = 0
    ways = (expectations(reference, form, real, convert) for form in (frames, trained))
    for (_, graphs), (_, trainers) in zip(*ways, strict=True):
        same += int((graphs.labels == trainers.labels).sum())
        pixels += trainers.labels.size
    return same / pixels


def expectations(
    reference: Reference, card: ModelCard, pictures: Sequence[Picture], convert: Sequence[Conversion] = ()
) -> Iterator[tuple[Picture, Expected]]:
    """Yield each picture with what PyTorch says of it, in the form and at the size of an exported file's card."""
    form = dataclasses.replace(reference.card.preprocess, size=card.preprocess.size)
    if card.frame is not None:  # the graph resizes in its own way, and what that changes is measured for itself
        form = dataclasses.replace(form, interpolation=card.preprocess.interpolation)
    own_card = dataclasses.replace(reference.card, preprocess=form)
    engine = TorchBackend.of_network(reference.network)
    with Segmenter("the checkpoint", backend=engine, card=own_card, convert=convert) as segmenter:
        for picture in pictures:
            yield picture, Expected.of(segmenter(picture.source), segmenter.processing.stages(picture.source), card)


def _compare_all(
    candidates: Sequence[Candidate],
    card: ModelCard,
    reference: Reference,
    pictures: Sequence[Picture],
    convert: Sequence[Conversion],
) -> str:
    """Compare every candidate on every picture, at every size and batch that the file takes; return these in words."""
    sizes = _sizes(card)
    given = sum(picture.is_given for picture in pictures)
    counts = {"random": RANDOM_PICTURES, "given": given, "built-in": len(pictures) - RANDOM_PICTURES - given}
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    for size in sizes:
        own = card.at_size(size)
        some = pictures if size == card.preprocess.size else pictures[RANDOM_PICTURES - 1 :][:PICTURES_AT_OTHER_SIZES]
        for picture, expected in expectations(reference, own, some, convert):
            for candidate in candidates:
                candidate.take(picture.name, picture.source, expected, size=size)
    if len(sizes) > 1:
        words += f", at {', '.join(f'{height}×{width}' for height, width in sizes)}"
    if "batch" in card.dynamic:
        for count in OTHER_BATCHES:
            some = pictures[-count:]
            every = [expected for _, expected in expectations(reference, card, some, convert)]
            for candidate in candidates:
                candidate.take_batch([one.name for one in some], [one.source for one in some], every)
        words += f", in batches of {', '.join(map(str, (1, *OTHER_BATCHES)))}"
    return words


def _load(name: str, model: Path, card: ModelCard, gate: Gate) -> Iterator[tuple[Backend, Gate | None]]:
    """Load a file into an engine, with the gate that it must keep to; OpenVINO also as it would by itself."""
    yield load_backend(name, model, card, "cpu"), gate
    if name == "openvino":
        by_itself = load_backend(name, model, card, "cpu", EngineOptions(precision="engine"))
        if by_itself.info.precision != card.precision:
            yield by_itself, None


def _sizes(card: ModelCard) -> list[tuple[int, int]]:
    """Return the sizes to compare at: the card's, and where it is open one that is smaller and one that is larger."""
    height, width = card.preprocess.size
    if "size" not in card.dynamic:
        return [(height, width)]
    stride = card.stride
    least = 2 * stride  # below, OpenCV 5 misreads maps of a single pixel, and says so
    narrower = max(least, -(-width * 3 // 4 // stride) * stride)
    return [(height, width), (height + stride, narrower), (max(least, height - stride), width + 2 * stride)]
