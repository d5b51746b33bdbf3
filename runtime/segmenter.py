"""From a picture to its labels, in one call or as an overlapping stream."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import Backend, EngineInfo, default_backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, CardError, ImageError, ModelError, SegshipError
from segship.runtime.images import Conversion, ImageSource, read_image, source_name
from segship.runtime.labels import (
    Labels,
    labels_dtype,
    labels_from_logits,
    logits_from_probabilities,
    probabilities_from_logits,
    resize_labels,
)
from segship.runtime.model_file import has_card, read_card
from segship.runtime.outputs import OutputKind, output_paths
from segship.runtime.pipeline import overlapped
from segship.runtime.prepare import PreparedPicture, prepare, whole_input
from segship.runtime.preprocess import Image
from segship.runtime.proof import warn_if_unproven
from segship.runtime.render import DEFAULT_ALPHA, RgbImage, color_image, overlay_image, write_mask, write_rgb

Extra = TypeVar("Extra")


@dataclass(frozen=True)
class Result:
    """What a network says about one picture.

    Attributes:
        source: where the picture came from: its path, or what kind of object it was.
        image: the picture, upright, (H, W, 1 or 3), uint8 or uint16, red, green, blue.
        labels: class ids (H, W) at the picture's own size, uint8 (uint16 above 256 classes).
        logits: (K, h, w) float32 of the graph's size, or of the picture's own where it was cut into tiles; K is 1
            for a binary network. None where the graph returns labels. Where it returns probabilities, logits that
            have these.
        card: of the model.
        timings: milliseconds by stage: ``prepare_ms``, ``network_ms``, ``labels_ms``.
    """

    source: str
    image: Image
    labels: Labels
    logits: NDArray[np.float32] | None
    card: ModelCard
    timings: dict[str, float] = field(default_factory=dict)

    @cached_property
    def areas(self) -> dict[str, float]:
        """Share of the picture that each class has, 0…1, by name."""
        counts = np.bincount(self.labels.ravel(), minlength=self.card.num_classes)
        return {name: float(counts[i]) / self.labels.size for i, name in enumerate(self.card.class_names)}

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax over the classes at the picture's size, (C, H, W), 0…1.

        Raises:
            ModelError: if the graph returns labels, from which no probabilities can be told.
        """
        if self.logits is None:
            raise ModelError("this model returns labels, so there are no probabilities; export it with --head logits")
        return probabilities_from_logits(self.logits, (self.labels.shape[0], self.labels.shape[1]), self.card)

    def color(self) -> RgbImage:
        """Return the labels in the card's colours, (H, W, 3) uint8 RGB."""
        return color_image(self.labels, self.card)

    def overlay(self, alpha: float = DEFAULT_ALPHA) -> RgbImage:
        """Return the picture under the labels' colours of opacity ``alpha`` (0…1), (H, W, 3) uint8 RGB."""
        return overlay_image(self.image, self.labels, self.card, alpha)

    def save(
        self,
        out: str | Path,
        kinds: Sequence[OutputKind] = ("mask", "overlay"),
        *,
        name: str | Path | None = None,
        alpha: float = DEFAULT_ALPHA,
    ) -> dict[OutputKind, Path]:
        """Write pictures of the result as ``out/KIND/name.png``, each whole or not at all, over what is there.

        Args:
            out: folder to write below.
            kinds: ``mask`` (palette PNG of class ids), ``color``, ``overlay``.
            name: without suffix, may lead into folders; None: that of the source.
            alpha: opacity of the colours in the overlay, 0…1.

        Returns:
            Where each kind was written.
        """
        paths = output_paths(Path(out), kinds, Path(self.source).stem if name is None else name)
        for kind, path in paths.items():
            match kind:
                case "mask":
                    write_mask(path, self.labels, self.card)
                case "color":
                    write_rgb(path, self.color())
                case "overlay":
                    write_rgb(path, self.overlay(alpha))
        return paths


@dataclass(frozen=True)
class Stages:
    """A picture on its way to the network.

    Attributes:
        decoded: (H, W, C), upright, of the card's depth and channels.
        resized: (h, w, C); None where the graph resizes, or the picture is cut into tiles.
        normalised: (1, C, h, w) float32; None where the graph normalises, or the picture is cut into tiles.
    """

    decoded: Image
    resized: Image | None
    normalised: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Prepared:
    source: str
    image: Image
    through: PreparedPicture
    timings: dict[str, float]


class Segmenter:
    """A model with an engine that runs it.

    Args:
        model: an ``.onnx`` file, or a checkpoint for the backend ``torch``.
        backend: name of the engine; None: ``ort`` where it is installed, otherwise ``opencv``. ``info`` says which.
            An engine that has loaded the model already is taken as it is, with the ``card`` that it was loaded with.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; what is asked for runs, or it is an error.
        card: for a model that carries none; one that has its own is not overruled.
        size: (height, width) that pictures are brought to, for a graph that leaves its size open; None: the card's.
        convert: lossy conversions of pictures that are allowed.

    Raises:
        ModelError: if the model is missing or damaged, or the engine cannot run it.
        CardError: if neither the model nor ``card`` says what must be known.
        BackendError: if there is no such engine or device.

    Warns:
        UnprovenWarning: if the model has a certificate that does not cover it, or the engine that runs it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str | Backend | None = None,
        device: str = "auto",
        card: ModelCard | None = None,
        size: tuple[int, int] | None = None,
        convert: Collection[Conversion] = (),
    ) -> None:
        self.model = Path(model)
        self.convert = frozenset(convert)
        if backend is None or isinstance(backend, str):
            card = read_card(self.model) if card is None else _only_card(self.model, card)
            backend = load_backend(backend or default_backend(), self.model, card, device)
            warn_if_unproven(self.model, card, backend.info)
        elif card is None:
            raise CardError("an engine that is loaded already needs the card that it was loaded with")
        self.card = card if size is None else card.at_size(size)
        self._backend = backend

    @property
    def info(self) -> EngineInfo:
        """What really runs the network."""
        return self._backend.info

    def __call__(self, image: ImageSource) -> Result:
        """Segment one picture.

        Args:
            image: a path, a Pillow image, or an array (H, W, 3) or (H, W), uint8 or uint16, red, green, blue.

        Raises:
            ImageError: if it cannot be read, or only with a lossy conversion that was not allowed.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        prepared, output = self._infer(self._prepare(image))
        return self._finish(prepared.source, prepared.image, prepared.timings, output)

    def batch(self, images: Sequence[ImageSource]) -> list[Result]:
        """Segment several pictures in one run of the graph.

        Raises:
            ModelError: if the graph takes one picture at a time.
            ImageError: if one cannot be read.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        if "batch" not in self.card.dynamic or self.card.tile_overlap is not None:
            raise ModelError(f"{self.model} takes one picture at a time; export it with --dynamic batch")
        pictures = [self._read(image) for image in images]
        outputs = self.run(np.concatenate([whole_input(self.card, picture) for picture in pictures]))
        return [
            self._finish(source_name(image), picture, {}, output)
            for image, picture, output in zip(images, pictures, outputs, strict=True)
        ]

    @overload
    def stream(
        self, images: Iterable[ImageSource], *, on_error: Callable[[int, SegshipError], None] | None = None
    ) -> Iterator[Result]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        then: Callable[[int, Result], Extra],
        on_error: Callable[[int, SegshipError], None] | None = None,
    ) -> Iterator[tuple[Result, Extra]]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        then: Callable[[int, Result], Extra] | None = None,
        on_error: Callable[[int, SegshipError], None] | None = None,
    ) -> Iterator[Result] | Iterator[tuple[Result, Extra]]:
        """Segment many pictures; reading, network and what follows overlap, order is kept, memory stays bounded.

        Args:
            images: read no faster than results are taken. Arrays are not copied: do not write into one before its
                result is there.
            then: called in a worker thread with each picture's number, from 0, and its result; writes files, say.
            on_error: called with the number of a picture that failed and its error, and the stream goes on. Without it
                the error is raised and the stream ends.

        Yields:
            Results; with ``then``, each with what that returned.
        """

        def finish(numbered: tuple[int, tuple[_Prepared, NDArray[Any]]]) -> Any:
            number, (prepared, output) = numbered
            result = self._finish(prepared.source, prepared.image, prepared.timings, output)
            return result if then is None else (result, then(number, result))

        stages = overlapped(
            enumerate(images),
            before=lambda item: (item[0], self._prepare(item[1])),
            network=lambda ready: (ready[0], self._infer(ready[1])),
            after=finish,
        )
        with contextlib.closing(stages):  # an error leaves no thread behind that still runs the network
            for (number, _), done in stages:
                error = done.exception()
                if isinstance(error, SegshipError) and on_error is not None:
                    on_error(number, error)
                else:
                    yield done.result()

    def at_size(self, size: tuple[int, int]) -> "Segmenter":
        """Return the same engine with pictures brought to another size; it is closed by closing either.

        Raises:
            CardError: if the graph does not leave its size open, or not to this one.
        """
        return Segmenter(self.model, backend=self._backend, card=self.card, size=size, convert=self.convert)

    def stages(self, image: ImageSource) -> Stages:
        """Return what a picture is on its way to the network.

        Raises:
            ImageError: if it cannot be read.
        """
        form = self.card.preprocess
        decoded = self._read(image)
        if self.card.tile_overlap is not None or self.card.frame is not None:
            return Stages(decoded, None, None)
        resized = form.geometry(decoded)
        return Stages(decoded, resized, form.normalise(resized) if self.card.input_form == "float" else None)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map what the graph takes, of one or more pictures, to what it returns, checked.

        Args:
            batch: (N, C, h, w) or (N, h, w, C), as the card describes it.

        Returns:
            Logits (N, K, h, w), float32, also where the graph returns their probabilities; or labels (N, h, w).

        Raises:
            BackendError: if the engine fails or returns what the card does not promise.
        """
        output = self._backend.run(batch)
        expected = (len(batch), *self.card.output_shape[1:])
        if "size" in self.card.dynamic:
            expected = (*expected[:-2], *self.card.preprocess.size)
        if self.card.head == "labels":
            return self._check_labels(output, expected)
        logits = self._check_values(output, expected)
        return logits_from_probabilities(logits, self.card) if self.card.head == "probabilities" else logits

    def describe(self) -> dict[str, Any]:
        """Return model, classes and what really runs, as plain values."""
        return {
            "model": str(self.model),
            "network": self.card.network.arch if self.card.network else None,
            "size": list(self.card.preprocess.size),
            "tile_overlap": self.card.tile_overlap,
            "task": self.card.task,
            "head": self.card.head,
            "input": self.card.input_form,
            "frame": None if self.card.frame is None else list(self.card.frame),
            "dynamic": list(self.card.dynamic),
            "precision": self.card.precision,
            "classes": list(self.card.class_names),
            "engine": dataclasses.asdict(self.info),
        }

    def close(self) -> None:
        """Free what the engine holds."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, source: ImageSource) -> Image:
        form, frame = self.card.preprocess, self.card.frame
        image = read_image(source, channels=form.channels, depth=form.depth, convert=self.convert)
        if frame is not None and image.shape[:2] != frame:
            raise ImageError(
                f"{source_name(source)}: its {image.shape[0]}×{image.shape[1]} pixels do not fit a model of "
                f"{frame[0]}×{frame[1]} frames (height × width); export one without --frame for pictures of any size"
            )
        return image

    def _prepare(self, source: ImageSource) -> _Prepared:
        start = time.perf_counter()
        image = self._read(source)
        through = prepare(self.card, image)
        return _Prepared(source_name(source), image, through, {"prepare_ms": _ms_since(start)})

    def _infer(self, prepared: _Prepared) -> tuple[_Prepared, NDArray[Any]]:
        start = time.perf_counter()
        output = prepared.through(lambda batch: np.asarray(self.run(batch)[0]))
        prepared.timings["network_ms"] = _ms_since(start)
        return prepared, output

    def _finish(self, source: str, image: Image, timings: dict[str, float], output: NDArray[Any]) -> Result:
        start = time.perf_counter()
        size = (image.shape[0], image.shape[1])
        if self.card.head == "labels":
            logits, labels = None, resize_labels(output, size)
        else:
            logits, labels = output, labels_from_logits(output, size, self.card)
        timings["labels_ms"] = _ms_since(start)
        return Result(source, image, labels, logits, self.card, timings)

    def _check_values(self, output: NDArray[Any], expected: tuple[int | None, ...]) -> NDArray[np.float32]:
        head = self.card.head
        if output.shape != expected or output.dtype != np.float32:
            raise BackendError(f"the graph returned {_described(output)}; its card promises {head} {expected} float32")
        limit = np.finfo(np.float32).max  # which OpenCV 5 makes of NaN
        if not (-limit < output.min() and output.max() < limit):
            raise BackendError("the network returned values that are no numbers (NaN or infinite); its weights are bad")
        return output

    def _check_labels(self, output: NDArray[Any], expected: tuple[int | None, ...]) -> Labels:
        labels = output.astype(labels_dtype(self.card.num_classes))  # OpenCV 4 returns them as float32
        if output.shape != expected or (labels != output).any() or labels.max() >= self.card.num_classes:
            raise BackendError(
                f"the graph returned {_described(output)}; its card promises labels {expected} "
                f"of 0…{self.card.num_classes - 1}"
            )
        return labels


def _only_card(model: Path, card: ModelCard) -> ModelCard:
    if has_card(model):
        raise CardError(f"{model} carries its own card, which says how it was trained; leave out --card")
    return card


def _described(output: NDArray[Any]) -> str:
    return f"{output.shape} {output.dtype}, {output.min()}…{output.max()}"


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
